//! Replication in the background of a session: one thread, at low priority.
//!
//! Invariant: at most one snapshot is under way, and one waits: a newer one takes its place. The training never waits
//! for this thread, and what it cannot do now it tries again. What it reports of a snapshot is what the remote holds.

use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use ckptd_core::error::Error;
use ckptd_core::os::process::{YIELDING_NICE, lower_priority};
use ckptd_core::store::{Store, StoreLock};

use super::error::Result;
use super::owner::JobOwner;
use super::place::RemoteJob;
pub use super::replica::{ReplicaNews, ReplicaTask, ReplicatorSettings};
use super::replication::Replication;

/// A handle to the replicating thread.
#[derive(Debug)]
pub struct Replicator {
    tasks: UnboundedSender<ReplicaTask>,
    /// Closed by the thread's end.
    end: mpsc::Receiver<()>,
}

impl Replicator {
    /// Starts the thread, which opens the job by `open` and reports until `report` breaks off.
    pub fn start(
        open: impl Future<Output = Result<RemoteJob>> + Send + 'static,
        (store, lock): (Arc<Store>, Arc<StoreLock>),
        settings: ReplicatorSettings,
        report: impl Fn(ReplicaNews) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> ckptd_core::Result<Replicator> {
        let (tasks, queue) = unbounded_channel();
        let (ends, end) = mpsc::channel::<()>();
        let starting = |e| Error::Other(format!("starting a thread: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(starting)?;
        let work = move || {
            lower_priority(YIELDING_NICE);
            runtime.block_on(serve(open, (store, lock), settings, queue, &report));
            runtime.shutdown_background();
            drop(ends);
        };
        std::thread::Builder::new().name("replicator".into()).spawn(work).map_err(starting)?;
        Ok(Replicator { tasks, end })
    }

    /// Has `task` done.
    pub fn give(&self, task: ReplicaTask) {
        // A thread that has ended has said why.
        let _ = self.tasks.send(task);
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.end.try_recv(), Err(mpsc::TryRecvError::Disconnected))
    }

    /// Waits for the thread's end, for at most `timeout`.
    pub fn join(&self, timeout: Duration) {
        let _ = self.end.recv_timeout(timeout);
    }
}

async fn serve(
    open: impl Future<Output = Result<RemoteJob>>,
    (store, lock): (Arc<Store>, Arc<StoreLock>),
    settings: ReplicatorSettings,
    mut queue: UnboundedReceiver<ReplicaTask>,
    report: &(dyn Fn(ReplicaNews) -> ControlFlow<()> + Send + Sync),
) {
    let owner = match open.await.and_then(|job| JobOwner::new(job, settings.owner.clone())) {
        Ok(owner) => owner,
        Err(error) => {
            let _ = report(ReplicaNews::Began(Err(error)));
            return;
        }
    };
    let mut work = Replication::new(owner, settings, (store, lock), report);
    let began = work.begin().await;
    let goes_on = began.is_ok();
    if report(ReplicaNews::Began(began)).is_break() || !goes_on {
        return;
    }
    work.run(&mut queue).await;
}
