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

    /// The session under way.
    pub fn current(&mut self) -> Option<&mut SessionRecord> {
        self.sessions.last_mut()
    }

    pub fn count(&self) -> u64 {
        self.forgotten + self.sessions.len() as u64
    }

    /// How many more sessions the training needs at the pace of the last ones, and when it would end if they follow
    /// one another as these did. `None` where no session has got on yet.
    pub fn outlook(&self, total_steps: u64, now: Timestamp) -> Option<SessionOutlook> {
        let last = self.sessions.last()?;
        let left = total_steps.saturating_sub(last.saved_step);
        if left == 0 {
            return Some(SessionOutlook { sessions: 0, ends_at: last.ended.unwrap_or(now) });
        }
        let recent: Vec<&SessionRecord> =
            self.sessions.iter().rev().filter(|session| session.gained() > 0).take(RECENT).collect();
        let gained = recent.iter().fold(0u64, |sum, session| sum.saturating_add(session.gained()));
        let count = recent.len() as u64;
        if gained == 0 {
            return None;
        }
        let sessions = left.saturating_mul(count).div_ceil(gained);
        // From one session's beginning to the next one's: its length, and the pause after it.
        let rhythm = match (recent.first(), recent.last()) {
            (Some(newest), Some(oldest)) if count > 1 => between(oldest.began, newest.began) / (count - 1) as u32,
            _ => between(last.began, last.seen),
        };
        let length = recent.iter().map(|session| between(session.began, session.seen)).sum::<Duration>() / count as u32;
        let pause = rhythm.saturating_sub(length);
        let work = length.as_secs_f64() * left as f64 * count as f64 / gained as f64;
        let wait = Duration::try_from_secs_f64(work + pause.as_secs_f64() * sessions as f64).unwrap_or(Duration::MAX);
        let ends_at = now.checked_add(SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX)).ok()?;
        Some(SessionOutlook { sessions, ends_at })
    }
}

impl SessionRecord {
    pub fn length(&self) -> Duration {
        between(self.began, self.ended.unwrap_or(self.seen))
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
    pub sessions: u64,
    pub ends_at: Timestamp,
}

impl SessionOutlook {
    /// "about 3 more sessions like the last ones, until Tue 24 Nov 23:10 at this pace"
    pub fn text(&self) -> String {
        let end = self.ends_at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%a %-d %b %H:%M").to_string();
        match self.sessions {
            0 => "no more sessions are needed".to_owned(),
            1 => format!("about one more session is needed; at this pace the training ends on {end}"),
            n => format!("about {n} more sessions are needed; at this pace the training ends on {end}"),
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
        (session.ended, session.cause) = (Some(at(began + 60)), "SIGTERM".into());
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
        assert_eq!(records.outlook(100, at(0)), None);
        hour(&mut records, 0, 10);
        assert_eq!(records.outlook(40, at(60)).unwrap(), SessionOutlook { sessions: 3, ends_at: at(60 + 180) });
        hour(&mut records, 90, 20);
        // Half an hour of pause before each.
        assert_eq!(records.outlook(40, at(150)).unwrap(), SessionOutlook { sessions: 2, ends_at: at(150 + 180) });
        hour(&mut records, 180, 40);
        assert_eq!(records.outlook(40, at(240)).unwrap().sessions, 0);
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
