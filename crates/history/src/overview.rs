//! A history as a picture or a page needs it: the curve, what was lost, the sessions, the snapshots.
//!
//! Invariant: the curve is the training's alone and its steps only grow; what a resume cut off is told beside it. What
//! it takes does not grow with the training, but for its sessions and snapshots.

use std::collections::BTreeMap;

use ckptd_core::error::Result;

use crate::bucket::{self, Bucket};
use crate::reader::TrainingHistory;
use crate::record::{HistoryEvent, TimedEvent};

/// All that is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryOverview {
    /// The training's steps.
    pub curve: Vec<Bucket>,
    /// What was trained and lost, branch by branch.
    pub lost: Vec<LostBranch>,
    /// The training's evaluations: step and validation loss.
    pub evaluations: Vec<EvaluationPoint>,
    /// The snapshots, in the order in which they were written.
    pub snapshots: Vec<SnapshotMark>,
    /// The sessions, oldest first.
    pub sessions: Vec<SessionBand>,
    /// Steps of the whole training, as the last session said.
    pub total_steps: Option<u64>,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// Steps that a resume from an earlier one cut off.
#[derive(Clone, Debug, PartialEq)]
pub struct LostBranch {
    /// What they are like.
    pub buckets: Vec<Bucket>,
}

impl LostBranch {
    /// Its first step and its last one.
    pub fn steps(&self) -> Option<(u64, u64)> {
        Some((self.buckets.first()?.first_step, self.buckets.last()?.last_step))
    }
}

/// An evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluationPoint {
    /// Steps before it.
    pub step: u64,
    /// When.
    pub at_ms: i64,
    /// Mean loss on the validation share, where it is finite.
    pub val_loss: Option<f64>,
}

