//! What has arrived from other ranks, and which of them are gone.
//!
//! Invariant: whoever waits here is woken by what it waits for, by a rank that is gone, or by the time. Deliberately
//! not here: sockets.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the cause of a failure may come after its effects.
const AFTERMATH: Duration = Duration::from_millis(1500);

/// How long a rank has for a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// What is known of the other ranks.
pub(super) struct Mailbox {
    state: Mutex<MailboxState>,
    news: Condvar,
}

/// What is known under the lock.
pub(super) struct MailboxState {
    /// Of each rank, the parts of collective calls in their order.
    pub parts: Vec<VecDeque<ArrivedPart>>,
    /// From rank 0: all parts of a collective call.
    pub answers: VecDeque<(u64, Vec<Vec<u8>>)>,
    pub keys: HashMap<Vec<u8>, Vec<u8>>,
    /// Of each rank: the capture that it holds, after how many steps, or why not.
    pub held: Vec<Option<(u64, u64, String)>>,
    /// Pieces of what ranks hold, by their numbers.
    pub pieces: HashMap<u64, Vec<u8>>,
    /// From rank 0: it takes a snapshot, for which all hold what they have.
    pub is_holding: bool,
    /// Of each rank.
    pub signs: Vec<SignOfLife>,
    /// The ranks that are gone, first things first.
    losses: Vec<RankLoss>,
}

/// A rank's part of a collective call.
pub(super) struct ArrivedPart {
    pub call: u64,
    pub bytes: Vec<u8>,
    pub at: Instant,
}

/// When a rank was heard last, and how far it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignOfLife {
    pub at: Instant,
    pub step: u64,
    pub micro_batch: u64,
}

/// A rank that cannot go on.
struct RankLoss {
    rank: usize,
    cause: LossCause,
}

/// Why a rank cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LossCause {
    /// Its connection ended without a word.
    Gone,
    /// It has said what went wrong with it.
    Failed(String),
    /// It has said that it lost another rank, which is the cause unless that one is well.
    LostAnother(String),
}

