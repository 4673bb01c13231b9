//! The sessions of a store so far, and what they taught about costs.
//!
//! Invariant: a session is entered when it begins: one without an end was killed. Bounded: the newest sessions are kept
//! one by one, older ones only counted. Deliberately not here: how it is kept (core's store), when it is written
//! (training/job), what is to come (outlook).

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::costs::LearnedCosts;
use ckptd_core::ids::RunId;

/// Sessions that are kept one by one.
const KEPT: usize = 500;

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
    /// What of the training made no sense in the last one.
    pub warnings: Vec<String>,
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
    /// How long it might last, in seconds, where its end was known.
    #[serde(default)]
    pub planned_seconds: Option<f64>,
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
        self.warnings.clear();
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
            planned_seconds: None,
        });
        if self.sessions.len() > KEPT {
            self.forgotten += (self.sessions.len() - KEPT) as u64;
            self.sessions.drain(..self.sessions.len() - KEPT);
        }
    }

    /// Takes over `mark`, which the session that was under way last has written at its last step; it may have died
    /// before it was entered.
    pub fn take_mark(&mut self, mark: SessionRecord) {
        match self.sessions.last_mut() {
            Some(last) if last.began > mark.began => {}
            Some(last) if last.began == mark.began => {
                if last.ended.is_none() {
                    *last = mark;
                }
            }
            _ => self.sessions.push(mark),
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

    /// The session under way goes on from `step`, saved at `saved_at`: where those before it were killed, they had come
    /// so far, whatever they had lived to write down.
    pub fn correct_killed(&mut self, step: u64, saved_at: Option<Timestamp>) {
        let (mut saved, mut saved_at) = (step, saved_at);
        let before = self.sessions.len().saturating_sub(1);
        for killed in self.sessions[..before].iter_mut().rev().take_while(|session| session.cause == KILLED) {
            let made_it = saved_at.is_some_and(|at| at > killed.began);
            if !made_it && killed.trained_seconds == 0.0 && killed.step == killed.from_step {
                // It made no step, and may not even have known where it was to begin.
                killed.from_step = saved;
                killed.step = saved;
            }
            let lost_before = killed.lost_in_it();
            killed.saved_step = saved;
            killed.from_step = killed.from_step.min(saved);
            killed.step = killed.step.max(saved);
            killed.lost_steps = lost_before + (killed.step - saved);
            if let Some(at) = saved_at.filter(|_| made_it) {
                saved_at = None;
                if at > killed.seen {
                    (killed.seen, killed.ended) = (at, Some(at));
                }
            }
            saved = killed.from_step;
        }
    }

    /// The session under way.
    pub fn current(&mut self) -> Option<&mut SessionRecord> {
        self.sessions.last_mut()
    }

    pub fn count(&self) -> u64 {
        self.forgotten + self.sessions.len() as u64
    }
}

impl SessionRecord {
    pub fn length(&self) -> Duration {
        between(self.began, self.ended.unwrap_or(self.seen))
    }

    /// Steps that were trained twice in it: a crash took them, and another worker made them again.
    pub(super) fn lost_in_it(&self) -> u64 {
        self.lost_steps.saturating_sub(self.step.saturating_sub(self.saved_step))
    }
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    // Clocks are set: what is negative is nothing.
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::SignedDuration;

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
    fn a_mark_counts_for_the_session_that_wrote_it_as_long_as_that_has_no_end() {
        let mut records = SessionRecords::default();
        records.begin(&"run".into(), at(0));
        let mut mark = records.sessions[0].clone();
        (mark.step, mark.saved_step, mark.seen) = (33, 20, at(9));
        let other = SessionRecord { began: at(1), ..mark.clone() };
        records.take_mark(SessionRecord { began: at(0) - SignedDuration::from_mins(1), ..other });
        assert_eq!((records.sessions.len(), records.sessions[0].step), (1, 0));
        records.take_mark(mark.clone());
        records.begin(&"run".into(), at(30));
        assert_eq!((records.sessions[0].step, records.sessions[0].lost_steps), (33, 13));
        assert_eq!(records.sessions[0].ended, Some(at(9)));
        records.take_mark(mark);
        assert_eq!(records.sessions[0].cause, KILLED);
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
        // Two that were killed before the first of them was corrected; the second had made no step.
        let mut both = records.clone();
        let session = both.current().unwrap();
        (session.from_step, session.saved_step, session.step, session.trained_seconds) = (35, 35, 44, 1.0);
        both.begin(&"run".into(), at(62));
        both.begin(&"run".into(), at(64));
        both.correct_killed(41, Some(at(61)));
        let steps = |session: &SessionRecord| [session.from_step, session.saved_step, session.step, session.lost_steps];
        assert_eq!(both.sessions[2..4].iter().map(steps).collect::<Vec<_>>(), [[35, 41, 44, 3], [41, 41, 41, 0]]);
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
