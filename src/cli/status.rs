//! `ckptd status`

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::target::CommandTarget;
use super::{exit_code, output};
use crate::daemon::recorder;
use crate::daemon::report::{
    DaemonReport, HistoryReport, IntervalReport, JobState, RanksReport, SessionReport, SnapshotCounts, SnapshotReport,
    SnapshotStage, StallReport, StatusReport, StoredCounts, WorkerReport, percent,
};
use crate::daemon::status::ask;
use crate::session::outlook::{self, SessionOutlook};
use crate::training::replication::Replication;
use ckptd_core::config;
use ckptd_core::error::Result;
use ckptd_core::store;
use ckptd_core::text::{counted, rough_duration, significant};

/// Sessions that the text lists.
const SHOWN: usize = 5;

/// Show what a running or stopped job is doing.
#[derive(clap::Args)]
pub(super) struct StatusArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &StatusArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    output::show(args.json, &report(&target)?, describe)?;
    Ok(exit_code::DONE)
}

/// What the job's daemon says, or where none runs, its store's files.
pub(super) fn report(target: &CommandTarget) -> Result<StatusReport> {
    let live = match &target.config {
        Some(config) => ask(&config.status.socket).map_err(|e| target.not_answering(e))?,
        None => None,
    };
    let mut report = match live {
        Some(report) => report,
        None => of_files(target)?,
    };
    report.stored = stored(target)?;
    // A daemon says since when its file is wrong.
    report.problem = report.problem.or_else(|| target.problem.clone());
    Ok(report)
}

fn stored(target: &CommandTarget) -> Result<StoredCounts> {
    let entries = target.store.entries()?;
    let verified = entries.iter().filter(|entry| entry.state == store::SnapshotState::Verified).count();
    Ok(StoredCounts { snapshots: entries.len() as u64, verified: verified as u64 })
}

/// What the store's files say while no daemon runs.
fn of_files(target: &CommandTarget) -> Result<StatusReport> {
    let now = Timestamp::now();
    let mut records = recorder::sessions(&target.store);
    // No daemon answers: a session without an end will get none any more.
    records.close_killed();
    let entries = target.store.entries()?;
    let newest = entries.iter().find(|e| e.own && e.healthy());
    let manifest = newest.and_then(|e| e.manifest.as_ref());
    let total_steps = target.config.as_ref().map(|config| config.train.steps).filter(|total| *total > 0);
    let step = newest.map_or(0, store::SnapshotEntry::step);
    let is_verified = |e: &&store::SnapshotEntry| e.state == store::SnapshotState::Verified;
    let complete = |config: &config::Config| manifest.is_some_and(|m| config.train.is_complete(&m.train));
    let finished = target.config.as_ref().is_some_and(complete) && newest.is_some_and(|e| is_verified(&e));
    let (state, problem) = match target.store.last_session()? {
        _ if finished => (JobState::Finished, None),
        store::LastSession::Ended(store::SessionEnding { problem: Some(problem), .. }) => {
            (JobState::Failed, Some(problem))
        }
        store::LastSession::Killed { pid } => (JobState::Stopped, Some(no_end_recorded(pid))),
        store::LastSession::Running { .. } | store::LastSession::Ended(_) | store::LastSession::Unknown => {
            (JobState::Stopped, None)
        }
    };
    let replication: Option<Replication> = target.store.read_record(store::Record::Replication).ok().flatten();
    let outlook = total_steps.and_then(|total| outlook::outlook(&records, total, None, now));
    Ok(StatusReport {
        state,
        problem,
        step,
        total_steps,
        percent: total_steps.and_then(|total| percent(step, total)),
        seconds_to_finish: outlook.map(|outlook| outlook.time_left.as_secs_f64().round()),
        learning_rate: None,
        loss: manifest.and_then(|m| m.metrics.train_loss).filter(|loss| loss.is_finite()),
        tokens_per_second: None,
        session: SessionReport::default(),
        last_snapshot: newest.zip(manifest).map(|(entry, manifest)| SnapshotReport {
            id: entry.id.clone(),
            age_seconds: now.duration_since(manifest.created_at).as_secs_f64().max(0.0).round(),
            state: if is_verified(&entry) { SnapshotStage::Verified } else { SnapshotStage::Committed },
        }),
        snapshots: SnapshotCounts {
            committed: entries.len() as u64,
            verified: entries.iter().filter(is_verified).count() as u64,
            quarantined: target.store.quarantined()?.len() as u64,
            ..SnapshotCounts::default()
        },
        stored: StoredCounts::default(),
        daemon: DaemonReport::default(),
        warnings: records.warnings.clone(),
        stall_ms: StallReport::default(),
        worker: WorkerReport::default(),
        ranks: None,
        interval: IntervalReport::default(),
        history: HistoryReport::of(&records, outlook),
        remote: replication.map(|replication| replication.report(now)),
    })
}

fn no_end_recorded(pid: u32) -> String {
    format!(
        "process {pid}, which ran the job, exited without recording an end (killed, or the machine went down); \
         `ckptd run` goes on from the newest verified snapshot"
    )
}

