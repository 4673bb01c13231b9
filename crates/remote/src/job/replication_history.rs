//! When the history of the training is sent: after each marker, and once at the end of the session.
//!
//! Invariant: it travels beside snapshots and never before one; what fails is told once, and tried again after the next
//! marker, or at once where none will come.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ckptd_core::store::Store;

use super::error::{JobError, Result};
use super::history::HistorySender;
use super::owner::now;
use super::place::RemoteJob;
use super::rate::RateLimit;

/// How long it may take; what came in that time stays there.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is tried at the session's end.
const END_TRIES: u32 = 3;

/// Sending it, under way.
pub(super) type HistoryWork = Pin<Box<dyn Future<Output = (HistorySender, Result<()>)>>>;

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct HistoryState {
    sender: HistorySender,
    /// A marker was written since.
    pub(super) is_due: bool,
    /// The session ends.
    end: Option<HistoryEnd>,
    has_failed: bool,
}

/// The end of a session, for which the history is sent once more.
#[derive(Debug)]
struct HistoryEnd {
    /// By when it is over.
    by: Instant,
    /// How often it may still be tried.
    tries: u32,
}

/// What it is sent of, and where to.
pub(super) struct HistoryRoute<'a> {
    pub job: &'a RemoteJob,
    pub store: &'a Arc<Store>,
    pub rate: &'a Arc<RateLimit>,
    /// The ownership that sends.
    pub epoch: u64,
    /// Until when something may be removed there, in milliseconds of [`now`].
    pub write_until: &'a Arc<AtomicU64>,
}

impl HistoryState {
    /// The store has all that is there.
    pub(super) fn knows_all(&mut self) {
        self.sender.knows_all();
    }

    /// Everything else is done: the time for the rest of it begins.
    pub(super) fn ends(&mut self) {
        self.end.get_or_insert_with(|| HistoryEnd { by: Instant::now() + PATIENCE, tries: END_TRIES });
    }

    /// Begins to send it, where it is time for that.
    pub(super) fn next(&mut self, route: &HistoryRoute<'_>) -> Option<HistoryWork> {
        let patience = match &mut self.end {
            None if !self.is_due => return None,
            None => PATIENCE,
            Some(end) if end.tries == 0 => return None,
            Some(end) => {
                end.tries -= 1;
                end.by.saturating_duration_since(Instant::now())
            }
        };
        self.is_due = false;
        let (job, store, rate, epoch) = (route.job.clone(), route.store.clone(), route.rate.clone(), route.epoch);
        let (mut sender, until) = (self.sender.clone(), route.write_until.clone());
        Some(Box::pin(async move {
            let may_write = || (now().as_millis() as u64) < until.load(Ordering::Relaxed);
            let sending = sender.send(&job, &store, epoch, &rate, may_write);
            let outcome = tokio::time::timeout(patience, sending).await;
            let late =
                || JobError::other(format!("{}: sending took longer than {} s", job.place(), PATIENCE.as_secs()));
            (sender, outcome.unwrap_or_else(|_| Err(late())))
        }))
    }

    /// What is to be told of what has ended.
    pub(super) fn done(&mut self, (sender, outcome): (HistorySender, Result<()>)) -> Option<String> {
        self.sender = sender;
        if let Some(end) = &mut self.end {
            match &outcome {
                Err(_) if end.tries > 0 && Instant::now() < end.by => return None,
                // One that was under way before lacks the last steps.
                _ if end.tries == END_TRIES => {}
                _ => end.tries = 0,
            }
        }
        let is_news = !self.has_failed;
        self.has_failed = outcome.is_err();
        let error = outcome.err().filter(|_| is_news)?;
        Some(format!("the history of the training is not replicated, its snapshots are: {error}"))
    }
}

pub(super) async fn history_sent(work: &mut Option<HistoryWork>) -> (HistorySender, Result<()>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
