//! One writer per store.
//!
//! Invariant: the lock is the kernel's (flock on an open file), so that it ends with its holders, however they end. The
//! worker is given it, and nothing else that is started: a store whose agent was killed stays locked until the worker
//! has committed its last snapshot.
//! What the file says of the holder, and of how its session ended, is for messages only. It has one length, so that it
//! can be written over on a disk that is full.

use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layout;
use crate::error::{Error, Result};
use crate::os::dir::Dir;
use crate::os::fs::{self, Transfer};
use crate::os::process::{holders_of, start_ticks};

/// How the holder's `who` begins where a session holds the store, and not a command that is soon done.
pub const SESSION: &str = "ckptd run";

/// Proof that this process may change a store: it took the lock, or the process that started it did. Functions that
/// take a `&StoreLock` change the store that it was taken from.
///
/// The kernel's lock is held until this is dropped here and the worker that was given it has ended.
#[derive(Debug)]
pub struct StoreLock {
    /// `None`: the parent's.
    own: Option<LockFile>,
}

/// The lock file, open and locked.
#[derive(Debug)]
struct LockFile {
    file: File,
    path: PathBuf,
    holder: LockHolder,
}

/// Length of the file's content, the rest blanks.
const LOCK_BYTES: usize = 4096;
/// Characters of a problem; a longer one is cut.
const MAX_PROBLEM: usize = 1500;

/// Who took the lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LockHolder {
    /// Id of the process.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot, so that a reused process id is not taken for it.
    pub started: u64,
    /// The command, for messages.
    pub who: String,
    /// How its session ended; `None` while it runs, and after a kill.
    #[serde(default)]
    pub ended: Option<SessionEnding>,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnding {
    /// What it failed with; `None` where it did not fail.
    pub problem: Option<String>,
}

/// What is known of the session that had the store last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastSession {
    /// No session had it, or another command had the store since.
    Unknown,
    /// It runs still.
    Running {
        /// Id of its process.
        pid: u32,
    },
    /// It recorded its end.
    Ended(SessionEnding),
    /// It ended without recording an end: killed, or the machine went down.
    Killed {
        /// Id of its process.
        pid: u32,
    },
}

impl StoreLock {
    pub(super) fn take(dir: &Dir, who: &str) -> Result<StoreLock> {
        let path = dir.join(layout::LOCK);
        let file = loop {
            let file = dir.open_kept(layout::LOCK)?;
            if !fs::try_lock(&file, &path)? {
                return Err(held(&file, dir));
            }
            let stat = fs::fstat(&file, &path)?;
            let named = dir.stat(layout::LOCK)?.is_some_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino));
            match (named, stat.st_nlink) {
                (true, 1) => match worker_holder(dir)? {
                    None => break file,
                    Some(pid) => return Err(held_by_worker(pid, dir)),
                },
                // A hard link, planted or made by a backup: what is written here would change the other name's file.
                (true, _) => dir.remove(layout::LOCK)?,
                // The name went to another file meanwhile, and with it the lock.
                (false, _) => {}
            }
        };
        let lock = LockFile { file, path, holder: LockHolder::this(who) };
        lock.write(&lock.holder);
        Ok(StoreLock { own: Some(lock) })
    }

    /// The lock's file, which a child has where it is left open for it; `None` for an inherited lock.
    pub fn file(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.own.as_ref().map(|lock| std::os::fd::AsFd::as_fd(&lock.file))
    }

    /// For a worker, which has the lock through the process that started it: the open file came with the start.
    pub fn inherited() -> StoreLock {
        StoreLock { own: None }
    }

    /// Records how the session ended, `problem` being what it failed with. Does nothing for an inherited lock.
    pub fn record_end(&self, problem: Option<String>) {
        let problem = problem.map(|problem| problem.chars().take(MAX_PROBLEM).collect());
        if let Some(lock) = &self.own {
            lock.write(&LockHolder { ended: Some(SessionEnding { problem }), ..lock.holder.clone() });
        }
    }
}

impl LockFile {
    /// The content serves messages only, so a failure to write it does not fail the lock.
    fn write(&self, holder: &LockHolder) {
        let mut text = serde_json::to_vec(holder).unwrap_or_default();
        text.resize(text.len().max(LOCK_BYTES), b' ');
        let length = text.len() as u64;
        let _ = fs::write_all_at(&self.file, &text, 0, &self.path)
            .and_then(|()| fs::truncate(&self.file, length, &self.path));
    }
}

impl LastSession {
    /// Of the store in `dir`.
    pub(super) fn read(dir: &Dir) -> Result<LastSession> {
        let text = dir.read_small(layout::LOCK, 4 * LOCK_BYTES as u64)?.unwrap_or_default();
        let holder = serde_json::from_slice::<LockHolder>(&text).ok();
        Ok(match holder.filter(|holder| holder.who.starts_with(SESSION)) {
            Some(LockHolder { ended: Some(ending), .. }) => LastSession::Ended(ending),
            Some(holder) if !holder.alive() => LastSession::Killed { pid: holder.pid },
            Some(holder) => LastSession::Running { pid: holder.pid },
            None => LastSession::Unknown,
        })
    }
}

/// The other process that holds the worker's lock.
pub(super) fn worker_holder(dir: &Dir) -> Result<Option<u32>> {
    if dir.stat(layout::WORKER_LOCK)?.is_none() {
        return Ok(None);
    }
    fs::record_lock_holder(&dir.open_kept(layout::WORKER_LOCK)?, &dir.join(layout::WORKER_LOCK))
}

pub(super) fn held_by_worker(pid: u32, dir: &Dir) -> Error {
    let holder = "a worker whose ckptd or launcher is gone; it still saves".to_owned();
    Error::Locked { path: dir.path().to_path_buf(), pid, holder, alive: false }
}

/// The processes that have the lock file in `dir` open, as far as this process may see them.
pub(super) fn holders(dir: &Dir) -> Vec<u32> {
    let Ok(Some(lock)) = dir.stat(layout::LOCK) else { return Vec::new() };
    holders_of(lock.st_dev, lock.st_ino)
}

fn held(file: &File, dir: &Dir) -> Error {
    let mut text = vec![0; 2 * LOCK_BYTES];
    let length = fs::read_at(file, &mut text, 0, Transfer::Cached, &dir.join(layout::LOCK)).unwrap_or(0);
    let path = dir.path().to_path_buf();
    match serde_json::from_slice::<LockHolder>(&text[..length]) {
        Ok(holder) => {
            let alive = holder.alive();
            let who =
                if alive { holder.who } else { format!("{}, which is gone; its worker still commits", holder.who) };
            Error::Locked { path, pid: holder.pid, holder: who, alive }
        }
        Err(_) => Error::Locked { path, pid: 0, holder: "unknown".into(), alive: true },
    }
}

impl LockHolder {
    /// This process, as a holder.
    fn this(who: &str) -> LockHolder {
        let pid = std::process::id();
        LockHolder { pid, started: start_ticks(pid).unwrap_or(0), who: who.into(), ended: None }
    }

    /// Whether the process that took the lock still runs.
    pub fn alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.started)
    }
}
