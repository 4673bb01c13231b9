//! How large the history of 10 million steps is, and how long it is read: prints a line for each.
//!
//!     cargo run --release -p ckptd-history --example ten-million [FOLDER [keep]]
//!
//! Two trainings: of 1,000 steps per second and of 10, in batches of two seconds. With `keep` the stores stay, for
//! `ckptd plot` and `ckptd serve`.

use std::path::Path;
use std::time::Instant;

use ckptd_core::error::Result;
use ckptd_core::store::Store;
use ckptd_core::store::layout::Folder;
use ckptd_history::overview::HistoryOverview;
use ckptd_history::reader::TrainingHistory;
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};
use ckptd_history::writer::HistoryWriter;
use ckptd_testkit::random::SeededRandom;

const STEPS: u64 = 10_000_000;

/// A normal variable, nearly.
fn noise(random: &mut SeededRandom) -> f64 {
    (0..4).map(|_| random.below(1 << 30) as f64 / f64::from(1 << 30) - 0.5).sum::<f64>() * 1.7
}

fn row(step: u64, millis: f64, random: &mut SeededRandom) -> StepRow {
    let done = step as f64 / STEPS as f64;
    StepRow {
        step,
        at_ms: 1_800_000_000_000 + (step as f64 * millis + noise(random) * millis * 0.02) as i64,
        loss: (2.5 + 8.0 / (1.0 + done * 200.0) + 0.15 * noise(random)) as f32,
        learning_rate: (3e-4 * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0) as f32,
        grad_norm: Some((1.0 + 0.3 * noise(random)).abs() as f32),
        micros: (millis * 1e3 * (1.0 + 0.02 * noise(random))) as u64,
        tokens: 16_384,
    }
}

/// Writes the steps, and returns the seconds that it took.
fn write(store: &Store, batch: u64, millis: f64) -> Result<f64> {
    let (lock, began) = (store.lock("an example")?, Instant::now());
    let mut writer = HistoryWriter::open(store, &lock)?;
    let mut random = SeededRandom::new(1);
    for step in 1..=STEPS {
        writer.push(HistoryRecord::Step(row(step, millis, &mut random)));
        if step.is_multiple_of(1000) {
            let event = HistoryEvent::Evaluated { step, val_loss: Some(3.0 + noise(&mut random)), best: false };
            writer.push(HistoryRecord::Event(TimedEvent { at_ms: step as i64, event }));
        }
        if step.is_multiple_of(batch) {
            writer.flush(0)?;
        }
    }
    writer.flush(0)?;
    Ok(began.elapsed().as_secs_f64())
}

fn measure(name: &str, folder: &Path, batch: u64, millis: f64) -> Result<()> {
    let store = Store::create(folder)?;
    let written = write(&store, batch, millis)?;
    let files = store.folder(Folder::History)?;
    let (mut bytes, mut count) = (0, 0);
    for file in files.files()? {
        bytes += files.stat(&file)?.map_or(0, |stat| stat.st_size);
        count += 1;
    }
    println!("{name}: {STEPS} steps, {count} files, {:.1} MB, written in {written:.0} s", bytes as f64 / 1e6);
    for _ in 0..2 {
        let began = Instant::now();
        let history = TrainingHistory::read(&store)?;
        let overview = HistoryOverview::of(&history, 2000)?;
        let points = overview.curve.len() + overview.evaluations.len();
        println!("  summaries: {points} points in {:.3} s", began.elapsed().as_secs_f64());
    }
    let (began, mut sum, mut rows) = (Instant::now(), 0.0, 0u64);
    TrainingHistory::read(&store)?.each(
        &mut |item| {
            if let HistoryRecord::Step(row) = item.record {
                sum += f64::from(row.loss);
                rows += 1;
            }
            Ok(())
        },
        &mut |problem| println!("{problem}"),
    )?;
    println!("  every step: {rows}, mean loss {:.4}, in {:.3} s", sum / rows as f64, began.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "target/ten-million".into());
    for (name, batch, millis) in [("1,000 steps/s", 2000, 1.0), ("10 steps/s", 20, 100.0)] {
        let folder = Path::new(&folder).join(name.replace(['/', ' ', ','], ""));
        measure(name, &folder, batch, millis)?;
        if std::env::args().nth(2).is_none() {
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
    Ok(())
}