fn describe(report: &StatusReport) -> String {
    let age = |seconds: f64| rough_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let state = report.state.name();
    let total = report.total_steps.map_or_else(String::new, |total| format!(" of {total}"));
    let loss = report.loss.map_or_else(String::new, |loss| format!(", loss {loss:.4}"));
    let speed = report.tokens_per_second.map_or_else(String::new, |speed| format!(", {speed} tokens/s"));
    let percent = report.percent.map_or_else(String::new, |percent| format!(" ({percent} %)"));
    let rate = report.learning_rate.map_or_else(String::new, |rate| format!(", learning rate {}", significant(rate)));
    let mut lines = vec![format!("{state}: step {}{total}{percent}{loss}{rate}{speed}", report.step)];
    lines.push(match &report.last_snapshot {
        Some(last) => {
            let state = last.state.name();
            format!("last snapshot: {}, {state}, {} old", last.id, age(last.age_seconds))
        }
        None => "last snapshot: none".to_owned(),
    });
    lines.push(format!("snapshots: {}", describe_snapshots(report)));
    if let StallReport { p50: Some(p50), p99: Some(p99) } = report.stall_ms {
        let waited = match report.snapshots.waited {
            0 => String::new(),
            waited => format!("; for {waited} it waited until they were encoded ([snapshot] memory)"),
        };
        lines.push(format!("training held up per snapshot: {p50:.2} ms (median), {p99:.2} ms (99 %){waited}"));
    }
    lines.extend(report.problem.as_ref().map(|problem| format!("problem: {problem}")));
    lines.extend(report.warnings.iter().map(|warning| format!("warning: {warning}")));
    if let Some(remote) = &report.remote {
        let newest = match (remote.step, remote.age_seconds) {
            (Some(step), Some(seconds)) => format!("step {step}, {} ago", age(seconds)),
            _ => "nothing yet".to_owned(),
        };
        let missing = if remote.missing == 0 { String::new() } else { format!(", {} not replicated", remote.missing) };
        lines.push(format!("remote: {}: {newest}{missing}", remote.place));
        lines.extend(remote.problem.as_ref().map(|problem| format!("remote's problem: {problem}")));
    }
    if !report.interval.why.is_empty() {
        lines.push(format!("interval: {}", report.interval.why));
    }
    lines.extend(report.session.seconds_left.map(|left| {
        let source = report.session.source.as_ref().map_or_else(String::new, |source| format!(", then {source}"));
        format!("session: {} left{source}", age(left))
    }));
    let daemon = report.daemon.pid.map(|pid| format!("daemon: process {pid}"));
    let worker = report.worker.pid.map(|pid| {
        let restarts = match report.worker.restarts {
            0 => String::new(),
            n => format!(", restarted {}", counted(u64::from(n), "time")),
        };
        format!("worker: process {pid}{restarts}")
    });
    if daemon.is_some() || worker.is_some() {
        lines.push(daemon.into_iter().chain(worker).collect::<Vec<_>>().join("; "));
    }
    lines.extend(report.ranks.as_ref().map(describe_ranks));
    lines.extend(describe_history(report));
    lines.join("\n") + "\n"
}

/// "ranks: 3, at step 12; the others wait longest for rank 2, 41 ms per step; rank 1 silent for 7s"
fn describe_ranks(ranks: &RanksReport) -> String {
    const SILENT_MS: f64 = 3000.0;
    let steps = || ranks.each.iter().map(|rank| rank.step);
    let at = match (steps().min(), steps().max()) {
        (Some(least), Some(most)) if least == most => format!("at step {most}"),
        (least, most) => format!("at steps {} to {}", least.unwrap_or(0), most.unwrap_or(0)),
    };
    let mut parts = vec![format!("ranks: {}, {at}", ranks.count)];
    if let (Some(rank), Some(lag)) = (ranks.slowest, ranks.lag_ms) {
        parts.push(format!("the others wait longest for rank {rank}, {lag:.0} ms per step"));
    }
    if ranks.shard_optimizer {
        parts.push(
            "each holds a shard of the optimizer's state, so that losing one costs the steps since the newest \
                    snapshot"
                .to_owned(),
        );
    }
    parts.extend(ranks.each.iter().filter(|rank| rank.silent_ms > SILENT_MS).map(|rank| {
        let silent = Duration::try_from_secs_f64(rank.silent_ms / 1e3).unwrap_or_default();
        format!("rank {} silent for {}", rank.rank, rough_duration(silent))
    }));
    parts.join("; ")
}

/// "3 in the store, all verified; made in this session: 4, 1 skipped"
fn describe_snapshots(report: &StatusReport) -> String {
    let StoredCounts { snapshots, verified } = report.stored;
    let SnapshotCounts { committed, skipped, failed, quarantined, .. } = report.snapshots;
    let verified = match snapshots {
        0 => String::new(),
        n if n == verified => ", all verified".to_owned(),
        _ => format!(", {verified} verified"),
    };
    let mut parts = vec![format!("{snapshots} in the store{verified}")];
    if report.daemon.pid.is_some() {
        parts.push(format!("{committed} made in this session"));
    }
    for (count, what) in [(skipped, "skipped"), (failed, "failed"), (quarantined, "in quarantine")] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join("; ")
}

/// The outlook, and the last few sessions.
fn describe_history(report: &StatusReport) -> Vec<String> {
    let (history, mut lines) = (&report.history, Vec::new());
    if let (Some(seconds), Some(ends_at)) = (report.seconds_to_finish, history.ends_at) {
        let time_left = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let is_live = report.daemon.pid.is_some();
        let outlook = SessionOutlook { sessions: history.sessions_left, time_left, ends_at, is_live };
        lines.push(format!("outlook: {}", outlook.text()));
    }
    for (age, session) in history.latest.iter().take(SHOWN).enumerate() {
        let began = session.began.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S");
        let cause = if session.ended.is_none() { "under way" } else { &session.cause };
        let lost = match session.lost_steps {
            0 => String::new(),
            n => format!(", {n} steps lost"),
        };
        lines.push(format!(
            "session {}: {began}, {}, steps {} to {}{lost}: {cause}",
            history.sessions.saturating_sub(age as u64),
            rough_duration(session.length()),
            session.from_step,
            if session.ended.is_none() { session.step } else { session.saved_step },
        ));
    }
    lines
}
