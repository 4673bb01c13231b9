//! A training that begins in transformers' Trainer, goes on in ckptd and ends in Trainer has the loss curve of one that
//! never left Python, on the same batches.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use ckptd_core::progress::NoProgress;
use ckptd_core::protocol::{self, WorkerEvent};
use ckptd_core::snapshot::CarriedFile;
use ckptd_core::store::{SnapshotReader, Store};
use ckptd_core::token_cache::TokenWidth;
use ckptd_gpt2::data::order::{DataCursor, TrainBatches};
use ckptd_gpt2::tokens::TokenView;
use ckptd_interop::check;
use ckptd_interop::export::{self, ExportFormat, ExportOptions};
use ckptd_interop::import::{self, ImportOptions};
use ckptd_interop::source_record::SourceRecord;
use ckptd_interop::source_record::schedule::KnownSchedule;
use ckptd_testkit::python;

/// Steps that Trainer makes before, ckptd in between, and all of them.
const SAVED: u64 = 8;
const OURS: u64 = 10;
const STEPS: u64 = 24;
const ROWS: usize = 4;
const POSITIONS: usize = 32;
const SEED: u64 = 11;

/// Tokens with a pattern that can be learned.
fn tokens() -> Vec<u16> {
    (0u32..6000).map(|i| ((i * i / 7 + i % 11 * 5) % 97) as u16).collect()
}

/// The batches of all steps, [step][row][position + 1]: from step SAVED on they are those that ckptd will read.
fn batches(file: &Path) -> Vec<Vec<Vec<i64>>> {
    let (view, _) = TokenView::open(file, TokenWidth::U16).unwrap();
    let order = TrainBatches::new(view, POSITIONS as u64, SEED);
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    let mut batch = |cursor: DataCursor| {
        let next = order.fill(cursor, ROWS as u64, &mut inputs, &mut targets);
        let rows = inputs.chunks(POSITIONS).zip(targets.chunks(POSITIONS));
        let rows: Vec<Vec<i64>> = rows.map(|(inputs, targets)| [inputs, &targets[POSITIONS - 1..]].concat()).collect();
        (rows, next)
    };
    let mut steps = Vec::new();
    // Trainer's own batches come from another epoch.
    let (mut theirs, mut ours) = (DataCursor { epoch: 7, position: 0 }, DataCursor { epoch: 0, position: 0 });
    for step in 0..STEPS {
        let cursor = if step < SAVED { &mut theirs } else { &mut ours };
        let (rows, next) = batch(*cursor);
        *cursor = next;
        steps.push(rows);
    }
    steps
}

fn curve(path: &Path) -> BTreeMap<u64, f64> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn assert_agree(ours: &BTreeMap<u64, f64>, theirs: &BTreeMap<u64, f64>, steps: std::ops::RangeInclusive<u64>) {
    for step in steps {
        let (a, b) = (ours[&step], theirs[&step]);
        println!("step {step}: {a:.6} {b:.6}");
        assert!(((a - b) / b).abs() < 1e-3, "step {step}: {a} here, {b} in Python");
    }
}

#[test]
fn the_loss_curve_goes_on_from_trainer_to_ckptd_and_back() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let bytes: Vec<u8> = tokens().iter().flat_map(|id| id.to_le_bytes()).collect();
    std::fs::write(at("tokens.bin"), bytes).unwrap();
    std::fs::write(at("rows.json"), serde_json::to_string(&batches(&at("tokens.bin"))).unwrap()).unwrap();
    python::run("trainer_curve.py", &[Path::new("whole"), work.path()]);
    let whole = curve(&at("losses.json"));

    let checkpoint = at(&format!("python/checkpoint-{SAVED}"));
    let imported = import::import(&checkpoint, &at("store"), &ImportOptions::default(), &NoProgress).unwrap();
    assert_eq!(imported.step, SAVED);
    std::fs::write(at("job.toml"), job(&checkpoint)).unwrap();
    let (ours, rates, told) = train(&at("job.toml"));
    // The job is the lines that the import told, so that nothing differs, and every rate is the source's.
    assert_eq!(told, Vec::<String>::new());
    let record = SourceRecord::of_files(&carried(&imported.path), &imported.path).unwrap().unwrap();
    let schedule = KnownSchedule::of(&record).unwrap();
    for (step, rate) in &rates {
        let expected = schedule.rate(step - 1);
        assert!((rate - expected).abs() <= 1e-15 * expected.max(1e-3), "step {step}: {rate}, not {expected}");
    }
    assert_agree(&ours, &whole, SAVED + 1..=SAVED + OURS);

    let snapshot = Store::open(&at("store")).unwrap().find((SAVED + OURS).to_string()).unwrap();
    let options = ExportOptions { with_optimizer: true, ..ExportOptions::new(ExportFormat::Hf) };
    export::export(&snapshot.path, &at("exported"), &options, &NoProgress).unwrap();
    let name = format!("checkpoint-{}", SAVED + OURS);
    python::run("trainer_curve.py", &[Path::new("resume"), work.path(), &at("exported"), Path::new(&name)]);
    assert_agree(&curve(&at("resumed.json")), &whole, SAVED + OURS + 1..=STEPS);
}

