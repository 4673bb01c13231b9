//! What the fault campaign found in the store, each as the promise that was broken.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use ckptd_core::store::{Store, StoreLock, layout};
use ckptd_testkit::small::{save_verified, store};

/// No process has this number: it is above the kernel's highest.
const GONE: u32 = 4_194_305;

#[test]
fn half_written_small_files_are_removed_at_the_next_start_and_never_listed() {
    let (folder, store) = store();
    let saved = save_verified(&store, 10, 1);
    let root = store.path().to_path_buf();
    let half = |name: &str| format!("{name}.{GONE}.new");
    let left = [
        root.join("receipts").join(half(&layout::receipt_file(&saved.id))),
        root.join("pins").join(half(saved.id.as_str())),
        root.join("quarantine").join(half(&layout::reason_file("step-000000000020.ckpt"))),
        root.join(half(layout::RUN)),
    ];
    left.iter().for_each(|path| std::fs::write(path, b"{").unwrap());
    assert!(store.quarantined().unwrap().is_empty(), "half a reason is no quarantined snapshot");
    assert_eq!(store.clean_staging(&StoreLock::inherited()).unwrap(), left.len());
    assert!(left.iter().all(|path| !path.exists()));
    drop(folder);
}

#[test]
fn a_small_file_that_a_running_process_writes_is_left_alone() {
    let (_folder, store) = store();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let path = store.path().join("receipts").join(format!("step-000000000010.json.{}.new", other.id()));
    std::fs::write(&path, b"{").unwrap();
    assert_eq!(store.clean_staging(&StoreLock::inherited()).unwrap(), 0);
    assert!(path.exists());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_sequence_number_of_an_unreadable_quarantined_snapshot_is_not_reused() {
    let (_folder, store) = store();
    save_verified(&store, 10, 1);
    let second = save_verified(&store, 20, 2);
    let aside = store.quarantine(&StoreLock::inherited(), &store.find(&second.id).unwrap(), "a drill").unwrap();
    assert_eq!(store.next_seq().unwrap(), 3);
    std::fs::write(&aside, b"nothing that can be read").unwrap();
    assert_eq!(store.next_seq().unwrap(), 3);
    // The second of two files of one name counts, too.
    std::fs::rename(&aside, aside.with_extension("ckpt.1")).unwrap();
    assert_eq!(store.next_seq().unwrap(), 3);
}

#[test]
fn a_store_is_made_below_folders_that_are_not_there_yet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/store");
    Store::create(&path).unwrap();
    save_verified(&Store::open(&path).unwrap(), 10, 1);
    Store::create(&path).unwrap();
    assert_eq!(Store::open(&path).unwrap().entries().unwrap().len(), 1);
}

#[test]
fn a_limit_on_the_file_size_is_an_error_and_not_the_end_of_the_process() {
    let (_folder, store) = store();
    save_verified(&store, 10, 1);
    let mut export = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    export.arg("export").arg(store.path()).args(["latest", "--format", "safetensors"]).arg(store.path().join("out"));
    let limit = || {
        let none = rustix::process::Rlimit { current: Some(16), maximum: Some(16) };
        Ok(rustix::process::setrlimit(rustix::process::Resource::Fsize, none)?)
    };
    // SAFETY: between fork and exec `limit` makes one system call; it allocates and locks nothing.
    unsafe { export.pre_exec(limit) };
    let output = export.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.signal(), output.status.code()), (None, Some(1)), "{said}");
    assert!(said.contains("File too large"), "{said}");
}

#[test]
fn an_older_snapshot_is_not_the_latest_when_a_newer_one_is_unreadable() {
    if rustix::process::geteuid().is_root() {
        return eprintln!("not run: root reads everything");
    }
    use std::os::unix::fs::PermissionsExt;
    let (_folder, store) = store();
    save_verified(&store, 10, 1);
    let newest = save_verified(&store, 20, 2);
    std::fs::set_permissions(&newest.path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let error = store.find("latest").unwrap_err().to_string();
    assert!(error.contains(newest.id.as_str()) && error.contains("cannot be read"), "{error}");
    assert_eq!(store.find("10").unwrap().step(), 10);
}
