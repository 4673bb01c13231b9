//! The decisions: when a job is free, who owns it, when a marker may be written.
//!
//! Invariant: a process believes that it owns an epoch only after the store said `Done`, or after it read its own nonce
//! there. Nothing else that a store says of a write is believed: what was refused or failed is read back. A marker is
//! written only for a snapshot that was checked at its destination, by an owner whose lease was renewed within half its
//! time. Expiry is what a challenger sees on its own clock: a lease that does not change.

use std::collections::BTreeSet;
use std::time::Duration;

use super::events::{Committing, LeaseAction, LeaseEvent, LeaseNews, SeenLease, WriteOutcome};
use super::phase::{LeasePhase, LeaseWrite, Ownership, Watch};
use crate::holder::Holder;
use crate::layout::MarkerName;
use crate::records::{LeaseRecord, Nonce};

/// A lease whose owner gives it longer than this is free after so long all the same.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// What an ownership is made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseSettings {
    /// After so long without a sign of life the job is free.
    pub ttl: Duration,
    /// This process's own; no other process has it.
    pub nonce: Nonce,
    /// This process.
    pub holder: Holder,
    /// A person says that the owner is gone, or shall lose the job.
    pub take_over: bool,
}

/// The state of one process beside one job. `V` is what names a content of the lease in a swap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseMachine<V> {
    pub(super) settings: LeaseSettings,
    pub(super) phase: LeasePhase<V>,
    /// Snapshots that are checked and not committed.
    pub(super) checked: BTreeSet<MarkerName>,
    /// The one whose marker is being written or read back.
    pub(super) committing: Option<Committing>,
    /// The newest epoch that was seen anywhere.
    newest_epoch: u64,
    leaving: bool,
}

impl<V: Clone + PartialEq> LeaseMachine<V> {
    /// One that has seen nothing yet; it wants something at the first [`LeaseEvent::Tick`].
    pub fn new(settings: LeaseSettings, now: Duration) -> LeaseMachine<V> {
        LeaseMachine {
            settings,
            phase: LeasePhase::Watching(Watch::at(now)),
            checked: BTreeSet::new(),
            committing: None,
            newest_epoch: 0,
            leaving: false,
        }
    }

    /// The epoch that this process owns, as far as it knows.
    pub fn epoch(&self) -> Option<u64> {
        self.owned().map(|own| own.record.epoch)
    }

    /// Whether it owns the job, and showed it within half the time: markers may be written, and what retention wants.
    pub fn may_write(&self, now: Duration) -> bool {
        self.write_until().is_some_and(|until| now < until)
    }

    /// Until when it may, as far as is known now.
    pub fn write_until(&self) -> Option<Duration> {
        self.owned().map(|own| own.confirmed + self.settings.ttl / 2)
    }

    /// What this process wrote of its ownership last.
    pub fn record(&self) -> Option<&LeaseRecord> {
        self.owned().map(|own| &own.record)
    }

    /// Whether a marker waits to be written, or is on its way.
    pub fn is_committing(&self) -> bool {
        self.committing.is_some() || !self.checked.is_empty()
    }

    fn owned(&self) -> Option<&Ownership<V>> {
        match &self.phase {
            LeasePhase::Owning(own) => Some(own),
            _ => None,
        }
    }

