//! A report and a store as the page shows them.
//!
//! Deliberately not here: where the report comes from: the daemon, or the store's files.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::daemon::report::{JobState, RemoteReport, StatusReport};
use crate::session::records::SessionRecord;
use ckptd_core::config::Config;
use ckptd_core::error::Result;
use ckptd_core::ids::SnapshotId;
use ckptd_core::store::{QuarantinedFile, RetentionPolicy, SnapshotEntry, SnapshotState, Store, layout};
use ckptd_page::view::{
    JobView, MachineView, PlanView, RemoteView, SavedStep, SessionRow, SnapshotCountView, SnapshotRow, StoredView,
};

/// Snapshots that are listed.
const LISTED: usize = 200;

/// The job of `config` in `store`, of which `report` says how it is.
pub fn view(report: &StatusReport, config: Option<&Config>, store: &Store) -> JobView {
    let now = Timestamp::now();
    let mut problems: Vec<String> = report.problem.iter().chain(&report.warnings).cloned().collect();
    let remote_problem = report.remote.as_ref().and_then(|remote| remote.problem.as_ref());
    problems.extend(remote_problem.map(|problem| format!("not replicated for now: {problem}")));
    let retention = config.map_or_else(RetentionPolicy::default, |config| config.retention.clone());
    let StoredSnapshots { rows, last_verified, stored } = snapshots(store, &retention, now).unwrap_or_else(|error| {
        problems.push(format!("the snapshots cannot be listed: {error}"));
        StoredSnapshots::default()
    });
    let is_live = report.daemon.pid.is_some();
    JobView {
        now_ms: now.as_millisecond(),
        name: config.map_or_else(|| folder_name(store), |config| config.job.name.clone()),
        store: std::path::absolute(store.path()).unwrap_or_else(|_| store.path().to_path_buf()).display().to_string(),
        state: report.state.name().to_owned(),
        is_live,
        step: report.step,
        total_steps: report.total_steps,
        loss: report.loss,
        is_diverged: report.state == JobState::Training && report.loss.is_none() && report.learning_rate.is_some(),
        learning_rate: report.learning_rate,
        tokens_per_second: report.tokens_per_second,
        ends_ms: report.history.ends_at.map(Timestamp::as_millisecond),
        sessions_left: report.history.sessions_left,
        problems,
        last_verified,
        plan: plan(report),
        remote: report.remote.as_ref().map(|remote| remote_view(remote, now)),
        machine: machine(report, config),
        counts: SnapshotCountView {
            committed: report.snapshots.committed,
            verified: report.snapshots.verified,
            skipped: report.snapshots.skipped,
            failed: report.snapshots.failed,
            quarantined: report.snapshots.quarantined,
        },
        snapshots: rows,
        stored,
        sessions: sessions(report),
    }
}

