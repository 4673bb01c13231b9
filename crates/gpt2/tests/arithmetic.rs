//! A training goes on under the arithmetic that it began with, or is refused by its number.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ckptd_core::arithmetic::ArithmeticNumber;
use ckptd_core::config::Config;
use ckptd_core::protocol::{self, AgentCommand, Start, WorkerEvent, WorkerFailure};
use ckptd_core::snapshot::{Snapshot, Tensor};
use ckptd_core::store::{CommitOptions, SnapshotReader, Store, StoreLock, commit};

const CONFIG: &str = r#"
[job]
store = "store"
threads = 2
[model]
preset = "gpt2-mini"
[data]
text = ["text.txt"]
cache = "cache"
[train]
steps = STEPS
batch_size = 2
sequence_length = 64
eval_every = 0
"#;

/// A job in a folder of its own, trained for two steps.
struct TrainedJob {
    folder: tempfile::TempDir,
}

impl TrainedJob {
    /// `more` stands in its `[train]`.
    fn new(more: &str) -> TrainedJob {
        let job = TrainedJob { folder: tempfile::tempdir().unwrap() };
        let text: String = (0..20_000).map(|i| format!("{} ", (i * i / 7) % 1013)).collect();
        std::fs::write(job.path("text.txt"), text).unwrap();
        job.configure(more);
        let output = worker().arg("--config").arg(job.path("job.toml")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        job
    }

    fn configure(&self, more: &str) {
        std::fs::write(self.path("job.toml"), CONFIG.replace("STEPS", "2") + more).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn newest(&self) -> PathBuf {
        Store::open(&self.path("store")).unwrap().find("latest").unwrap().path
    }

    /// The newest snapshot as a worker with another arithmetic would have left it, in a store of its own.
    fn saved_under(&self, arithmetic: ArithmeticNumber) -> PathBuf {
        let reader = SnapshotReader::open(&self.newest()).unwrap();
        let manifest = reader.manifest();
        let tensors = manifest.tensors.iter().enumerate();
        let mut snapshot = Snapshot {
            tensors: tensors.map(|(i, t)| Tensor::new(t.meta.clone(), reader.read_tensor(i).unwrap())).collect(),
            train: manifest.train.clone(),
            metrics: manifest.metrics.clone(),
            provenance: manifest.provenance.clone(),
            files: Vec::new(),
        };
        snapshot.train.arithmetic = arithmetic;
        let store = Store::create(&self.path("other")).unwrap();
        commit(&store, &StoreLock::inherited(), snapshot, &CommitOptions::new(&manifest.run_id, 1)).unwrap().path
    }

    /// The events of a worker that goes on from `snapshot` and has nothing left to train.
    fn resume(&self, snapshot: &Path, accept_changes: bool) -> Vec<WorkerEvent> {
        self.resume_by(worker(), snapshot, accept_changes)
    }

    fn resume_by(&self, mut worker: Command, snapshot: &Path, accept_changes: bool) -> Vec<WorkerEvent> {
        let config = Config::load(&self.path("job.toml")).unwrap();
        let start = Start {
            protocol: protocol::VERSION,
            config,
            run_id: "0".repeat(32).into(),
            next_seq: 9,
            resume: Some(snapshot.into()),
            accept_changes,
            dispute: None,
        };
        let mut child = worker.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(protocol::line(&AgentCommand::Start(Box::new(start))).as_bytes()).unwrap();
        // Standard input stays open until the worker ends: its end would be the agent's.
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| protocol::parse(line).unwrap()).collect()
    }
}

fn worker() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2"))
}

#[test]
fn an_unknown_arithmetic_is_refused_by_number_unless_changes_are_accepted() {
    let job = TrainedJob::new("");
    let (own, other) = (job.newest(), job.saved_under(ArithmeticNumber::new(77)));

    let events = job.resume(&other, false);
    let Some(WorkerEvent::Failed { failure: WorkerFailure::Mismatch, what }) = events.last() else {
        panic!("{events:?}");
    };
    assert!(what.contains("arithmetic 77") && what.contains("--accept-changes"), "{what}");

    let done = |event: &WorkerEvent| matches!(event, WorkerEvent::Done { step: 2, finished: true });
    let events = job.resume(&other, true);
    assert!(events.last().is_some_and(done), "{events:?}");
    let warned =
        |event: &WorkerEvent| matches!(event, WorkerEvent::Log { message, .. } if message.contains("arithmetic 77"));
    assert!(events.iter().any(warned), "{events:?}");

    let events = job.resume(&own, false);
    assert!(events.last().is_some_and(done) && !events.iter().any(warned), "{events:?}");
}

#[test]
fn another_precision_and_another_processors_bf16_are_refused_by_name_unless_changes_are_accepted() {
    const BF16: &str = "precision = \"bf16\"\n";
    let job = TrainedJob::new(BF16);
    let newest = job.newest();
    let recorded = SnapshotReader::open(&newest).unwrap().manifest().train.settings.clone();
    assert_eq!(recorded.get("train.precision"), Some("\"bf16\""));
    assert!(recorded.get("processor.bf16").is_some(), "{recorded:?}");
    let refused = |events: &[WorkerEvent], name: &str| {
        let Some(WorkerEvent::Failed { failure: WorkerFailure::Mismatch, what }) = events.last() else {
            panic!("{events:?}");
        };
        assert!(what.contains(name) && what.contains("--accept-changes"), "{what}");
    };
    let goes_on = |events: &[WorkerEvent]| {
        assert!(events.iter().any(|event| matches!(event, WorkerEvent::Ready { step: 2, .. })), "{events:?}");
    };
    // The library for products taken for that of a processor without these instructions.
    let bounded = || {
        let mut worker = worker();
        worker.env("ONEDNN_MAX_CPU_ISA", "AVX2");
        worker
    };
    goes_on(&job.resume(&newest, false));
    refused(&job.resume_by(bounded(), &newest, false), "processor.bf16");
    goes_on(&job.resume_by(bounded(), &newest, true));
    job.configure("");
    refused(&job.resume(&newest, false), "train.precision");
    goes_on(&job.resume(&newest, true));
}