/// How far a snapshot came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SnapshotFate {
    /// There is none.
    Failed,
    /// It is written and was not read back.
    Committed,
    /// It was read back.
    Verified,
    /// It is not what was written.
    Quarantined,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotMark {
    /// Steps that its state has.
    pub step: u64,
    /// When that was known last.
    pub at_ms: i64,
    /// How far it came.
    pub fate: SnapshotFate,
    /// It has the lowest validation loss of all.
    pub is_best: bool,
    /// It is at the job's remote.
    pub is_replicated: bool,
    /// Its values are finite.
    pub is_healthy: bool,
    /// A resume from an earlier step made it void.
    pub is_abandoned: bool,
    /// Its validation loss, where it has one.
    pub val_loss: Option<f64>,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionBand {
    /// When it began.
    pub began_ms: i64,
    /// When it was heard of last.
    pub seen_ms: i64,
    /// The step that it went on from first; `None`: it went on from none.
    pub from_step: Option<u64>,
    /// The furthest step that it completed.
    pub step: u64,
    /// Why it ended; `None`: it was killed, or is under way.
    pub why: Option<String>,
    /// How often its worker failed.
    pub failures: u32,
    /// Steps that it trained and that were lost.
    pub lost_steps: u64,
}

impl HistoryOverview {
    /// Of `history`, its curve in at most `points` buckets.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of(history: &TrainingHistory, points: usize) -> Result<HistoryOverview> {
        let mut overview = HistoryOverview { problems: history.problems.clone(), ..HistoryOverview::default() };
        let (mut curve, mut last_void): (Vec<Bucket>, Option<u64>) = (Vec::new(), None);
        let (mut lost, mut problems) = (Vec::new(), Vec::new());
        let mut take = |item: crate::reader::BucketItem| {
            if !item.is_abandoned {
                curve.push(item.bucket);
                last_void = None;
                return;
            }
            let last_step = item.bucket.last_step;
            match lost.last_mut() {
                Some(LostBranch { buckets }) if last_void.is_some_and(|last| last < item.bucket.first_step) => {
                    buckets.push(item.bucket);
                }
                _ => lost.push(LostBranch { buckets: vec![item.bucket] }),
            }
            last_void = Some(last_step);
        };
        history.each_bucket(&mut take, &mut |problem| problems.push(problem))?;
        overview.problems.extend(problems);
        overview.curve = bucket::at_most(&curve, points);
        for branch in &mut lost {
            branch.buckets = bucket::at_most(&branch.buckets, points);
        }
        overview.lost = lost;
        let mut snapshots = BTreeMap::new();
        for (n, (event, is_void)) in history.events().enumerate() {
            overview.take_session(event);
            overview.take_state(event, is_void, &mut snapshots, n);
        }
        overview.settle(snapshots);
        Ok(overview)
    }

    /// Where each session's steps are that are the training's: those up to where a later one went on. `None`: it went
    /// on from no step.
    pub fn spans(&self) -> Vec<Option<(u64, u64)>> {
        let mut until = self.curve.last().map_or(0, |bucket| bucket.last_step);
        let mut spans: Vec<Option<(u64, u64)>> = Vec::new();
        for session in self.sessions.iter().rev() {
            spans.push(session.from_step.map(|from| (from.min(until), until)));
            until = until.min(session.from_step.unwrap_or(until));
        }
        spans.reverse();
        spans
    }

    /// Steps that were trained and lost.
    pub fn lost_steps(&self) -> u64 {
        self.lost.iter().flat_map(|branch| &branch.buckets).map(|bucket| bucket.rows).sum()
    }

    fn take_session(&mut self, timed: &TimedEvent) {
        if let HistoryEvent::SessionStarted { total_steps, .. } = &timed.event {
            self.total_steps = Some(*total_steps).filter(|total| *total > 0);
            let (began_ms, seen_ms) = (timed.at_ms, timed.at_ms);
            return self.sessions.push(SessionBand { began_ms, seen_ms, ..SessionBand::default() });
        }
        let Some(session) = self.sessions.last_mut() else { return };
        session.seen_ms = session.seen_ms.max(timed.at_ms);
        match &timed.event {
            HistoryEvent::Resumed { step, .. } => {
                session.from_step.get_or_insert(*step);
                session.step = session.step.max(*step);
            }
            HistoryEvent::WorkerFailed { .. } => session.failures += 1,
            HistoryEvent::SessionEnded { step, why, .. } => {
                session.step = session.step.max(*step);
                session.why = Some(why.clone());
            }
            event => session.step = session.step.max(event.step().unwrap_or(0)),
        }
    }

    fn take_state(
        &mut self,
        timed: &TimedEvent,
        is_abandoned: bool,
        snapshots: &mut BTreeMap<(bool, u64), (usize, SnapshotMark)>,
        n: usize,
    ) {
        let at_ms = timed.at_ms;
        let (step, fate) = match &timed.event {
            HistoryEvent::Evaluated { step, val_loss, .. } => {
                if !is_abandoned {
                    self.evaluations.push(EvaluationPoint { step: *step, at_ms, val_loss: *val_loss });
                }
                return;
            }
            HistoryEvent::SnapshotFailed { step, .. } => (*step, SnapshotFate::Failed),
            HistoryEvent::SnapshotCommitted { step, .. } => (*step, SnapshotFate::Committed),
            HistoryEvent::SnapshotVerified { step, .. } => (*step, SnapshotFate::Verified),
            HistoryEvent::SnapshotQuarantined { step, .. } => (*step, SnapshotFate::Quarantined),
            HistoryEvent::Replicated { step, .. } => (*step, SnapshotFate::Verified),
            _ => return,
        };
        let fresh = SnapshotMark {
            step,
            at_ms,
            fate,
            is_best: false,
            is_replicated: false,
            is_healthy: true,
            is_abandoned,
            val_loss: None,
        };
        // What is quarantined was committed before, and may be cut off by now.
        let is_known = |is_abandoned| snapshots.contains_key(&(is_abandoned, step));
        let is_abandoned = is_abandoned || (fate == SnapshotFate::Quarantined && !is_known(false) && is_known(true));
        let (_, mark) = snapshots.entry((is_abandoned, step)).or_insert((n, fresh));
        (mark.fate, mark.at_ms) = (mark.fate.max(fate), at_ms);
        match &timed.event {
            // The same step was saved again.
            HistoryEvent::SnapshotCommitted { .. } => mark.fate = fate,
            HistoryEvent::SnapshotVerified { healthy, val_loss, .. } => {
                (mark.is_healthy, mark.val_loss) = (*healthy, *val_loss);
            }
            HistoryEvent::Replicated { .. } => mark.is_replicated = true,
            _ => {}
        }
    }

    /// What only the whole says: the best snapshot, how far each session came.
    fn settle(&mut self, snapshots: BTreeMap<(bool, u64), (usize, SnapshotMark)>) {
        let mut marks: Vec<(usize, SnapshotMark)> = snapshots.into_values().collect();
        marks.sort_by_key(|(n, _)| *n);
        self.snapshots = marks.into_iter().map(|(_, mark)| mark).collect();
        let loss = |mark: &SnapshotMark| mark.val_loss.filter(|loss| loss.is_finite() && !mark.is_abandoned);
        let lowest = self.snapshots.iter().filter_map(loss).min_by(f64::total_cmp);
        if let Some(best) = self.snapshots.iter_mut().find(|mark| lowest.is_some() && loss(mark) == lowest) {
            best.is_best = true;
        }
        self.evaluations.sort_by_key(|point| point.step);
        self.evaluations.dedup_by_key(|point| point.step);
        // Steps are not events: a session went as far as the steps that were heard of in its time.
        let lost = self.lost.iter().flat_map(|branch| &branch.buckets).map(|bucket| (bucket, true));
        for (bucket, is_lost) in self.curve.iter().map(|bucket| (bucket, false)).chain(lost) {
            let next = self.sessions.partition_point(|session| session.began_ms <= bucket.last_ms);
            if let Some(session) = next.checked_sub(1).and_then(|n| self.sessions.get_mut(n)) {
                session.step = session.step.max(bucket.last_step);
                session.seen_ms = session.seen_ms.max(bucket.last_ms);
                session.lost_steps += if is_lost { bucket.rows } else { 0 };
            }
        }
    }
}
