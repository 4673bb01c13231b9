//! The sessions of a store so far, what they taught about costs, and the outlook that follows.
//!
//! Invariant: a session is entered when it begins: one without an end was killed. Bounded: the newest sessions are kept
//! one by one, older ones only counted. Deliberately not here: how it is kept (core's store), when it is written
//! (training/job).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::costs::LearnedCosts;
use ckptd_core::ids::RunId;
use ckptd_core::text::rough_duration;

/// Sessions that are kept one by one.
const KEPT: usize = 500;
/// Sessions that the pace is taken from.
const RECENT: usize = 5;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionRecords {
    /// Of the training that the sessions belong to.
    pub run_id: RunId,
    pub costs: LearnedCosts,
    /// Oldest first; the last one may be under way.
    pub sessions: Vec<SessionRecord>,
    /// Sessions that are no longer kept one by one.
    pub forgotten: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub began: Timestamp,
    /// `None`: it is under way, or it was killed.
    pub ended: Option<Timestamp>,
    /// When this was written last.
    pub seen: Timestamp,
    /// Why it ended; empty as long as it has not.
    pub cause: String,
    /// Steps that were saved when it began, and when it ended or was seen last.
    pub from_step: u64,
    pub saved_step: u64,
    /// Steps that were trained and are lost: after a crash, or for lack of time at the end.
    pub lost_steps: u64,
    /// The furthest step that it completed.
    pub step: u64,
    /// Failures of the worker.
    pub failures: u32,
    /// How long a worker was ready to train, in seconds.
    pub trained_seconds: f64,
}

pub const KILLED: &str = "killed";

impl SessionRecords {
    /// Enters a session that begins now. One before it without an end was killed: that is a failure, and what it had
    /// trained since its last snapshot is lost.
    pub fn begin(&mut self, run_id: &RunId, now: Timestamp) {
        if self.run_id != *run_id {
            *self = SessionRecords { run_id: run_id.clone(), costs: self.costs.clone(), ..SessionRecords::default() };
        }
        self.close_killed();
        let saved = self.sessions.last().map_or(0, |session| session.saved_step);
        self.sessions.push(SessionRecord {
            began: now,
            ended: None,
            seen: now,
            cause: String::new(),
            from_step: saved,
            saved_step: saved,
            lost_steps: 0,
            step: saved,
            failures: 0,
            trained_seconds: 0.0,
        });
        if self.sessions.len() > KEPT {
            self.forgotten += (self.sessions.len() - KEPT) as u64;
            self.sessions.drain(..self.sessions.len() - KEPT);
        }
    }

    /// Gives those an end that have none; none of them is under way.
    pub fn close_killed(&mut self) {
        for session in self.sessions.iter_mut().filter(|session| session.ended.is_none()) {
            session.ended = Some(session.seen);
            session.cause = KILLED.to_owned();
            session.lost_steps += session.step.saturating_sub(session.saved_step);
            self.costs.failures += 1;
        }
    }

    /// The session under way goes on from `step`, saved at `saved_at`: where the one before was killed, it had come so
    /// far, whatever it had lived to write down.
    pub fn correct_killed(&mut self, step: u64, saved_at: Option<Timestamp>) {
        let Some(killed) = self.sessions.iter_mut().rev().nth(1).filter(|session| session.cause == KILLED) else {
            return;
        };
        let lost_before = killed.lost_steps.saturating_sub(killed.step.saturating_sub(killed.saved_step));
        killed.saved_step = step;
        killed.from_step = killed.from_step.min(step);
        killed.step = killed.step.max(step);
        killed.lost_steps = lost_before + (killed.step - step);
        if let Some(saved_at) = saved_at.filter(|at| *at > killed.seen) {
            (killed.seen, killed.ended) = (saved_at, Some(saved_at));
        }
    }

    /// The session under way.
    pub fn current(&mut self) -> Option<&mut SessionRecord> {
        self.sessions.last_mut()
    }

    pub fn count(&self) -> u64 {
        self.forgotten + self.sessions.len() as u64
    }