    /// Whether it will never own the job again.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, LeasePhase::Lost | LeasePhase::Left)
    }

    /// When it wants to be asked again at the latest.
    pub fn wake_at(&self) -> Option<Duration> {
        let commit = self.committing.as_ref().and_then(|committing| committing.again);
        let lease = match &self.phase {
            LeasePhase::Watching(watch) => (watch.asked.is_none() && !watch.preparing).then_some(watch.due),
            LeasePhase::Owning(own) => {
                let write = if self.leaving { own.due.min(own.not_before) } else { own.due };
                let stale = (!own.suspended).then_some(own.confirmed + self.settings.ttl / 2);
                [own.writing.is_none().then_some(write), stale].into_iter().flatten().min()
            }
            _ => None,
        };
        [commit, lease].into_iter().flatten().min()
    }

    /// What `event` leads to, at `now` of a clock that nobody sets.
    pub fn on(&mut self, event: LeaseEvent<V>, now: Duration) -> Vec<LeaseAction<V>> {
        let mut actions = Vec::new();
        match event {
            LeaseEvent::Read(found) => self.read(found, now, &mut actions),
            LeaseEvent::NotRead => self.not_read(now),
            LeaseEvent::Prepared { base, newest_epoch } => {
                self.newest_epoch = self.newest_epoch.max(newest_epoch);
                if let LeasePhase::Watching(watch) = &mut self.phase {
                    (watch.preparing, watch.base, watch.due) = (false, Some(base), now);
                }
            }
            LeaseEvent::Written(outcome) => self.written(outcome, now, &mut actions),
            LeaseEvent::Checked(marker) => {
                self.checked.insert(marker);
            }
            LeaseEvent::MarkerWritten(marker, outcome) => self.marker_written(marker, &outcome, &mut actions),
            LeaseEvent::MarkerRead(marker, found) => self.marker_read(marker, found.as_ref(), now, &mut actions),
            LeaseEvent::MarkerNotRead(marker) => self.try_again(&marker, now),
            LeaseEvent::Leave => self.leaving = true,
            LeaseEvent::Tick => {}
        }
        self.go_on(now, &mut actions);
        actions
    }

    /// What is due now, whatever happened.
    fn go_on(&mut self, now: Duration, actions: &mut Vec<LeaseAction<V>>) {
        self.commit_next(now, actions);
        let (ttl, leaving) = (self.settings.ttl, self.leaving);
        match &mut self.phase {
            LeasePhase::Watching(_) if leaving => self.leave(actions),
            LeasePhase::Watching(watch) if watch.asked.is_none() && !watch.preparing && now >= watch.due => {
                watch.asked = Some(now);
                actions.push(LeaseAction::Read);
            }
            LeasePhase::Owning(own) => {
                let is_fresh = own.is_fresh(ttl, now);
                if is_fresh == own.suspended {
                    own.suspended = !is_fresh;
                    actions.push(LeaseAction::Tell(if is_fresh { LeaseNews::Resumed } else { LeaseNews::Suspended }));
                }
                if own.writing.is_some() || own.is_read_back {
                    return;
                }
                let releases = leaving && self.checked.is_empty() && self.committing.is_none();
                if !releases && now < own.due || releases && now < own.not_before {
                    return;
                }
                let counter = own.record.counter.saturating_add(1);
                own.writing = Some(LeaseWrite { counter, sent: now, releases });
                let (record, version) =
                    (LeaseRecord { counter, released: releases, ..own.record.clone() }, &own.version);
                actions.push(if releases {
                    LeaseAction::Release(record, version.clone())
                } else {
                    LeaseAction::Renew(record, version.clone())
                });
            }
            LeasePhase::Lost | LeasePhase::Left => self.give_up_checked(actions),
            _ => {}
        }
    }

    fn leave(&mut self, actions: &mut Vec<LeaseAction<V>>) {
        self.phase = LeasePhase::Left;
        self.give_up_checked(actions);
        actions.push(LeaseAction::Tell(LeaseNews::Left));
    }

    fn read(&mut self, found: Option<SeenLease<V>>, now: Duration, actions: &mut Vec<LeaseAction<V>>) {
        self.newest_epoch = found.as_ref().map_or(0, |seen| seen.record.epoch).max(self.newest_epoch);
        let is_mine = |record: &LeaseRecord| {
            found.as_ref().filter(|seen| seen.record.nonce == self.settings.nonce && seen.record.epoch == record.epoch)
        };
        match &mut self.phase {
            LeasePhase::Watching(watch) => {
                let asked = watch.asked.take().unwrap_or(now);
                self.watched(found, asked, now, actions);
            }
            LeasePhase::Claiming { record, sent, is_read_back: true } => match is_mine(record) {
                Some(seen) => {
                    let (sent, seen) = (*sent, seen.clone());
                    self.own(seen.record, seen.version, sent, actions);
                }
                // Not there, or not yet: what lands late is met by the next look.
                None => {
                    self.phase = LeasePhase::Watching(Watch { seen: found.map(|seen| (seen, now)), ..Watch::at(now) })
                }
            },
            LeasePhase::Owning(own) if own.is_read_back => {
                own.is_read_back = false;
                let Some(write) = own.writing.take() else { return };
                match is_mine(&own.record) {
                    Some(seen) if seen.record.released => self.leave(actions),
                    Some(seen) => {
                        if seen.record.counter >= write.counter {
                            own.confirmed = write.sent;
                        }
                        (own.record.counter, own.version) = (seen.record.counter, seen.version.clone());
                        own.due = own.next_due(self.settings.ttl, now);
                        own.not_before = now + self.settings.ttl / 16;
                    }
                    None => self.taken(found, now, actions),
                }
            }
            _ => {}
        }
    }

    /// An owner finds something else in the place of its lease.
    fn taken(&mut self, found: Option<SeenLease<V>>, now: Duration, actions: &mut Vec<LeaseAction<V>>) {
        match found {
            Some(seen) => {
                self.phase = LeasePhase::Lost;
                self.give_up_checked(actions);
                actions.push(LeaseAction::Tell(LeaseNews::Lost(seen.record.holder)));
            }
            // Somebody emptied the store: what is here goes there again, under a new epoch.
            None => {
                // Its own epoch was another history's.
                self.newest_epoch = self.epoch().unwrap_or(0).max(self.newest_epoch);
                self.phase = LeasePhase::Watching(Watch::at(now));
                actions.push(LeaseAction::Tell(LeaseNews::Gone));
            }
        }
    }

    fn not_read(&mut self, now: Duration) {
        let pause = self.settings.ttl / 16;
        match &mut self.phase {
            LeasePhase::Watching(watch) => (watch.asked, watch.preparing, watch.due) = (None, false, now + pause),
            // Not known to be ours: look again.
            LeasePhase::Claiming { is_read_back: true, .. } => {
                self.phase = LeasePhase::Watching(Watch { due: now + pause, ..Watch::at(now) });
            }
            LeasePhase::Owning(own) if own.is_read_back => {
                (own.writing, own.is_read_back) = (None, false);
                (own.due, own.not_before) = (now + pause, now + pause);
            }
            _ => {}
        }
    }

    /// A challenger has looked.
    fn watched(
        &mut self,
        found: Option<SeenLease<V>>,
        asked: Duration,
        now: Duration,
        actions: &mut Vec<LeaseAction<V>>,
    ) {
        let LeasePhase::Watching(watch) = &mut self.phase else { return };
        let same = |before: &SeenLease<V>, seen: &SeenLease<V>| before.record == seen.record;
        // What did not change between the answer to an earlier read and the sending of this one stood still.
        let since = match (&watch.seen, &found) {
            (Some((before, since)), Some(seen)) if same(before, seen) => *since,
            _ => now,
        };
        let is_own = found.as_ref().is_some_and(|seen| seen.record.nonce == self.settings.nonce);
        let ttl = found.as_ref().map_or(self.settings.ttl, |seen| {
            self.settings.ttl.max(Duration::from_millis(seen.record.ttl_ms).min(MAX_TTL))
        });
        let is_free = found.as_ref().is_none_or(|seen| {
            // A claim of this process's own that landed late: nobody else's, so it may be claimed anew.
            is_own || seen.record.released || seen.holder_is_gone || asked >= since + ttl || self.settings.take_over
        });
        watch.due = now + self.settings.ttl / 4;
        if let (Some(seen), false, false) = (&found, is_free, watch.told) {
            watch.told = true;
            actions.push(LeaseAction::Tell(LeaseNews::Waiting(seen.record.holder.clone(), ttl)));
        }
        watch.seen = found.map(|seen| (seen, since));
        match (is_free, watch.base.take()) {
            (false, _) => {}
            (true, None) => {
                watch.preparing = true;
                actions.push(LeaseAction::Prepare);
            }
            (true, Some(base)) => self.claim(base, now, actions),
        }
    }

    fn claim(&mut self, base: u64, now: Duration, actions: &mut Vec<LeaseAction<V>>) {
        let LeasePhase::Watching(watch) = &self.phase else { return };
        let version = watch.seen.as_ref().map(|(seen, _)| seen.version.clone());
        let record = LeaseRecord {
            epoch: self.newest_epoch.saturating_add(1),
            nonce: self.settings.nonce.clone(),
            counter: 0,
            base,
            released: false,
            ttl_ms: u64::try_from(self.settings.ttl.as_millis()).unwrap_or(u64::MAX),
            holder: self.settings.holder.clone(),
        };
        self.phase = LeasePhase::Claiming { record: record.clone(), sent: now, is_read_back: false };
        actions.push(LeaseAction::Claim(record, version));
    }

    fn own(&mut self, record: LeaseRecord, version: V, sent: Duration, actions: &mut Vec<LeaseAction<V>>) {
        actions.push(LeaseAction::Tell(LeaseNews::Owned { epoch: record.epoch }));
        let due = sent + self.settings.ttl / 4;
        let (writing, is_read_back, suspended) = (None, false, false);
        self.phase = LeasePhase::Owning(Ownership {
            record,
            version,
            confirmed: sent,
            writing,
            is_read_back,
            due,
            not_before: sent,
            suspended,
        });
    }

    fn written(&mut self, outcome: WriteOutcome<V>, now: Duration, actions: &mut Vec<LeaseAction<V>>) {
        match (&mut self.phase, outcome) {
            (LeasePhase::Claiming { record, sent, is_read_back: false }, WriteOutcome::Done(version)) => {
                let (record, sent) = (record.clone(), *sent);
                self.own(record, version, sent, actions);
            }
            (LeasePhase::Claiming { is_read_back: back @ false, .. }, _) => {
                *back = true;
                actions.push(LeaseAction::Read);
            }
            (LeasePhase::Owning(own), WriteOutcome::Done(version)) if !own.is_read_back => {
                let Some(write) = own.writing.take() else { return };
                (own.record.counter, own.version, own.confirmed) = (write.counter, version, write.sent);
                own.due = own.next_due(self.settings.ttl, now);
                if write.releases {
                    self.leave(actions);
                }
            }
            (LeasePhase::Owning(own), _) if own.writing.is_some() && !own.is_read_back => {
                own.is_read_back = true;
                actions.push(LeaseAction::Read);
            }
            _ => {}
        }
    }
}
