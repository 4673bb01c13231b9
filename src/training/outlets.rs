//! What is told of a job beside its log: the history, TensorBoard, the user's programs, the page.
//!
//! Invariant: the loop waits for none of them but at the end of a session, in the time that is left.

use std::sync::Arc;
use std::time::Duration;

use super::job::events::JobEvent;
use crate::daemon::history::HistoryKeeper;
use crate::daemon::hooks::{HookCall, HookRunner};
use crate::daemon::inbox::InboxSender;
use crate::daemon::tensorboard::TensorBoardWriter;
use crate::session::clock::ClockReading;
use crate::web::page::JobPage;
use ckptd_core::config::Config;
use ckptd_core::error::Result;
use ckptd_core::store::{Store, StoreLock, layout};
use ckptd_history::record::HistoryRecord;

/// How long the history is waited for at the end, and how long when there is no time.
const TIMEOUT: Duration = Duration::from_millis(500);
const LEAST: Duration = Duration::from_millis(50);

/// All of them, for as long as the session lasts.
pub(super) struct JobOutlets {
    history: HistoryKeeper,
    /// `None`: nobody asked for it.
    tensorboard: Option<TensorBoardWriter>,
    hooks: HookRunner,
    hook_timeout: Duration,
    _page: Option<JobPage>,
}

impl JobOutlets {
    /// Of the job of `config`, whose session began at `began`.
    pub(super) fn start(
        config: &Config,
        (store, lock): (&Arc<Store>, &Arc<StoreLock>),
        inputs: &InboxSender<JobEvent>,
        began: ClockReading,
    ) -> Result<JobOutlets> {
        let page = JobPage::start(config, store, lock, inputs)?;
        let began_ms = began.wall.as_millisecond();
        let tensorboard = config.log.tensorboard.then(|| {
            let folder = store.path().join(layout::TENSORBOARD);
            TensorBoardWriter::start(folder, Store::open(store.path())?, config.clone(), began_ms)
        });
        let hook_timeout = config.hooks.timeout.0;
        Ok(JobOutlets {
            history: HistoryKeeper::start(store.clone(), lock.clone())?,
            tensorboard: tensorboard.transpose()?,
            hooks: HookRunner::start(hook_timeout)?,
            hook_timeout,
            _page: page,
        })
    }

    /// Has `record` written soon.
    pub(super) fn keep(&self, record: HistoryRecord) {
        self.tensorboard.iter().for_each(|tensorboard| tensorboard.give(&record));
        self.history.give(record);
    }

    /// Has a program told soon.
    pub(super) fn tell(&self, call: HookCall) {
        self.hooks.give(call);
    }

    /// Starts no program while the last snapshot of the session is on its way.
    pub(super) fn hold_hooks(&self, is_stopping: bool) {
        self.hooks.hold(is_stopping);
    }

    /// Has the history written up to a snapshot that is about to be sent, since it goes with it.
    pub(super) fn hurry_history(&self) {
        self.history.hurry();
    }

    /// Lets the history be written as far as it goes, so that it can be sent; `left` is the time for that.
    pub(super) fn flush_history(&self, left: Duration) {
        self.history.flush(TIMEOUT.min(left.max(LEAST)));
    }

    /// Lets all complete what they were given; `left` is the time for that.
    pub(super) fn finish(&mut self, left: impl Fn() -> Duration) {
        self.history.finish(TIMEOUT.min(left().max(LEAST)));
        if let Some(tensorboard) = &mut self.tensorboard {
            tensorboard.finish(TIMEOUT.min(left().max(LEAST)));
        }
        // Last of all: everything that matters is done. Twice, since one may be running.
        self.hooks.finish((self.hook_timeout * 2).min(left()));
    }
}