fn folder_name(store: &Store) -> String {
    let path = std::path::absolute(store.path()).unwrap_or_default();
    path.file_name().map_or_else(|| "training".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn plan(report: &StatusReport) -> PlanView {
    PlanView {
        began_ms: report.session.began.map(Timestamp::as_millisecond),
        deadline_ms: report.session.deadline.map(Timestamp::as_millisecond),
        source: report.session.source.clone(),
        last_call_ms: report.session.last_call.map(Timestamp::as_millisecond),
        interval_seconds: report.interval.seconds,
        interval_why: report.interval.why.clone(),
    }
}

fn remote_view(remote: &RemoteReport, now: Timestamp) -> RemoteView {
    let at_ms = |age: f64| now.as_millisecond() - (age * 1e3) as i64;
    let newest = remote.step.zip(remote.age_seconds).map(|(step, age)| SavedStep { step, at_ms: at_ms(age) });
    RemoteView { place: remote.place.clone(), newest, missing: remote.missing, problem: remote.problem.clone() }
}

fn machine(report: &StatusReport, config: Option<&Config>) -> MachineView {
    MachineView {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        daemon_pid: report.daemon.pid,
        worker_pid: report.worker.pid,
        restarts: report.worker.restarts,
        ranks: report.ranks.as_ref().map_or(1, |ranks| ranks.count),
        device: config.map_or_else(String::new, |config| config.job.device.clone()),
        stall_p50_ms: report.stall_ms.p50,
        stall_p99_ms: report.stall_ms.p99,
    }
}

fn sessions(report: &StatusReport) -> Vec<SessionRow> {
    let row = |(age, session): (usize, &SessionRecord)| SessionRow {
        number: report.history.sessions.saturating_sub(age as u64),
        began_ms: session.began.as_millisecond(),
        ended_ms: session.ended.map(Timestamp::as_millisecond),
        from_step: session.from_step,
        step: if session.ended.is_none() { session.step } else { session.saved_step },
        lost_steps: session.lost_steps,
        failures: session.failures,
        cause: session.cause.clone(),
    };
    report.history.latest.iter().enumerate().map(row).collect()
}

/// What a store holds.
#[derive(Default)]
struct StoredSnapshots {
    /// The newest ones, and those in quarantine.
    rows: Vec<SnapshotRow>,
    /// The newest that a resume can count on.
    last_verified: Option<SavedStep>,
    stored: StoredView,
}

fn snapshots(store: &Store, retention: &RetentionPolicy, now: Timestamp) -> Result<StoredSnapshots> {
    let plan = store.plan(retention, now)?;
    let mut reasons: HashMap<SnapshotId, Vec<String>> =
        plan.verdicts().iter().filter(|v| v.keeps()).map(|v| (v.id.clone(), v.texts())).collect();
    let entries = store.entries()?;
    let is_good = |entry: &&SnapshotEntry| entry.own && entry.healthy() && entry.state == SnapshotState::Verified;
    let saved = entries.iter().find(is_good).and_then(|entry| {
        let manifest = entry.manifest.as_ref()?;
        Some(SavedStep { step: entry.step(), at_ms: manifest.created_at.as_millisecond() })
    });
    let quarantined = store.quarantined()?;
    let bytes = entries.iter().map(|entry| entry.bytes).chain(quarantined.iter().map(|file| file.bytes));
    let stored = StoredView { snapshots: entries.len() as u64, bytes: bytes.sum() };
    let rows = entries.iter().take(LISTED).map(|entry| of_entry(entry, reasons.remove(&entry.id).unwrap_or_default()));
    let mut rows: Vec<SnapshotRow> = rows.collect();
    rows.extend(quarantined.into_iter().take(LISTED).map(of_quarantined));
    Ok(StoredSnapshots { rows, last_verified: saved, stored })
}

fn of_entry(entry: &SnapshotEntry, kept_because: Vec<String>) -> SnapshotRow {
    let (state, problem) = entry.state.told();
    let finite = |loss: Option<f64>| loss.filter(|loss| loss.is_finite());
    let manifest = entry.manifest.as_ref();
    SnapshotRow {
        step: manifest.map(|m| m.train.step).or_else(|| layout::step_of(&entry.id)),
        state,
        is_healthy: entry.healthy(),
        bytes: entry.bytes,
        loss: manifest.and_then(|m| finite(m.metrics.train_loss)),
        val_loss: finite(entry.val_loss()),
        created_ms: manifest.map(|m| m.created_at.as_millisecond()),
        kept_because,
        problem,
    }
}

fn of_quarantined(file: QuarantinedFile) -> SnapshotRow {
    SnapshotRow {
        step: layout::step_of(&layout::quarantined_id(&file.name)),
        state: "quarantined",
        bytes: file.bytes,
        problem: Some(file.reason),
        ..SnapshotRow::default()
    }
}

/// A job of which nothing can be read, and why.
pub fn unreadable(name: &str, problem: String) -> JobView {
    let state = JobState::Stopped.name().to_owned();
    let now_ms = Timestamp::now().as_millisecond();
    JobView { now_ms, name: name.to_owned(), state, problems: vec![problem], ..JobView::default() }
}
