//! Which sessions a history has, and how much of each: what two histories of one training are compared by.
//!
//! Invariant: a session is written by one machine, in order, so that of two copies of it one is the beginning of the
//! other.

use std::collections::{BTreeMap, BTreeSet};

use ckptd_core::store::Store;

use crate::reader::TrainingHistory;
use crate::record::{HistoryEvent, HistoryRecord, TimedEvent};

/// How a session began: the training, and when. `None`: what came before the first one.
pub type SessionKey = Option<(String, i64)>;

/// Whether a record begins a session, and which.
pub fn begun_by(event: &TimedEvent) -> Option<SessionKey> {
    match &event.event {
        HistoryEvent::SessionStarted { run, .. } => Some(Some((run.clone(), event.at_ms))),
        _ => None,
    }
}

/// Whether an event is about the file that it stands in, which no other copy has.
pub fn is_of_file(event: &TimedEvent) -> bool {
    matches!(event.event, HistoryEvent::Torn { .. })
}

/// The sessions that a store knows.
#[derive(Debug, Default)]
pub struct KnownSessions {
    counts: BTreeMap<SessionKey, u64>,
    last: SessionKey,
    /// Something cannot be read, so that nothing is sure of what is known.
    has_problems: bool,
}

impl KnownSessions {
    /// Of the history of `store`.
    ///
    /// # Errors
    /// As [`TrainingHistory::read`].
    pub fn of(store: &Store) -> ckptd_core::Result<KnownSessions> {
        let history = TrainingHistory::read(store)?;
        let mut known = KnownSessions { has_problems: !history.problems.is_empty(), ..KnownSessions::default() };
        for part in history.parts() {
            let mut row = 0;
            for placed in &part.events {
                known.add(placed.row - row);
                row = placed.row;
                if let Some(key) = begun_by(&placed.event) {
                    known.last = key;
                }
                known.add(u64::from(!is_of_file(&placed.event)));
            }
            known.add(part.rows.saturating_sub(row));
        }
        Ok(known)
    }

    fn add(&mut self, items: u64) {
        if items > 0 {
            *self.counts.entry(self.last.clone()).or_default() += items;
        }
    }

    /// Whether it has anything.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && !self.has_problems
    }
}

/// What of a history that is read from its beginning another one lacks, and can take at its end.
#[derive(Debug)]
pub struct SessionFilter {
    known: KnownSessions,
    /// Sessions of the other one that have not been read here so far.
    unread: BTreeSet<(String, i64)>,
    /// The session at hand.
    at: SessionKey,
    /// Steps and events of the session at hand that are known, and that are yet to come.
    left: u64,
    /// Whether more of it is taken than what is known.
    takes: bool,
    /// Sessions that the other one lacks, and that began before some that only it has.
    left_behind: u64,
}

impl SessionFilter {
    /// Of what `known` lacks.
    pub fn new(known: KnownSessions) -> SessionFilter {
        let unread = known.counts.keys().flatten().cloned().collect();
        let mut filter = SessionFilter { known, unread, at: None, left: 0, takes: false, left_behind: 0 };
        filter.begin(None);
        filter
    }

    /// Sessions that were not taken: what began later stands at the end already, and would count as cut off.
    pub fn left_behind(&self) -> u64 {
        self.left_behind
    }

    fn begin(&mut self, key: SessionKey) {
        let known = self.known.counts.get(&key).copied();
        self.left = known.unwrap_or(0);
        // Behind another session nothing can be put in.
        let is_open = key == self.known.last && !self.known.has_problems;
        self.takes = known.is_none() || is_open;
        if let Some((run, began)) = &key {
            self.unread.remove(&(run.clone(), *began));
            if known.is_none() && self.unread.iter().any(|(_, other)| other > began) {
                self.left_behind += 1;
                self.takes = false;
            }
        }
        self.at = key;
    }

    /// Whether `record`, which comes next, is one that the other history lacks.
    pub fn lacks(&mut self, record: &HistoryRecord) -> bool {
        if let HistoryRecord::Event(event) = record {
            if is_of_file(event) {
                return false;
            }
            if let Some(key) = begun_by(event) {
                self.begin(key);
                if self.takes {
                    self.known.last = self.at.clone();
                }
            }
        }
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        if self.takes {
            *self.known.counts.entry(self.at.clone()).or_default() += 1;
        }
        self.takes
    }
}