    /// How much more the training needs: time at the pace of the last sessions, and how many more of them, where it is
    /// known how long one lasts: by its `budget`, or by the last ones that were not ended by a signal. `None` where no
    /// session has got on yet.
    pub fn outlook(&self, total_steps: u64, budget: Option<Duration>, now: Timestamp) -> Option<SessionOutlook> {
        let last = self.sessions.last()?;
        let left = total_steps.saturating_sub(last.saved_step);
        if left == 0 {
            let ends_at = last.ended.unwrap_or(now);
            return Some(SessionOutlook { sessions: Some(0), work: Duration::ZERO, ends_at });
        }
        let got_on = || self.sessions.iter().rev().filter(|session| session.gained() > 0);
        let whole: Vec<&SessionRecord> = got_on().filter(|session| !session.was_cut_short()).take(RECENT).collect();
        let recent: Vec<&SessionRecord> =
            if whole.is_empty() { got_on().take(RECENT).collect() } else { whole.clone() };
        let gained = recent.iter().fold(0u64, |sum, session| sum.saturating_add(session.gained()));
        if gained == 0 {
            return None;
        }
        let length = recent.iter().map(|session| between(session.began, session.seen)).sum::<Duration>();
        let work = Duration::try_from_secs_f64(length.as_secs_f64() * (left as f64 / gained as f64));
        let work = work.unwrap_or(Duration::MAX);
        let sessions = match (budget.filter(|budget| !budget.is_zero()), whole.len() as u64) {
            (Some(budget), _) => Some((work.as_secs_f64() / budget.as_secs_f64()).ceil().max(1.0) as u64),
            (None, 0) => None,
            (None, count) => Some(left.saturating_mul(count).div_ceil(gained)),
        };
        let pauses = Duration::try_from_secs_f64(pause(&recent).as_secs_f64() * sessions.unwrap_or(0) as f64);
        let wait = work.saturating_add(pauses.unwrap_or(Duration::MAX));
        let ends_at = now.checked_add(SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX)).ok()?;
        Some(SessionOutlook { sessions, work, ends_at })
    }
}

/// The time between two of `sessions`, newest first: from one's beginning to the next one's, without its length.
fn pause(sessions: &[&SessionRecord]) -> Duration {
    let (Some(newest), Some(oldest)) = (sessions.first(), sessions.last()) else { return Duration::ZERO };
    let count = sessions.len() as u32;
    if count < 2 {
        return Duration::ZERO;
    }
    let rhythm = between(oldest.began, newest.began) / (count - 1);
    let length = sessions.iter().map(|session| between(session.began, session.seen)).sum::<Duration>() / count;
    rhythm.saturating_sub(length)
}

impl SessionRecord {
    pub fn length(&self) -> Duration {
        between(self.began, self.ended.unwrap_or(self.seen))
    }

    /// Whether somebody ended it before its time: such a session does not tell how long one lasts.
    fn was_cut_short(&self) -> bool {
        self.cause.starts_with("SIG") || self.cause == KILLED
    }

