//! `latest` tells the truth: whatever becomes of the newest snapshot, no command takes an older one for it without a
//! word. `CKPTD_DAMAGES=1000` (`make damages`) tries a thousand damages instead of a few dozen.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ckptd_core::store::{SnapshotState, Store};
use ckptd_testkit::job::JobFolder;
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::small::{save, save_verified, store};
use ckptd_testkit::text as words;
use serde_json::Value;

fn ckptd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ckptd")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a command said, both streams, and its exit code.
fn said(output: &Output) -> (Option<i32>, String) {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8(both).unwrap())
}

/// A file whose content comes and goes; its receipt stays as it was.
struct Victim {
    path: PathBuf,
    whole: Vec<u8>,
}

impl Victim {
    fn new(path: &Path) -> Victim {
        Victim { path: path.to_path_buf(), whole: std::fs::read(path).unwrap() }
    }

    /// One of a flipped bit, a cut, bytes that were appended, and a stretch of zeros.
    fn damage(&self, random: &mut SeededRandom) -> String {
        let length = self.whole.len() as u64;
        let mut bytes = self.whole.clone();
        let place = random.below(length) as usize;
        let what = match random.below(4) {
            0 => {
                bytes[place] ^= 1 << random.below(8);
                format!("a bit flipped at {place}")
            }
            1 => {
                bytes.truncate(place);
                format!("cut to {place}")
            }
            2 => {
                let more = 1 + random.below(300) as usize;
                bytes.extend((0..more).map(|_| random.below(256) as u8));
                format!("{more} bytes longer")
            }
            _ => {
                let end = bytes.len().min(place + 64);
                bytes[place..end].fill(0);
                // Zeros over zeros are no damage.
                bytes[place] = !self.whole[place];
                format!("overwritten at {place}")
            }
        };
        std::fs::write(&self.path, bytes).unwrap();
        what
    }
}

/// Every command that takes `latest` names the damaged file, whatever was done to it.
#[test]
fn no_damage_of_the_newest_snapshot_is_passed_over_without_a_word() {
    let campaign = std::env::var("CKPTD_DAMAGES").ok().and_then(|n| n.parse().ok());
    let damages = campaign.unwrap_or(60);
    let (folder, store) = store();
    save_verified(&store, 10, 1);
    save_verified(&store, 20, 2);
    let newest = save_verified(&store, 30, 3);
    let (victim, mut random) = (Victim::new(&newest.path), SeededRandom::new(31));
    let (at, out) = (store.path().to_owned(), folder.path().join("out"));
    for n in 0..damages {
        let what = victim.damage(&mut random);
        let (code, verify) = said(&ckptd(&["verify", text(&at), "latest"]));
        assert!(code == Some(1) && verify.contains("step-000000000030"), "{what}: {code:?} {verify}");
        let others: [&[&str]; 4] = [
            &["export", text(&at), "latest", text(&out), "--force", "--format", "safetensors"],
            &["check", text(&at), "latest"],
            &["inspect", text(&at), "latest"],
            &["pin", text(&at), "latest"],
        ];
        // The share of it takes them in turn: each of them reads the whole store again.
        let tried = if campaign.is_some() { &others[..] } else { &others[n % 4..=n % 4] };
        for arguments in tried {
            let (code, other) = said(&ckptd(arguments));
            let named = other.contains("step-000000000030") && other.contains("passed over");
            assert!(named && code == Some(0), "{what}: {arguments:?} {code:?} {other}");
        }
    }
    println!("{damages} damages of the newest snapshot: verify failed and the others named it each time");
}

