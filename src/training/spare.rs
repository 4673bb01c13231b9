//! A worker in reserve: started while another one trains, it has loaded its libraries and waits for its `start`, so
//! that a restart does not.
//!
//! Invariant: it never trains beside the other one; it is used for the very command that it was started by, or not at
//! all. Deliberately not here: when a worker is replaced (job).

use std::os::fd::BorrowedFd;
use std::time::Duration;

use tracing::debug;

use super::launch::WorkerLaunch;
use super::worker::WaitingWorker;
use ckptd_core::config::{Config, RankCount, RankLauncher};

/// A killed one holds the store's lock until it is gone.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The worker in reserve, if there is one.
#[derive(Default)]
pub(super) struct SpareWorker(Option<(WorkerLaunch, WaitingWorker)>);

impl SpareWorker {
    /// Whether the job's workers are of a kind that can wait: ckptd's own, on one rank.
    pub(super) fn suits(config: &Config) -> bool {
        let (worker, ranks) = (&config.worker, &config.ranks);
        let is_alone = ranks.launcher == RankLauncher::None && ranks.count == RankCount::Fixed(1);
        worker.spare && worker.is_builtin() && worker.max_restarts > 0 && is_alone
    }

    /// Whether one is there, or was when it was last looked for.
    pub(super) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Starts one, which inherits `lock`, the store's.
    pub(super) fn start(&mut self, launch: WorkerLaunch, lock: Option<BorrowedFd<'_>>) {
        match WaitingWorker::spawn(&launch, lock) {
            Ok(worker) => self.0 = Some((launch, worker)),
            // The next start tells what is wrong.
            Err(e) => debug!("no worker in reserve: {e}"),
        }
    }

    /// Takes it, where it is what `launch` would start.
    pub(super) fn take(&mut self, launch: &WorkerLaunch) -> Option<WaitingWorker> {
        let (own, mut worker) = self.0.take()?;
        if own == *launch && worker.is_there() {
            return Some(worker);
        }
        tokio::spawn(worker.end());
        None
    }

    /// Ends it.
    pub(super) async fn end(&mut self) {
        if let Some((_, worker)) = self.0.take() {
            let _ = tokio::time::timeout(END_TIMEOUT, worker.end()).await;
        }
    }
}
