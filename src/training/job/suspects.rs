//! Snapshots of many ranks that may hold an error: those since all ranks were last found to hold the same state.
//!
//! Invariant: while the training runs, a suspect is neither read back nor rotated for nor replicated; what the ranks
//! disagreed about is never gone on from. Deliberately not here: comparing (the worker).

use tracing::{info, warn};

use super::committed::CommittedSnapshot;
use super::events::JobAction;
use super::machine::JobMachine;
use crate::session::clock::ClockReading;
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::StateDispute;
use ckptd_core::store::layout;
use ckptd_core::text::counted;
use ckptd_history::record::HistoryEvent;

impl JobMachine {
    /// Has a snapshot read back, unless what it holds is not sure yet.
    pub(super) fn judge(&mut self, snapshot: CommittedSnapshot) {
        if self.suspects.agreed.is_some_and(|agreed| snapshot.step > agreed) {
            return self.suspects.held.push(snapshot);
        }
        let id = snapshot.id.clone();
        self.unverified.push(snapshot);
        self.act(JobAction::Verify { id });
    }

    /// All ranks hold the same state after `step` steps.
    pub(super) fn agreed(&mut self, step: u64) {
        self.suspects.agreed = Some(step);
        self.suspects.dispute.take_if(|dispute| dispute.step <= step);
        let (sure, held) = std::mem::take(&mut self.suspects.held).into_iter().partition(|held| held.step <= step);
        self.suspects.held = held;
        let sure: Vec<CommittedSnapshot> = sure;
        sure.into_iter().for_each(|snapshot| self.judge(snapshot));
    }

    /// They do not; the worker is about to fail.
    pub(super) fn disagreed(&mut self, dispute: StateDispute, what: &str, is_rank_zero_right: bool, now: ClockReading) {
        let step = dispute.step;
        let agreed = self.suspects.agreed.unwrap_or(0);
        warn!("after step {step} {what}; all ranks agreed after step {agreed}");
        self.progress.problem = Some(format!("after step {step} {what}"));
        let held = std::mem::take(&mut self.suspects.held);
        if is_rank_zero_right {
            self.suspects.agreed = None;
            return held.into_iter().for_each(|snapshot| self.judge(snapshot));
        }
        self.suspects.dispute = Some(dispute);
        let reason = format!("the ranks agreed after step {agreed}, and no more after step {step}: {what}");
        self.suspects.spoilt_since = Some(reason.clone());
        self.spoil_held(held, &reason, now);
    }

    fn spoil_held(&mut self, held: Vec<CommittedSnapshot>, reason: &str, now: ClockReading) {
        for snapshot in held {
            self.progress.counts.quarantined += 1;
            let (step, id) = (snapshot.step, snapshot.id.to_string());
            self.keep(HistoryEvent::SnapshotQuarantined { step, id, reason: reason.to_owned() }, now);
            self.spoil(snapshot.id, reason.to_owned());
        }
    }

    /// The worker is gone: what it had no time to compare is taken as it is, unless it had found that ranks differ.
    pub(super) fn release_suspects(&mut self, now: ClockReading) {
        self.suspects.agreed = None;
        let held = std::mem::take(&mut self.suspects.held);
        if let Some(reason) = self.suspects.spoilt_since.take() {
            return self.spoil_held(held, &reason, now);
        }
        if let Some(newest) = held.iter().map(|snapshot| snapshot.step).max() {
            let (count, step) = (counted(held.len() as u64, "snapshot"), newest);
            info!("{count} up to step {step} could not be compared among the ranks any more");
        }
        held.into_iter().for_each(|snapshot| self.judge(snapshot));
    }

    /// A snapshot that cannot be gone on from.
    pub(super) fn spoil(&mut self, id: SnapshotId, reason: String) {
        self.suspects.spoiled.push((id, reason));
    }

    /// Nobody is to go on from it later either.
    pub(super) fn set_aside_spoiled(&mut self) {
        let spoiled = self.take_spoiled();
        if !spoiled.is_empty() {
            self.act(JobAction::SetAside { spoiled });
        }
    }

    /// What goes to quarantine before the next snapshot is chosen.
    pub(super) fn take_spoiled(&mut self) -> Vec<(SnapshotId, String)> {
        std::mem::take(&mut self.suspects.spoiled)
    }

    /// Snapshots of later steps are not to be judged yet.
    pub fn sure_up_to(&self) -> u64 {
        self.suspects.agreed.unwrap_or(u64::MAX)
    }

