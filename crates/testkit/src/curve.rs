//! The history of a training, as sessions write it and as a reader sees it.

use anyhow::{Result, bail};
use ckptd_core::store::{Store, StoreLock};
use ckptd_history::reader::{HistoryItem, TrainingHistory};
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};
use ckptd_history::writer::HistoryWriter;

/// A session of `store` in its history, which goes on after step `from` and makes steps up to `to`.
pub fn keep_session(store: &Store, began_ms: i64, from: u64, to: u64) -> Result<()> {
    let mut writer = HistoryWriter::open(store, &StoreLock::inherited())?;
    let run = store.run_id()?.map_or_else(String::new, String::from);
    let began = HistoryEvent::SessionStarted { run, total_steps: 100, version: "1".into() };
    for event in [began, HistoryEvent::Resumed { step: from, snapshot: None }] {
        writer.push(HistoryRecord::Event(TimedEvent { at_ms: began_ms, event }));
    }
    for step in from + 1..=to {
        let (at_ms, loss) = (began_ms + step as i64, 1.0 / step as f32);
        let row = StepRow { step, at_ms, loss, learning_rate: 1e-3, grad_norm: None, micros: 9, tokens: 4 };
        writer.push(HistoryRecord::Step(row));
    }
    writer.flush(0)?;
    Ok(())
}

/// The steps of its curve, and how many were cut off; a problem is an error.
pub fn curve(store: &Store) -> Result<(Vec<u64>, usize)> {
    let history = TrainingHistory::read(store)?;
    let mut problems = history.problems.clone();
    let (mut steps, mut abandoned) = (Vec::new(), 0);
    let take = &mut |item: HistoryItem| {
        match item.record {
            HistoryRecord::Step(_) if item.is_abandoned => abandoned += 1,
            HistoryRecord::Step(row) => steps.push(row.step),
            HistoryRecord::Event(_) => {}
        }
        Ok(())
    };
    history.each(take, &mut |problem| problems.push(problem))?;
    if let Some(problem) = problems.first() {
        bail!("the history of {}: {problem}", store.path().display());
    }
    Ok((steps, abandoned))
}
