//! What the fuzzers start from, and whatever they once broke something with, is read without a panic and without a
//! trace.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::{Path, PathBuf};

use ckptd_core::config::Config;
use ckptd_core::progress::NoProgress;
use ckptd_core::protocol::{self, AgentCommand, Start, WorkerEvent, WorkerFailure};
use ckptd_core::snapshot::Role;
use ckptd_core::store::{CommitOptions, StoreLock, commit};
use ckptd_interop::export::{self, ExportFormat, ExportOptions};
use ckptd_testkit::small;

use targets::{Sandbox, craft};

type Target = fn(&Sandbox, &[u8]);

const TARGETS: [(&str, Target); 8] = [
    ("pt", targets::pt),
    ("safetensors", targets::safetensors),
    ("snapshot", targets::snapshot),
    ("bundle", targets::bundle),
    ("config", targets::config),
    ("protocol", targets::protocol),
    ("status", targets::status),
    ("notice", targets::notice),
];

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_seed_and_every_former_finding_is_read_or_refused() {
    for (name, target) in TARGETS {
        let sandbox = Sandbox::default();
        let seeds = files(&folder("seeds", name));
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for path in seeds.into_iter().chain(files(&folder("regressions", name))) {
            println!("{}", path.display());
            target(&sandbox, &std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn the_seeds_are_files_as_they_are_written_today() {
    let dir = tempfile::tempdir().unwrap();
    write_seeds(dir.path());
    for (name, _) in TARGETS {
        let names = |dir: &Path| files(dir).iter().map(|f| f.file_name().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&dir.path().join(name)), names(&folder("seeds", name)), "run the ignored test of this file");
    }
    let parts = std::fs::read(folder("seeds", "snapshot").join("parts")).unwrap();
    let path = dir.path().join("sealed");
    std::fs::write(&path, targets::sealed(&parts[1..])).unwrap();
    ckptd_core::store::SnapshotReader::open(&path).unwrap().check_all(1, &NoProgress).unwrap();
}

#[test]
#[ignore = "writes fuzz/seeds; to be run when a format changes"]
fn write_the_seeds() {
    write_seeds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds"));
}

/// One small state in every format, as a file and as what lies behind its checksums.
fn write_seeds(out: &Path) {
    let (work, store) = small::store();
    let mut state = small::snapshot(3, 8);
    state.files[0].bytes = br#"{"model_type": "gpt2", "n_layer": 1}"#.to_vec().into();
    state.tensors.retain(|tensor| tensor.meta.role != Role::Buffer && tensor.meta.name != "empty");
    for tensor in &mut state.tensors {
        tensor.meta.name = tensor.meta.name.replace("h.0.weight", "transformer.wte.weight");
    }
    state.tensors.retain(|tensor| tensor.meta.name == "transformer.wte.weight");
    let snapshot = commit(&store, &StoreLock::inherited(), state, &CommitOptions::new(small::RUN, 1)).unwrap().path;
    let put = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(out.join(target)).unwrap();
        std::fs::write(out.join(target).join(name), bytes).unwrap();
    };
    let file = |bytes: &[u8]| [&[0], bytes].concat();
    let export = |format: ExportFormat, with_optimizer: bool| {
        let path = work.path().join(format!("{format:?}{with_optimizer}"));
        let options = ExportOptions { with_optimizer, ..ExportOptions::new(format) };
        export::export(&snapshot, &path, &options, &NoProgress).unwrap();
        std::fs::read(path).unwrap_or_default()
    };

    put("config", "every-key", include_bytes!("../config/ckptd.toml"));
    put("config", "mini", include_bytes!("../config/mini.toml"));
    put("status", "request", b"{\"request\":\"status\"}\n");
    for (name, source, body) in answers() {
        put("notice", name, &[&[source], body.as_bytes()].concat());
    }
    for (name, direction, line) in messages() {
        put("protocol", name, &[&[direction], line.as_bytes()].concat());
    }

    let bytes = std::fs::read(&snapshot).unwrap();
    put("snapshot", "file", &file(&bytes));
    put("snapshot", "parts", &targets::parts_of(&bytes).unwrap());

    put("pt", "weights", &file(&export(ExportFormat::Pt, false)));
    put("pt", "full", &file(&export(ExportFormat::Pt, true)));
    let storage = craft::storage("FloatStorage", "0", 16);
    let pickle = craft::pickle(&craft::state(craft::tensor(&storage, 0, &[4, 4], &[4, 1])));
    put("pt", "pickle", &[&[1], &pickle[..]].concat());

    let bytes = export(ExportFormat::Safetensors, true);
    put("safetensors", "file", &file(&bytes));
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    put("safetensors", "header", &[&[1], &bytes[8..header], &[0], &bytes[header..]].concat());

    put("bundle", "zip", &file(&export(ExportFormat::Zip, true)));
    put("bundle", "tar.zst", &file(&export(ExportFormat::TarZst, true)));
    let tar = [craft::tar_entry(b"config.json", b'0', 2, b"{}"), vec![0; 1024]].concat();
    put("bundle", "tar", &[&[1], &tar[..]].concat());
}

/// A message of each kind that has fields of its own, with its direction.
fn messages() -> Vec<(&'static str, u8, String)> {
    let config = Config::parse(include_str!("../config/mini.toml"), Path::new("/jobs/mini.toml")).unwrap();
    let start = Start {
        protocol: 1,
        config,
        run_id: small::RUN.into(),
        next_seq: 7,
        resume: Some("/jobs/store/snapshots/step-000000000010.ckpt".into()),
        dispute: None,
        accept_changes: false,
    };
    let command = |name, command: &AgentCommand| (name, 0, protocol::line(command));
    let event = |name, event: &WorkerEvent| (name, 1, protocol::line(event));
    vec![
        command("start", &AgentCommand::Start(Box::new(start))),
        command("stop", &AgentCommand::Stop { snapshot: true, reason: "SIGTERM".into(), within_ms: Some(10_000) }),
        event(
            "hello",
            &WorkerEvent::Hello {
                protocol: 1,
                worker: "w".into(),
                version: "1".into(),
                pid: 7,
                accepts: vec!["configure".into()],
            },
        ),
        event(
            "step",
            &WorkerEvent::Step { step: 3, loss: 2.5, learning_rate: 1e-4, grad_norm: None, step_ms: 1.5, tokens: 512 },
        ),
        event("eval", &WorkerEvent::Eval { step: 3, val_loss: f64::NAN, best: false }),
        event("failed", &WorkerEvent::Failed { failure: WorkerFailure::Damaged, what: "no".into() }),
    ]
}

/// An answer of each source of notices, with the source's number.
fn answers() -> Vec<(&'static str, u8, &'static str)> {
    vec![
        ("aws-action", 0, r#"{"action": "terminate", "time": "2026-09-18T08:22:00Z"}"#),
        ("aws-rebalance", 1, r#"{"noticeTime": "2026-09-18T08:22:00Z"}"#),
        ("aws-token", 2, "AQAEAExample=="),
        (
            "azure-events",
            3,
            r#"{"DocumentIncarnation": 1, "Events": [{"EventId": "A", "EventStatus": "Scheduled",
"EventType": "Preempt", "ResourceType": "VirtualMachine",
"Resources": ["vm_0"], "NotBefore": "Mon, 19 Sep 2026 18:29:47 GMT"}]}"#,
        ),
        ("azure-name", 4, "vm_0"),
        ("gcp-preempted", 5, "TRUE"),
        ("gcp-maintenance", 6, "TERMINATE_ON_HOST_MAINTENANCE"),
        ("slurm-end", 7, "2026-09-18T08:22:00"),
    ]
}