impl Mailbox {
    /// For `size` ranks.
    pub(super) fn new(size: usize) -> Mailbox {
        let sign = SignOfLife { at: Instant::now(), step: 0, micro_batch: 0 };
        let state = MailboxState {
            parts: (0..size).map(|_| VecDeque::new()).collect(),
            answers: VecDeque::new(),
            keys: HashMap::new(),
            held: vec![None; size],
            pieces: HashMap::new(),
            is_holding: false,
            signs: vec![sign; size],
            losses: Vec::new(),
        };
        Mailbox { state: Mutex::new(state), news: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, MailboxState> {
        // Every change under this lock leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When each rank was heard last, and how far it was.
    pub(super) fn signs(&self) -> Vec<SignOfLife> {
        self.lock().signs.clone()
    }

    /// Changes what is known, and wakes who waits.
    pub(super) fn tell(&self, change: impl FnOnce(&mut MailboxState)) {
        change(&mut self.lock());
        self.news.notify_all();
    }

    /// `rank` is gone, or cannot go on. What it said before it was gone counts.
    pub(super) fn lose(&self, rank: usize, cause: LossCause) {
        self.tell(|state| {
            let has_spoken = state.losses.iter().any(|loss| loss.rank == rank);
            if !(has_spoken && cause == LossCause::Gone) {
                state.losses.push(RankLoss { rank, cause });
            }
        });
    }

    /// [`Mailbox::wait_for`] that does not lose patience while rank 0 takes a snapshot, the last one perhaps: it gets
    /// on with nothing else then.
    pub(super) fn wait_beside_snapshots<T>(
        &self,
        patience: Duration,
        mut take: impl FnMut(&mut MailboxState) -> Option<T>,
    ) -> Option<T> {
        loop {
            let found = self.wait_for(patience, &mut take);
            if found.is_some() || !self.lock().is_holding {
                return found;
            }
        }
    }

    /// What `take` finds, as soon as it finds something; `None` when a rank is lost or `patience` is over before.
    pub(super) fn wait_for<T>(
        &self,
        patience: Duration,
        mut take: impl FnMut(&mut MailboxState) -> Option<T>,
    ) -> Option<T> {
        let by = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(found) = take(&mut state) {
                return Some(found);
            }
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() || !state.losses.is_empty() {
                return None;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Which rank is the cause of a call that failed, and why; waits a little, since causes come after effects. `None`
    /// where ranks have told of effects only, or nothing.
    pub(super) fn culprit(&self) -> Option<String> {
        let by = Instant::now() + AFTERMATH;
        let mut state = self.lock();
        loop {
            let first = state.losses.iter().find(|loss| !matches!(loss.cause, LossCause::LostAnother(_)));
            if let Some(loss) = first {
                return Some(told(loss, &state.signs[loss.rank]));
            }
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What a rank has told first of its own loss of another one.
    pub(super) fn effect(&self) -> Option<String> {
        let state = self.lock();
        state.losses.first().map(|loss| told(loss, &state.signs[loss.rank]))
    }

    /// Which of the `awaited` ranks holds up the others: the one that gives no sign of life after `ask`, or else the
    /// one that is behind. `None` where all of them are equal. Ranks that have told of their end are not meant.
    pub(super) fn laggard(&self, awaited: &[usize], ask: impl FnOnce()) -> Option<String> {
        let asked = Instant::now();
        ask();
        let ended: Vec<usize> = self.lock().losses.iter().map(|loss| loss.rank).collect();
        let awaited: Vec<usize> = awaited.iter().copied().filter(|rank| !ended.contains(rank)).collect();
        let silent = |state: &MailboxState| awaited.iter().copied().find(|&rank| state.signs[rank].at < asked);
        let mut state = self.lock();
        while let (Some(rank), left) = (silent(&state), SIGN_OF_LIFE.saturating_sub(asked.elapsed())) {
            if left.is_zero() {
                let SignOfLife { at, step, .. } = state.signs[rank];
                let since = at.elapsed().as_secs();
                return Some(format!(
                    "rank {rank} gives no sign of life since {since} s, after step {step}: it is stopped, or its \
                     machine or the network to it is gone"
                ));
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let place = |rank: &usize| (state.signs[*rank].step, state.signs[*rank].micro_batch);
        let last = awaited.iter().copied().min_by_key(place)?;
        let SignOfLife { step, micro_batch, .. } = state.signs[last];
        let is_behind = awaited.iter().all(|rank| *rank == last || place(rank) > (step, micro_batch));
        is_behind.then(|| {
            format!("rank {last} lives and does not get on: it is at micro-batch {micro_batch} of step {}", step + 1)
        })
    }
}

fn told(loss: &RankLoss, sign: &SignOfLife) -> String {
    let (rank, step) = (loss.rank, sign.step);
    match &loss.cause {
        LossCause::Gone => format!(
            "rank {rank} is gone, after step {step}: it was killed, or its machine or the network to it failed; see \
             what it has written on its standard error"
        ),
        LossCause::Failed(what) => format!("rank {rank} failed after step {step}: {what}"),
        LossCause::LostAnother(what) => format!("rank {rank}, after step {step}: {what}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_is_gone_is_named_and_not_the_one_that_noticed_it() {
        let mailbox = Mailbox::new(4);
        mailbox.lose(1, LossCause::LostAnother("rank 2 hung up".into()));
        mailbox.lose(1, LossCause::Gone);
        mailbox.lose(2, LossCause::Gone);
        let told = mailbox.culprit().unwrap();
        assert!(told.starts_with("rank 2 is gone"), "{told}");
        assert_eq!(
            mailbox.wait_for(Duration::from_secs(60), |_| None::<()>),
            None,
            "nobody waits for a rank that is gone"
        );
    }

    #[test]
    fn what_a_rank_said_before_it_was_gone_is_the_reason() {
        let mailbox = Mailbox::new(3);
        mailbox.lose(2, LossCause::Failed("no memory".into()));
        mailbox.lose(2, LossCause::Gone);
        assert_eq!(mailbox.culprit().unwrap(), "rank 2 failed after step 0: no memory");
        let mailbox = Mailbox::new(3);
        mailbox.lose(1, LossCause::LostAnother("no way to rank 2".into()));
        mailbox.lose(1, LossCause::Gone);
        assert_eq!(
            (mailbox.culprit(), mailbox.effect().unwrap()),
            (None, "rank 1, after step 0: no way to rank 2".into())
        );
    }

    #[test]
    fn the_rank_without_a_sign_of_life_is_named_before_one_that_is_behind() {
        let mailbox = Mailbox::new(3);
        let sign = |rank: usize, step: u64| {
            mailbox.tell(|state| state.signs[rank] = SignOfLife { at: Instant::now(), step, micro_batch: 1 });
        };
        let told = mailbox.laggard(&[1, 2], || sign(1, 4)).unwrap();
        assert!(told.starts_with("rank 2 gives no sign of life"), "{told}");
        let told = mailbox.laggard(&[1, 2], || [(1, 5), (2, 4)].into_iter().for_each(|(rank, step)| sign(rank, step)));
        assert_eq!(told.unwrap(), "rank 2 lives and does not get on: it is at micro-batch 1 of step 5");
        assert_eq!(mailbox.laggard(&[1, 2], || [1, 2].into_iter().for_each(|rank| sign(rank, 4))), None);
    }
}
