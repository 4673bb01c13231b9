//! A marker's way, from a snapshot that was checked at its destination to what is known of the marker.
//!
//! Invariant: a marker is written under the epoch that its name says, by the owner of that epoch, and counts as written
//! only where the store said `Done` or the writer's nonce was read there.

use std::time::Duration;

use super::events::{Committing, LeaseAction, LeaseNews, WriteOutcome};
use super::machine::LeaseMachine;
use super::phase::LeasePhase;
use crate::layout::MarkerName;
use crate::records::Nonce;

impl<V: Clone + PartialEq> LeaseMachine<V> {
    /// Wants the next marker, where one may be written.
    pub(super) fn commit_next(&mut self, now: Duration, actions: &mut Vec<LeaseAction<V>>) {
        if !self.may_write(now) {
            return;
        }
        let LeasePhase::Owning(own) = &self.phase else { return };
        match &mut self.committing {
            Some(Committing { again: None, .. }) => {}
            Some(Committing { again: Some(at), .. }) if now < *at => {}
            Some(committing) if committing.marker.epoch == own.record.epoch => {
                committing.again = None;
                actions.push(LeaseAction::Commit(committing.marker.clone()));
            }
            Some(_) => {
                let old = self.committing.take().map(|committing| committing.marker);
                actions.extend(old.map(|marker| LeaseAction::Tell(LeaseNews::NotCommitted(marker))));
            }
            None => {
                let Some(marker) = self.checked.pop_first() else { return };
                if marker.epoch != own.record.epoch {
                    // It was checked under an ownership that is over: its name would say what is not so.
                    actions.push(LeaseAction::Tell(LeaseNews::NotCommitted(marker)));
                    return;
                }
                self.committing = Some(Committing { marker: marker.clone(), again: None });
                actions.push(LeaseAction::Commit(marker));
            }
        }
    }

    fn awaits_answer_on(&self, marker: &MarkerName) -> bool {
        self.committing.as_ref().is_some_and(|committing| committing.marker == *marker && committing.again.is_none())
    }

    pub(super) fn marker_written(
        &mut self,
        marker: MarkerName,
        outcome: &WriteOutcome<()>,
        actions: &mut Vec<LeaseAction<V>>,
    ) {
        if !self.awaits_answer_on(&marker) {
            return;
        }
        match outcome {
            WriteOutcome::Done(()) => {
                self.committing = None;
                actions.push(LeaseAction::Tell(LeaseNews::Committed(marker)));
            }
            WriteOutcome::Refused | WriteOutcome::Unknown => actions.push(LeaseAction::ReadMarker(marker)),
        }
    }

    pub(super) fn marker_read(
        &mut self,
        marker: MarkerName,
        found: Option<&Nonce>,
        now: Duration,
        actions: &mut Vec<LeaseAction<V>>,
    ) {
        if !self.awaits_answer_on(&marker) {
            return;
        }
        match found {
            None => self.try_again(&marker, now),
            Some(nonce) => {
                self.committing = None;
                let is_mine = *nonce == self.settings.nonce;
                let news = if is_mine { LeaseNews::Committed(marker) } else { LeaseNews::NotCommitted(marker) };
                actions.push(LeaseAction::Tell(news));
            }
        }
    }

    pub(super) fn try_again(&mut self, marker: &MarkerName, now: Duration) {
        if self.awaits_answer_on(marker) {
            let again = Some(now + self.settings.ttl / 16);
            self.committing = Some(Committing { marker: marker.clone(), again });
        }
    }

    pub(super) fn give_up_checked(&mut self, actions: &mut Vec<LeaseAction<V>>) {
        let waiting = std::mem::take(&mut self.checked).into_iter();
        let waiting = waiting.chain(self.committing.take().map(|committing| committing.marker));
        actions.extend(waiting.map(|marker| LeaseAction::Tell(LeaseNews::NotCommitted(marker))));
    }
}