    /// A snapshot that the worker could not load.
    pub(super) fn spoil_unloadable(&mut self, id: SnapshotId, what: String, now: ClockReading) {
        warn!(%id, "{id} cannot be loaded and goes to quarantine: {what}");
        self.progress.counts.quarantined += 1;
        let step = layout::step_of(&id).unwrap_or(0);
        self.keep(HistoryEvent::SnapshotQuarantined { step, id: id.to_string(), reason: what.clone() }, now);
        self.spoil(id, format!("the worker could not load it: {what}"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::daemon::signals::DaemonSignal;
    use crate::training::job::bench::{Bench, committed, exited, verified};
    use crate::training::job::events::JobEvent;
    use ckptd_core::protocol::{AgentCommand, RankProgress, WorkerEvent, WorkerFailure};

    fn verifies(actions: &[JobAction]) -> Vec<String> {
        let ids = actions.iter().filter_map(|action| match action {
            JobAction::Verify { id } => Some(id.to_string()),
            _ => None,
        });
        ids.collect()
    }

    fn agreed(step: u64) -> WorkerEvent {
        WorkerEvent::Agreed { step }
    }

    fn disagreed(step: u64, is_rank_zero_right: bool) -> WorkerEvent {
        let dispute = StateDispute { step, hashes: vec!["a".into(), "b".into()] };
        WorkerEvent::Disagreed { dispute, what: "they differ".into(), is_rank_zero_right }
    }

    fn failed() -> WorkerEvent {
        WorkerEvent::Failed { failure: WorkerFailure::Other, what: "they differ".into() }
    }

    #[test]
    fn a_snapshot_of_many_ranks_is_read_back_only_when_they_have_agreed_since() {
        let mut bench = Bench::training("", 0);
        assert_eq!(verifies(bench.say(committed(1))), ["step-1"], "of a worker that does not compare");
        bench.on(verified(1));
        bench.say(agreed(1));
        assert!(verifies(bench.say(committed(3))).is_empty());
        assert!(verifies(bench.say(committed(5))).is_empty());
        assert_eq!(bench.job.sure_up_to(), 1);
        assert_eq!(verifies(bench.say(agreed(4))), ["step-3"]);
        // It is gone, and the newest state is what there is.
        assert_eq!(verifies(bench.on(exited(1))), ["step-5"]);
        assert_eq!(bench.job.sure_up_to(), u64::MAX);
    }

    #[test]
    fn what_ranks_disagreed_about_is_set_aside_and_computed_again() {
        let mut bench = Bench::training("", 0);
        bench.say(agreed(2));
        bench.say(committed(3));
        bench.say(disagreed(4, false));
        bench.say(failed());
        let actions = bench.on(exited(1));
        let [JobAction::Choose { discard }] = actions else { panic!("{actions:?}") };
        assert!(matches!(discard.as_slice(), [(id, why)] if *id == "step-3" && why.contains("agreed after step 2")));
        let start = bench.restarted(0);
        let AgentCommand::Start(start) = start else { panic!("{start:?}") };
        assert_eq!(start.dispute.unwrap().step, 4);
    }

    #[test]
    fn what_was_still_written_when_ranks_disagreed_is_set_aside_too() {
        let mut bench = Bench::training("", 0);
        bench.say(agreed(2));
        bench.say(disagreed(4, false));
        bench.say(committed(3));
        bench.say(failed());
        let actions = bench.on(exited(1));
        let [JobAction::Choose { discard }] = actions else { panic!("{actions:?}") };
        assert!(matches!(discard.as_slice(), [(id, _)] if *id == "step-3"), "{discard:?}");
    }

    #[test]
    fn what_ranks_disagreed_about_is_set_aside_where_the_session_ends_before_a_restart() {
        let mut bench = Bench::training("", 0);
        bench.say(agreed(2));
        bench.say(committed(3));
        bench.say(disagreed(4, false));
        bench.on(JobEvent::Signal(DaemonSignal::Terminate));
        let actions = bench.on(exited(1));
        let set_aside = actions.iter().find_map(|action| match action {
            JobAction::SetAside { spoiled } => Some(spoiled),
            _ => None,
        });
        assert!(matches!(set_aside.map(Vec::as_slice), Some([(id, _)]) if *id == "step-3"), "{actions:?}");
    }

    #[test]
    fn what_rank_0_saved_stands_where_most_of_them_hold_the_same() {
        let mut bench = Bench::training("", 0);
        bench.say(agreed(2));
        bench.say(committed(3));
        assert_eq!(verifies(bench.say(disagreed(4, true))), ["step-3"]);
        bench.say(failed());
        let actions = bench.on(exited(1));
        assert!(matches!(actions, [JobAction::Choose { discard }] if discard.is_empty()), "{actions:?}");
    }

    #[test]
    fn that_ranks_are_somewhere_is_no_sign_of_life() {
        let mut bench = Bench::training("[worker]\nhang_timeout = \"20s\"\n", 0);
        let ranks = |step| [0, 1].map(|rank| RankProgress { rank, step, micro_batch: 0, silent_ms: 1.0, lag_ms: None });
        let mut is_killed = false;
        for _ in 0..25 {
            bench.pass(Duration::from_secs(1));
            bench.say(WorkerEvent::Ranks { ranks: ranks(0).to_vec() });
            is_killed |= bench.on(JobEvent::Tick).iter().any(|action| matches!(action, JobAction::Kill));
        }
        assert!(is_killed);
        assert_eq!(bench.job.progress().ranks.as_ref().unwrap().count, 2);
    }
}
