//! Errors, typed by what the caller will do about them: correct the config, wait for the lock, quarantine, go on
//! without this snapshot, or stop. Each says the operation, the path and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// A result with [`Error`] unless another error is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config or the command line is wrong: exit 78.
    #[error("{0}")]
    Config(String),

    /// Another process holds the store: wait for it, or take another store.
    #[error("the store {} is in use by process {pid} ({holder}); stop it first, or use another store", path.display())]
    Locked {
        /// The store's folder.
        path: PathBuf,
        /// The process that took the lock.
        pid: u32,
        /// What it said about itself.
        holder: String,
        /// The process that took the lock still runs.
        alive: bool,
    },

    /// A snapshot's bytes are not what was written: quarantine it, take another.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as a clause.
        reason: String,
    },

    /// A snapshot of a later format: nothing is wrong with it, and this release cannot judge it.
    #[error(
        "{}: a newer ckptd wrote this (snapshot format {version}, this one reads {known}); install that release, or \
         move the file out of the store to go on without it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u64,
        /// The newest format that this release reads.
        known: u32,
    },

    /// A snapshot is whole but does not fit what it was to be used for (schema, settings, run).
    #[error("{}: {reason}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What does not fit, as a clause.
        reason: String,
    },

    /// A file that ckptd did not write, or that was changed since, is not what its kind of file should be.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file, or the folder.
        path: PathBuf,
        /// What is wrong with it, as a clause.
        reason: String,
    },

    /// The disk is full or a quota is reached: go on without this snapshot, try again later.
    #[error("no space left while {op} {}; free some space or lower [retention] keep_last: {source}", path.display())]
    NoSpace {
        /// What was done, as "writing".
        op: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A snapshot was given up on purpose while it was being written.
    #[error("the snapshot was given up before it was complete")]
    Abandoned,

    /// The system refused an operation.
    #[error("{op} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was done, as "writing".
        op: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// What was asked for is not there.
    #[error("{0}")]
    NotFound(String),

    /// Anything else; the text says what to do.
    #[error("{0}")]
    Other(String),
}

/// What to do about an error of the system that does not say so itself.
fn hint(source: &io::Error) -> &'static str {
    match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::ReadOnlyFilesystem, _) => {
            "; the kernel makes a file system read-only after an error of its disk: see `dmesg`, then mount it again"
        }
        (io::ErrorKind::StaleNetworkFileHandle, _) => "; the network mount was lost: mount it again",
        (io::ErrorKind::PermissionDenied, _) => "; see to its owner and its permissions",
        (_, Some(libc::EIO)) => "; the disk fails: see `dmesg`, and copy what is there to another one",
        (_, Some(libc::ELOOP)) => "; a link stands there, and inside a store none is followed: remove it",
        _ => "",
    }
}

impl Error {
    /// An I/O error with its operation ("reading", "syncing") and path; a full disk becomes its own kind.
    pub fn io(op: &'static str, path: impl AsRef<Path>, source: io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { op, path, source },
            _ => Error::Io { op, path, source },
        }
    }

    /// [`Error::Damaged`] about the file at `path`.
    pub fn damaged(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Damaged { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// [`Error::Mismatch`] about the file at `path`.
    pub fn mismatch(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Mismatch { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// [`Error::Malformed`] about the file at `path`.
    pub fn malformed(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Malformed { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// The exit code of a command that ends with this error (the contract in README.md).
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => 78,
            _ => 1,
        }
    }
}
