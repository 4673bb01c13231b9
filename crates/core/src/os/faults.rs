//! Fault injection: every file-system call of the store is announced here before it is made.
//!
//! Invariant: in a shipped build [`call`] and [`write`] are the calls themselves, repeated where a signal interrupted
//! them. Only the cargo feature `faults`, which the fault campaign's exerciser is built with and nothing else, lets a
//! thread put a hook between: it sees each call and its outcome, and may answer in the system's place.
//! An interrupted call has done nothing and says nothing about the data, so that even an fsync may be asked again then.
//! Deliberately not here: which faults there are (the exerciser), the calls (fs).

use std::path::Path;

use rustix::io::{Errno, Result};

/// A name below an open folder, or a path of its own with no name.
#[derive(Clone, Copy, Debug)]
pub struct FsPlace<'a>(pub &'a Path, pub &'a str);

impl<'a> From<&'a Path> for FsPlace<'a> {
    fn from(path: &'a Path) -> FsPlace<'a> {
        FsPlace(path, "")
    }
}

/// A file-system call and what it is about. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug)]
pub enum FsCall<'a> {
    /// A folder is opened.
    OpenFolder(FsPlace<'a>),
    /// A folder is made.
    MakeFolder(FsPlace<'a>),
    /// The names in a folder are read.
    List(FsPlace<'a>),
    /// The attributes of a file or folder are read.
    Stat(FsPlace<'a>),
    /// A file is opened.
    Open(FsPlace<'a>),
    /// Opens, and creates what is not there.
    OpenOrCreate(FsPlace<'a>),
    /// Creates what must not be there.
    Create(FsPlace<'a>),
    /// Bytes are read at an offset.
    Read(FsPlace<'a>, u64),
    /// Bytes are written at an offset.
    Write(FsPlace<'a>, u64, &'a [u8]),
    /// Room is reserved, the length stays.
    Reserve(FsPlace<'a>, u64),
    /// The file is cut to a length.
    Truncate(FsPlace<'a>, u64),
    /// The flags of an open file are changed.
    Flags(FsPlace<'a>),
    /// The kernel's lock is asked for.
    Lock(FsPlace<'a>),
    /// A file is made durable.
    Sync(FsPlace<'a>),
    /// The names in a folder are made durable.
    SyncFolder(FsPlace<'a>),
    /// The first name becomes the second one.
    Rename(FsPlace<'a>, FsPlace<'a>),
    /// A file is removed.
    Remove(FsPlace<'a>),
}

/// Makes a call, again and again while signals interrupt it.
pub fn call<T>(what: FsCall<'_>, mut real: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match hooked(what, |_| real(), |_| 0) {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

/// Writes some of `bytes` and returns how many.
pub fn write(
    place: FsPlace<'_>,
    offset: u64,
    bytes: &[u8],
    mut real: impl FnMut(&[u8]) -> Result<usize>,
) -> Result<usize> {
    loop {
        match hooked(FsCall::Write(place, offset, bytes), |n| real(&bytes[..n.min(bytes.len())]), |n| *n) {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

#[cfg(not(feature = "faults"))]
#[inline(always)]
fn hooked<T>(_: FsCall<'_>, real: impl FnOnce(usize) -> Result<T>, _: impl Fn(&T) -> usize) -> Result<T> {
    real(usize::MAX)
}

#[cfg(feature = "faults")]
use hook::hooked;
#[cfg(feature = "faults")]
pub use hook::{Answer, Hook, set_hook};

#[cfg(feature = "faults")]
mod hook {
    use std::cell::RefCell;

    use super::{Errno, FsCall, Result};

    /// What becomes of a call.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Answer {
        /// It is made.
        Go,
        /// It is not made and fails.
        Fail(Errno),
        /// A write of at most so many bytes is made.
        Short(usize),
    }

    /// Stands between the store and the file system, for the calls of one thread.
    pub trait Hook {
        /// The call is about to be made.
        fn before(&mut self, call: FsCall<'_>) -> Answer;
        /// The call was made or refused; `outcome` holds the bytes written, 0 for other calls.
        fn after(&mut self, call: FsCall<'_>, outcome: Result<usize>);
    }

    thread_local! {
        static HOOK: RefCell<Option<Box<dyn Hook>>> = const { RefCell::new(None) };
    }

    /// Puts `hook` between this thread's store and the file system; `None` ends that.
    pub fn set_hook(hook: Option<Box<dyn Hook>>) {
        HOOK.with(|slot| *slot.borrow_mut() = hook);
    }

    pub(super) fn hooked<T>(
        call: FsCall<'_>,
        real: impl FnOnce(usize) -> Result<T>,
        written: impl Fn(&T) -> usize,
    ) -> Result<T> {
        let answer = HOOK.with(|slot| slot.borrow_mut().as_mut().map_or(Answer::Go, |hook| hook.before(call)));
        let outcome = match answer {
            Answer::Go => real(usize::MAX),
            Answer::Short(bytes) => real(bytes),
            Answer::Fail(errno) => Err(errno),
        };
        let told = outcome.as_ref().map(&written).map_err(|e| *e);
        HOOK.with(|slot| slot.borrow_mut().as_mut().map(|hook| hook.after(call, told)));
        outcome
    }
}
