//! The job's snapshots at a remote, as the job sees them: what is where, in words and figures.
//!
//! Deliberately not here: sending them (ckptd-remote).

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::daemon::report::RemoteReport;
use ckptd_core::config::{RemoteSection, SendWhat};
use ckptd_core::text::rough_duration;

/// What is known of the job's remote in this session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replication {
    place: String,
    send: SendWhat,
    /// Verified snapshots of this session that are not there, by their steps.
    missing: Vec<u64>,
    /// How many of this session's were verified.
    verified: u64,
    /// The newest that is there, of this session or of one before.
    newest: Option<(u64, Timestamp)>,
    /// The step of the one that was given to be sent last.
    given: Option<u64>,
    lowest_loss: Option<f64>,
    problem: Option<String>,
}

impl Replication {
    /// Of a job that has a remote.
    pub fn of(remote: &RemoteSection) -> Option<Replication> {
        let place = remote.url.clone()?;
        let send = remote.send;
        Some(Replication {
            place,
            send,
            missing: Vec::new(),
            verified: 0,
            newest: None,
            given: None,
            lowest_loss: None,
            problem: None,
        })
    }

    /// A snapshot was verified here. Whether it is to be sent; `last`: the session ends with it.
    pub fn verified(&mut self, step: u64, val_loss: Option<f64>, last: bool) -> bool {
        self.verified += 1;
        self.missing.push(step);
        let is_best = val_loss.is_some_and(|loss| self.lowest_loss.is_none_or(|lowest| loss < lowest));
        if is_best {
            self.lowest_loss = val_loss;
        }
        let is_sent = match self.send {
            SendWhat::Every => true,
            SendWhat::Best => is_best || last,
            SendWhat::Final => last,
        };
        if is_sent {
            self.given = Some(step);
        }
        is_sent
    }

    /// Whether the snapshot of `step`, which turned out to be the last one of the session, is still to be sent.
    pub fn owes(&mut self, step: u64) -> bool {
        let owes = self.missing.contains(&step) && self.given != Some(step);
        if owes {
            self.given = Some(step);
        }
        owes
    }

    /// The newest snapshot that was there before this session.
    pub fn found(&mut self, step: u64, created_at: Timestamp) {
        self.newest.get_or_insert((step, created_at));
    }

    /// A snapshot is there.
    pub fn committed(&mut self, step: u64, now: Timestamp) {
        self.missing.retain(|missing| *missing != step);
        self.newest = Some((step, now));
    }

    /// What does not work, if anything.
    pub fn trouble(&mut self, problem: Option<String>) {
        self.problem = problem;
    }

    /// For `ckptd status`.
    pub fn report(&self, now: Timestamp) -> RemoteReport {
        RemoteReport {
            place: self.place.clone(),
            step: self.newest.map(|(step, _)| step),
            age_seconds: self.newest.map(|(_, at)| now.duration_since(at).as_secs_f64().max(0.0)),
            missing: self.missing.len() as u64,
            problem: self.problem.clone(),
        }
    }

    /// What is where, at the end of a session whose newest verified step is `here`.
    pub fn text(&self, here: u64, now: Timestamp) -> String {
        let place = &self.place;
        let missing = match (self.missing.len(), self.verified) {
            (0, _) => String::new(),
            (1, all) => format!("; 1 of {all} snapshots of this session is not replicated"),
            (some, all) => format!("; {some} of {all} snapshots of this session are not replicated"),
        };
        match self.newest {
            Some((step, _)) if step == here => format!("step {here} is verified here and at {place}{missing}"),
            Some((step, at)) => {
                let age = rough_duration(Duration::try_from(now.duration_since(at)).unwrap_or_default());
                format!("step {here} is verified here; {place} has step {step}, {age} old{missing}")
            }
            None => format!("step {here} is verified here, and nothing is at {place}{missing}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(send: SendWhat) -> Replication {
        Replication::of(&RemoteSection { url: Some("s3://b/j".into()), send, ..RemoteSection::default() }).unwrap()
    }

    #[test]
    fn what_is_where_is_said_with_what_is_missing() {
        let (mut replication, now) = (of(SendWhat::Every), Timestamp::now());
        assert!([10, 20, 30].into_iter().all(|step| replication.verified(step, None, false)));
        let text = replication.text(30, now);
        assert!(text.ends_with("at s3://b/j; 3 of 3 snapshots of this session are not replicated"), "{text}");
        replication.found(5, now);
        assert!(replication.text(30, now).starts_with("step 30 is verified here; s3://b/j has step 5, 0s old;"));
        replication.committed(10, now);
        replication.committed(30, now);
        let text = replication.text(30, now);
        assert_eq!(
            text,
            "step 30 is verified here and at s3://b/j; 1 of 3 snapshots of this session is not replicated"
        );
        assert!(replication.text(40, now).starts_with("step 40 is verified here; s3://b/j has step 30, 0s old;"));
    }

    #[test]
    fn what_is_sent_is_every_one_the_best_or_the_last() {
        let sent = |send, all: [(Option<f64>, bool); 4]| {
            let mut replication = of(send);
            all.map(|(loss, last)| replication.verified(1, loss, last))
        };
        let all = [(Some(2.0), false), (Some(3.0), false), (Some(1.0), false), (None, true)];
        assert_eq!(sent(SendWhat::Every, all), [true; 4]);
        assert_eq!(sent(SendWhat::Best, all), [true, false, true, true]);
        assert_eq!(sent(SendWhat::Final, all), [false, false, false, true]);
        // A session that ends right after a snapshot takes no other one.
        let mut replication = of(SendWhat::Final);
        assert!(!replication.verified(7, None, false));
        assert!(replication.owes(7) && !replication.owes(7) && !replication.owes(5));
    }
}