    fn gained(&self) -> u64 {
        self.saved_step.saturating_sub(self.from_step)
    }
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    // Clocks are set: what is negative is nothing.
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOutlook {
    /// `None`: how long a session lasts is not known.
    pub sessions: Option<u64>,
    /// Time of training that is left.
    pub work: Duration,
    /// When the training ends if the sessions follow one another as they did.
    pub ends_at: Timestamp,
}

impl SessionOutlook {
    /// "about 3 more sessions like the last ones, until Tue 24 Nov 23:10 at this pace"
    pub fn text(&self) -> String {
        let end = self.ends_at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%a %-d %b %H:%M").to_string();
        match self.sessions {
            Some(0) => "no more sessions are needed".to_owned(),
            Some(1) => format!("about one more session is needed; at this pace the training ends on {end}"),
            Some(n) => format!("about {n} more sessions are needed; at this pace the training ends on {end}"),
            None => format!("about {} of training are left, if it is not interrupted", rough_duration(self.work)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    /// A session of an hour that brings the training to `step`.
    fn hour(records: &mut SessionRecords, began: i64, step: u64) {
        records.begin(&"run".into(), at(began));
        let session = records.current().unwrap();
        (session.step, session.saved_step, session.seen) = (step, step, at(began + 60));
        (session.ended, session.cause) = (Some(at(began + 60)), "the session's budget ends".into());
    }

    #[test]
    fn a_session_without_an_end_was_killed_and_its_unsaved_steps_are_lost() {
        let mut records = SessionRecords::default();
        records.begin(&"run".into(), at(0));
        let session = records.current().unwrap();
        (session.step, session.saved_step, session.seen) = (25, 20, at(9));
        records.begin(&"run".into(), at(30));
        let killed = &records.sessions[0];
        assert_eq!((killed.cause.as_str(), killed.ended, killed.lost_steps), (KILLED, Some(at(9)), 5));
        assert_eq!(records.costs.failures, 1);
        assert_eq!(records.sessions[1].from_step, 20);
    }

    #[test]
    fn the_outlook_counts_the_sessions_left_and_the_pauses_between_them() {
        let mut records = SessionRecords::default();
        assert_eq!(records.outlook(100, None, at(0)), None);
        hour(&mut records, 0, 10);
        let outlook = |records: &SessionRecords, budget, now| {
            let outlook = records.outlook(40, budget, at(now)).unwrap();
            (outlook.sessions, outlook.ends_at)
        };
        assert_eq!(outlook(&records, None, 60), (Some(3), at(60 + 180)));
        // Half an hour is what a session may take from now on.
        assert_eq!(outlook(&records, Some(Duration::from_secs(1800)), 60), (Some(6), at(60 + 180)));
        hour(&mut records, 90, 20);
        // Half an hour of pause before each.
        assert_eq!(outlook(&records, None, 150), (Some(2), at(150 + 180)));
        hour(&mut records, 180, 40);
        assert_eq!(outlook(&records, None, 240).0, Some(0));
    }

    #[test]
    fn a_session_that_a_signal_ended_says_how_fast_it_goes_and_not_how_long_sessions_are() {
        let mut records = SessionRecords::default();
        hour(&mut records, 0, 10);
        records.current().unwrap().cause = "SIGTERM".into();
        let outlook = records.outlook(40, None, at(60)).unwrap();
        assert_eq!((outlook.sessions, outlook.work), (None, Duration::from_secs(3 * 3600)));
        assert_eq!(outlook.text(), "about 3h of training are left, if it is not interrupted");
        let with_budget = records.outlook(40, Some(Duration::from_secs(7200)), at(60)).unwrap();
        assert_eq!(with_budget.sessions, Some(2));
        // One that ran its time is what counts, however many were cut short since.
        hour(&mut records, 60, 30);
        hour(&mut records, 120, 31);
        records.current().unwrap().cause = "SIGINT".into();
        assert_eq!(records.outlook(61, None, at(180)).unwrap().sessions, Some(2));
    }

    #[test]
    fn a_killed_sessions_record_is_corrected_by_what_the_next_one_goes_on_from() {
        let mut records = SessionRecords::default();
        records.begin(&"run".into(), at(0));
        let session = records.current().unwrap();
        (session.from_step, session.saved_step, session.step) = (20, 20, 20);
        records.begin(&"run".into(), at(30));
        records.correct_killed(24, Some(at(5)));
        let killed = &records.sessions[0];
        assert_eq!((killed.from_step, killed.saved_step, killed.step, killed.lost_steps), (20, 24, 24, 0));
        assert_eq!((killed.ended, killed.length()), (Some(at(5)), Duration::from_secs(300)));
        // One whose furthest step was written down, and is lost.
        let session = records.current().unwrap();
        (session.from_step, session.saved_step, session.step) = (24, 24, 40);
        records.begin(&"run".into(), at(60));
        records.correct_killed(35, None);
        assert_eq!((records.sessions[1].saved_step, records.sessions[1].lost_steps), (35, 5));
        // An orderly end is left as it is.
        records.current().unwrap().ended = Some(at(70));
        records.begin(&"run".into(), at(80));
        records.correct_killed(99, None);
        assert_ne!(records.sessions[2].saved_step, 99);
    }

    #[test]
    fn another_training_in_the_same_store_keeps_the_costs_alone() {
        let mut records = SessionRecords::default();
        hour(&mut records, 0, 10);
        records.costs.failures = 3;
        records.begin(&"another".into(), at(100));
        assert_eq!((records.sessions.len(), records.costs.failures, records.sessions[0].from_step), (1, 3, 0));
    }
}
