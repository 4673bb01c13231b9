//! What is put between the store and the file system: one hook that writes down what happens, one that makes it fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use ckptd_core::os::faults::{Answer, FsCall, FsPlace, Hook, set_hook};
use rustix::io::Errno;

use crate::announce::StoreAck;

/// A call that succeeded and changed something, or an announcement between two calls.
#[derive(Clone, Debug)]
pub enum DiskOp {
    MakeFolder(PathBuf),
    Create(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    Truncate(PathBuf, u64),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Ack(StoreAck),
}

/// The operations of one thread, in order.
#[derive(Clone, Default)]
pub struct CallRecording(Arc<Mutex<Vec<DiskOp>>>);

impl CallRecording {
    fn ops(&self) -> MutexGuard<'_, Vec<DiskOp>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs `work` with every call written down; `work` announces through the function that it gets.
    pub fn of(work: impl FnOnce(&mut dyn FnMut(StoreAck))) -> Vec<DiskOp> {
        let recording = CallRecording::default();
        set_hook(Some(Box::new(recording.clone())));
        work(&mut |ack| recording.ops().push(DiskOp::Ack(ack)));
        set_hook(None);
        std::mem::take(&mut *recording.ops())
    }
}

impl Hook for CallRecording {
    fn before(&mut self, _: FsCall<'_>) -> Answer {
        Answer::Go
    }

    fn after(&mut self, call: FsCall<'_>, outcome: rustix::io::Result<usize>) {
        let Ok(written) = outcome else { return };
        let op = match call {
            FsCall::MakeFolder(place) => DiskOp::MakeFolder(path(place)),
            FsCall::Create(place) | FsCall::OpenOrCreate(place) => DiskOp::Create(path(place)),
            FsCall::Write(place, offset, bytes) => DiskOp::Write(path(place), offset, bytes[..written].to_vec()),
            FsCall::Truncate(place, bytes) => DiskOp::Truncate(path(place), bytes),
            FsCall::Sync(place) | FsCall::SyncFolder(place) => DiskOp::Sync(path(place)),
            FsCall::Rename(from, to) => DiskOp::Rename(path(from), path(to)),
            FsCall::Remove(place) => DiskOp::Remove(path(place)),
            FsCall::OpenFolder(_) | FsCall::List(_) | FsCall::Stat(_) | FsCall::Open(_) | FsCall::Read(..) => return,
            FsCall::Reserve(..) | FsCall::Flags(_) | FsCall::Lock(_) => return,
        };
        self.ops().push(op);
    }
}

pub fn path(place: FsPlace<'_>) -> PathBuf {
    if place.1.is_empty() { place.0.to_path_buf() } else { place.0.join(place.1) }
}

/// What befalls a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFault {
    /// This call fails.
    Once(Errno),
    /// This call and every later one fails.
    FromThen(Errno),
    /// From this call on nothing that takes room succeeds.
    Full(Errno),
    /// This write, if it is one, takes one sector or half of what it should.
    Short,
    /// SIGKILL before the call.
    KillBefore,
    /// SIGKILL after the call.
    KillAfter,
}

/// Counts calls and lets the `at`-th one (from 0) meet its fault.
pub struct FaultInjector {
    pub at: u64,
    pub fault: Option<CallFault>,
    pub seen: Arc<Mutex<SeenCalls>>,
}

#[derive(Debug, Default)]
pub struct SeenCalls {
    pub calls: u64,
    /// Calls of each kind that succeeded.
    pub kinds: BTreeMap<String, u64>,
    /// The call that was hit.
    pub hit: Option<String>,
}

impl FaultInjector {
    pub fn install(at: u64, fault: Option<CallFault>) -> Arc<Mutex<SeenCalls>> {
        let seen = Arc::new(Mutex::new(SeenCalls::default()));
        set_hook(Some(Box::new(FaultInjector { at, fault, seen: seen.clone() })));
        seen
    }
}

impl Hook for FaultInjector {
    fn before(&mut self, call: FsCall<'_>) -> Answer {
        let mut seen = self.seen.lock().unwrap_or_else(|e| e.into_inner());
        let now = seen.calls;
        seen.calls += 1;
        let Some(fault) = self.fault.filter(|_| now >= self.at) else { return Answer::Go };
        let exact = now == self.at;
        let answer = match (fault, call) {
            (CallFault::Once(errno), _) if exact => Answer::Fail(errno),
            (CallFault::FromThen(errno), _) => Answer::Fail(errno),
            (CallFault::Full(errno), FsCall::Write(..) | FsCall::Reserve(..) | FsCall::Create(_)) => {
                Answer::Fail(errno)
            }
            (CallFault::Full(errno), FsCall::OpenOrCreate(_) | FsCall::MakeFolder(_)) => Answer::Fail(errno),
            (CallFault::Short, FsCall::Write(_, _, bytes)) if exact && bytes.len() > 1 => {
                Answer::Short(if bytes.len() > 4096 { 4096 } else { bytes.len() / 2 })
            }
            (CallFault::KillBefore, _) if exact => kill(),
            _ => Answer::Go,
        };
        if answer != Answer::Go && seen.hit.is_none() {
            seen.hit = Some(name(call));
        }
        answer
    }

    fn after(&mut self, call: FsCall<'_>, outcome: rustix::io::Result<usize>) {
        let mut seen = self.seen.lock().unwrap_or_else(|e| e.into_inner());
        if self.fault == Some(CallFault::KillAfter) && seen.calls == self.at + 1 {
            kill();
        }
        if outcome.is_ok() {
            *seen.kinds.entry(kind(call)).or_default() += 1;
        }
    }
}

fn kill() -> Answer {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    Answer::Go
}

fn kind(call: FsCall<'_>) -> String {
    let text = match call {
        // Its bytes need not be spelled.
        FsCall::Write(..) => "Write".to_owned(),
        _ => format!("{call:?}"),
    };
    text.split('(').next().unwrap_or_default().to_owned()
}

/// The call in words: what, and the last two names of where.
fn name(call: FsCall<'_>) -> String {
    let what = kind(call);
    let place = match call {
        FsCall::OpenFolder(p) | FsCall::MakeFolder(p) | FsCall::List(p) | FsCall::Stat(p) | FsCall::Open(p) => p,
        FsCall::OpenOrCreate(p)
        | FsCall::Create(p)
        | FsCall::Read(p, _)
        | FsCall::Write(p, ..)
        | FsCall::Reserve(p, _) => p,
        FsCall::Truncate(p, _) | FsCall::Flags(p) | FsCall::Lock(p) | FsCall::Sync(p) | FsCall::SyncFolder(p) => p,
        FsCall::Rename(_, p) | FsCall::Remove(p) => p,
    };
    format!("{what} {}", tail(&path(place)))
}

fn tail(path: &Path) -> String {
    let parts: Vec<_> = path.iter().rev().take(2).map(|p| p.to_string_lossy().into_owned()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}
