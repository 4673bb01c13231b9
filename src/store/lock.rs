//! One writer a store.
//!
//! Invariant: the lock is the kernel's (flock on an open file), so that it ends with its holders, however they end. The
//! worker inherits it: a store whose agent was killed stays locked until the worker has committed its last snapshot.
//! What the file says of the holder is for messages only.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::fs::Dir;
use super::{Store, layout};
use crate::error::{Error, Result};

/// Held until it is dropped here and in every child that was started meanwhile.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Who took the lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// Start time of that process in clock ticks since boot, so that a reused process id is not taken for it.
    pub started: u64,
    pub who: String,
}

impl Lock {
    pub(super) fn take(dir: &Dir, who: &str) -> Result<Lock> {
        let path = dir.join(layout::LOCK);
        let mut file = dir.open_lock(layout::LOCK)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(&mut file, dir.path().to_path_buf())),
            Err(e) => return Err(Error::io("locking", path, e.into())),
        }
        let pid = std::process::id();
        let holder = Holder { pid, started: start_ticks(pid).unwrap_or(0), who: who.into() };
        let json =
            serde_json::to_string(&holder).map_err(|e| Error::Other(format!("writing {}: {e}", path.display())))?;
        // The content serves messages only, so a failure to write it is none to lock.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(json.as_bytes()));
        Ok(Lock { _file: file })
    }
}

impl Store {
    /// The processes that have the lock file open, as far as this process may see them.
    pub fn lock_holders(&self) -> Vec<u32> {
        let Ok(Some(lock)) = self.dir.stat(layout::LOCK) else { return Vec::new() };
        let is_lock = |path: &std::path::Path| {
            std::fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (lock.st_dev, lock.st_ino))
        };
        let folder = |path: &std::path::Path| std::fs::read_dir(path).into_iter().flatten().flatten();
        folder("/proc".as_ref())
            .filter_map(|process| Some((process.file_name().to_str()?.parse().ok()?, process.path().join("fd"))))
            .filter(|(_, files)| folder(files).any(|file| is_lock(&file.path())))
            .map(|(pid, _)| pid)
            .collect()
    }
}

fn held(file: &mut File, path: PathBuf) -> Error {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.take(4096).read_to_string(&mut text));
    match serde_json::from_str::<Holder>(&text) {
        Ok(holder) => {
            let alive = holder.alive();
            let who =
                if alive { holder.who } else { format!("{}, which is gone; its worker still commits", holder.who) };
            Error::Locked { path, pid: holder.pid, holder: who, alive }
        }
        Err(_) => Error::Locked { path, pid: 0, holder: "unknown".into(), alive: true },
    }
}

impl Holder {
    /// Whether the process that took the lock still runs.
    pub fn alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.started)
    }
}

/// Field 22 of /proc/PID/stat; `None` for a process that is gone or a zombie.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it are plain.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