#[test]
fn what_was_passed_over_is_in_the_json_and_strict_makes_it_an_error() {
    let (folder, store) = store();
    save_verified(&store, 10, 1);
    let newest = save_verified(&store, 20, 2);
    let whole = std::fs::read(&newest.path).unwrap();
    std::fs::write(&newest.path, &whole[..whole.len() / 2]).unwrap();
    let at = store.path().to_owned();
    let out = folder.path().join("out");
    let commands: [&[&str]; 4] = [
        &["export", text(&at), "latest", "--format", "safetensors", text(&out)],
        &["check", text(&at), "latest"],
        &["inspect", text(&at), "latest"],
        &["compare", text(&at), "10", "latest"],
    ];
    for command in commands {
        let output = ckptd(&[command, &["--strict"]].concat());
        let (code, told) = said(&output);
        assert_eq!(code, Some(1), "{command:?} {told}");
        assert!(told.contains("step-000000000020") && told.contains("--strict"), "{told}");
        let output = ckptd(&[command, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?} {}", said(&output).1);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let passed = &document["passed_over"][0];
        assert_eq!(passed["id"], "step-000000000020", "{document}");
        assert!(passed["reason"].as_str().unwrap().starts_with("it is damaged"), "{passed}");
        assert!(Path::new(passed["path"].as_str().unwrap()).is_file(), "{passed}");
    }
    // Whole again: nothing is passed over, and nothing is said.
    std::fs::write(&newest.path, &whole).unwrap();
    assert_eq!(ckptd(&["verify", text(&at), "latest"]).status.code(), Some(0));
    let output = ckptd(&["check", text(&at), "latest", "--strict", "--json"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{}", said(&output).1);
}

#[test]
fn a_newer_snapshot_that_is_not_verified_yet_is_verified_by_verify_and_named_by_the_others() {
    let (_folder, store) = store();
    save_verified(&store, 10, 1);
    save(&store, 20, 2);
    let at = store.path().to_owned();
    let (code, told) = said(&ckptd(&["check", text(&at), "latest"]));
    assert!(code == Some(0) && told.contains("step-000000000020 is passed over: it is not verified yet"), "{told}");
    let (code, told) = said(&ckptd(&["verify", text(&at), "latest"]));
    assert!(code == Some(0) && told.contains("step-000000000020: verified") && !told.contains("10:"), "{told}");
    assert_eq!(store.find("latest").unwrap().id, "step-000000000020");
}

#[test]
fn a_step_and_the_best_are_no_way_round_a_damaged_file_either() {
    let (_folder, store) = store();
    save_verified(&store, 10, 1);
    let first = save_verified(&store, 20, 2);
    let second = save_verified(&store, 20, 3);
    let at = store.path().to_owned();
    std::fs::write(&second.path, b"no snapshot at all").unwrap();
    let (code, told) = said(&ckptd(&["verify", text(&at), "20"]));
    assert!(code == Some(1) && told.contains(second.id.as_str()), "{told}");
    let (_, told) = said(&ckptd(&["check", text(&at), "20"]));
    assert!(told.contains(&format!("{} is passed over", second.id)), "{told}");
    // Both are gone bad: the step is there, and damaged.
    std::fs::write(&first.path, b"").unwrap();
    let (code, told) = said(&ckptd(&["check", text(&at), "20"]));
    assert!(code == Some(1) && told.contains("snapshot; it was cut"), "{told}");
    // An older damaged file is nobody's latest.
    let (code, told) = said(&ckptd(&["verify", text(&at), "latest"]));
    assert!(code == Some(1) && told.contains(first.id.as_str()) && told.contains("10: verified"), "{told}");
    save_verified(&store, 30, 4);
    let (code, told) = said(&ckptd(&["verify", text(&at), "latest"]));
    assert!(code == Some(0) && !told.contains("damaged"), "{told}");
}

#[test]
fn a_store_whose_only_snapshot_is_damaged_says_so() {
    let (_folder, store) = store();
    let only = save_verified(&store, 10, 1);
    std::fs::write(&only.path, b"cut").unwrap();
    for command in ["verify", "check", "inspect"] {
        let (code, told) = said(&ckptd(&[command, text(store.path()), "latest"]));
        assert!(code == Some(1) && told.contains(only.id.as_str()) && told.contains("damaged"), "{told}");
    }
}

#[test]
fn a_reader_who_may_not_write_the_store_is_told_that_it_is_verified() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let (folder, store) = store();
    save(&store, 10, 1);
    let damaged = save(&store, 20, 2);
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o755);
    let folders = ["", "snapshots", "receipts", "pins", "quarantine", "staging"].map(|name| store.path().join(name));
    for path in &folders {
        mode(path, 0o555);
    }
    for file in std::fs::read_dir(store.path().join("snapshots")).unwrap() {
        mode(&file.unwrap().path(), 0o444);
    }
    for file in std::fs::read_dir(store.path()).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file())
    {
        mode(&file, 0o444);
    }
    // Another user's, where this one may write everywhere.
    let is_root = rustix::process::geteuid().is_root();
    let program = folder.path().join("ckptd");
    std::fs::copy(env!("CARGO_BIN_EXE_ckptd"), &program).unwrap();
    mode(&program, 0o755);
    let verify = |spec: &str| {
        let mut command = Command::new(&program);
        command.arg("verify").arg(store.path()).arg(spec);
        if is_root {
            command.uid(65534).gid(65534);
        }
        said(&command.output().unwrap())
    };
    let (code, told) = verify("latest");
    assert!(code == Some(0) && told.contains("20: verified"), "{code:?} {told}");
    mode(&damaged.path, 0o644);
    let whole = std::fs::read(&damaged.path).unwrap();
    std::fs::write(&damaged.path, &whole[1..]).unwrap();
    let (code, told) = verify("latest");
    assert!(code == Some(1) && told.contains("20: damaged") && told.contains("10: verified"), "{code:?} {told}");
    // Or the folder could not be removed.
    for path in &folders {
        mode(path, 0o755);
    }
}

/// A real training's store, its newest snapshot damaged: the worker's command says what it passes over.
#[test]
fn text_is_not_generated_from_an_older_snapshot_without_a_word() {
    let job = JobFolder::new(
        "threads = 1\n[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"text.txt\"]\ncache = \"cache\"\n\
         [train]\nsteps = 4\nbatch_size = 1\nsequence_length = 16\neval_every = 0\n[snapshot]\nevery_steps = 2",
    );
    std::fs::write(job.path("text.txt"), words::words(4_000)).unwrap();
    let ended = job.start(Path::new(env!("CARGO_BIN_EXE_ckptd"))).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let newest = job.newest().unwrap();
    assert_eq!((newest.step(), newest.state.clone()), (4, SnapshotState::Verified));
    assert!(Store::open(&job.path("store")).unwrap().entries().unwrap().len() >= 2);
    let worker = Path::new(env!("CARGO_BIN_EXE_ckptd")).with_file_name("ckptd-gpt2");
    let generate = |more: &[&str]| {
        let mut command = Command::new(&worker);
        command.args(["generate", "--store", text(&job.path("store")), "--tokens", "2", "--prompt", "a"]).args(more);
        said(&command.output().unwrap())
    };
    let victim = Victim::new(&newest.path);
    let mut random = SeededRandom::new(5);
    for _ in 0..3 {
        let what = victim.damage(&mut random);
        let (code, told) = generate(&[]);
        let names_it = told.contains("step-000000000004 is passed over");
        assert!(code == Some(0) && names_it, "{what}: {code:?} {told}");
    }
    let (code, told) = generate(&["--strict"]);
    assert!(code == Some(1) && told.contains("would pass over step-000000000004"), "{code:?} {told}");
}