#[test]
fn a_job_with_other_settings_is_told_each_and_starts_from_the_very_state() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let bytes: Vec<u8> = tokens().iter().flat_map(|id| id.to_le_bytes()).collect();
    std::fs::write(at("tokens.bin"), bytes).unwrap();
    std::fs::write(at("rows.json"), serde_json::to_string(&batches(&at("tokens.bin"))).unwrap()).unwrap();
    python::run("trainer_curve.py", &[Path::new("whole"), work.path()]);
    let checkpoint = at(&format!("python/checkpoint-{SAVED}"));
    let imported = import::import(&checkpoint, &at("store"), &ImportOptions::default(), &NoProgress).unwrap();
    let other = job(&checkpoint)
        .replace("learning_rate = 2e-3", "learning_rate = 1e-3")
        .replace("betas = [0.9, 0.95]", "betas = [0.9, 0.99]")
        .replace(&format!("steps = {STEPS}\n"), &format!("steps = {}\n", SAVED));
    std::fs::write(at("job.toml"), other).unwrap();
    let (_, _, told) = train(&at("job.toml"));
    for line in [
        "learning_rate was 0.002 in the source, and is 0.001 in [train]",
        "betas was [0.9, 0.95] in the source, and is [0.9, 0.99] in [train]",
        "steps was 24 in the source, and is 8 in [train]",
    ] {
        assert!(told.iter().any(|told| told == line), "{line:?} in {told:?}");
    }
    assert_eq!(told.len(), 3, "{told:?}");
    // No step was left to make: what was saved is what was imported.
    let newest = Store::open(&at("store")).unwrap().find("latest").unwrap();
    let checked = check::check(&newest.path, Some(&checkpoint), 2, &NoProgress).unwrap();
    assert_eq!((checked.equal, checked.epsilon), (Some(true), Some(0.0)));
    assert_eq!(newest.id.to_string(), imported.id.to_string());
}

fn carried(snapshot: &Path) -> Vec<CarriedFile> {
    SnapshotReader::open(snapshot).unwrap().read_snapshot().unwrap().files
}

/// Trainer's arguments as a job; its linear schedule ends at 0 one step after the last.
fn job(checkpoint: &Path) -> String {
    format!(
        "[job]\nstore = \"store\"\nseed = {SEED}\nthreads = 2\n[model]\nfrom = {checkpoint:?}\n\
         [data]\ntokens = \"tokens.bin\"\nvalidation = 0.0\n\
         [snapshot]\nevery_steps = {}\n[retention]\nkeep_last = 10\n\
         [train]\nsteps = {STEPS}\nbatch_size = {ROWS}\nsequence_length = {POSITIONS}\nlearning_rate = 2e-3\n\
         schedule = \"linear\"\nwarmup_steps = 0\nmin_learning_rate = {}\nweight_decay = 0.1\nbetas = [0.9, 0.95]\n\
         eval_every = 0\n",
        SAVED + OURS,
        1.0 / STEPS as f64,
    )
}

/// Lets the worker train to the end; returns loss and learning rate of each step, and what it said of the source.
fn train(job: &Path) -> (BTreeMap<u64, f64>, BTreeMap<u64, f64>, Vec<String>) {
    let output = Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2")).arg("--config").arg(job).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let (mut losses, mut rates, mut told) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for event in out.lines().filter_map(|line| protocol::parse::<WorkerEvent>(line).ok()) {
        match event {
            WorkerEvent::Step { step, loss, learning_rate, .. } => {
                losses.insert(step, loss);
                rates.insert(step, learning_rate);
            }
            WorkerEvent::Log { message, .. } if message.contains("source") => told.push(message),
            _ => {}
        }
    }
    (losses, rates, told)
}
