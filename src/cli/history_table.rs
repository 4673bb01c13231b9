//! A history as a table of its sessions, for people.

use std::time::Duration;

use super::history_rows::time;
use super::output;
use ckptd_core::text::{counted, rough_duration};
use ckptd_history::overview::{HistoryOverview, SnapshotFate};

/// Buckets of the curve: only its end is told.
pub(super) const POINTS: usize = 200;

pub(super) fn table(overview: &HistoryOverview, is_running: bool) -> String {
    let sessions = overview.sessions.iter().enumerate().map(|(n, session)| {
        let is_last = n + 1 == overview.sessions.len();
        let span = Duration::from_millis(session.seen_ms.saturating_sub(session.began_ms).unsigned_abs());
        vec![
            (n + 1).to_string(),
            local_time(session.began_ms),
            rough_duration(span),
            session.from_step.map_or_else(|| "-".to_owned(), |from| format!("{from} to {}", session.step)),
            session.lost_steps.to_string(),
            session.failures.to_string(),
            match &session.why {
                Some(why) => why.clone(),
                None if is_last && is_running => "under way".to_owned(),
                None => "killed".to_owned(),
            },
        ]
    });
    let sessions: Vec<Vec<String>> = sessions.collect();
    let head = ["SESSION", "BEGAN", "LASTED", "STEPS", "LOST", "FAILURES", "ENDED"];
    format!("{}\n{}", summary(overview), output::table(&head, &sessions))
}

/// How far it is, what was lost, what is saved.
fn summary(overview: &HistoryOverview) -> String {
    let mut lines = Vec::new();
    if let Some(last) = overview.curve.last() {
        let of_all = overview.total_steps.map_or_else(String::new, |total| format!(" of {total}"));
        let loss = last.loss.mean().map_or_else(String::new, |loss| format!(", loss {loss:.4}"));
        lines.push(format!("step {}{of_all}{loss}", last.last_step));
    }
    let best = overview.evaluations.iter().filter_map(|point| Some((point.step, point.val_loss?)));
    if let Some((step, loss)) = best.min_by(|one, other| one.1.total_cmp(&other.1)) {
        lines.push(format!("lowest validation loss {loss:.4}, at step {step}"));
    }
    let verified = overview.snapshots.iter().filter(|mark| mark.fate == SnapshotFate::Verified && !mark.is_abandoned);
    let quarantined = overview.snapshots.iter().filter(|mark| mark.fate == SnapshotFate::Quarantined).count() as u64;
    let mut saved = format!("{} verified", counted(verified.count() as u64, "snapshot"));
    if quarantined > 0 {
        saved += &format!(", {quarantined} quarantined");
    }
    lines.push(saved);
    let lost = overview.lost_steps();
    let trained = lost + overview.curve.iter().map(|bucket| bucket.rows).sum::<u64>();
    if lost > 0 {
        let percent = 100.0 * lost as f64 / trained as f64;
        lines.push(format!("{} trained and lost ({percent:.1} %)", counted(lost, "step")));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn local_time(at_ms: i64) -> String {
    time(at_ms).to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
