//! What can go wrong between a store on this machine and a job at a remote.

use ckptd_core::error::Error;

use crate::errors::{ErrorKind, ObjectError};

/// A result with [`JobError`] unless another error is named.
pub type Result<T, E = JobError> = std::result::Result<T, E>;

/// A failure there, or a failure here.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The object store, or the way to it.
    #[error(transparent)]
    There(#[from] ObjectError),
    /// This machine, or a file's content.
    #[error(transparent)]
    Here(#[from] Error),
}

impl JobError {
    /// Whether the same may succeed later, with nothing changed here.
    pub fn is_worth_retrying(&self) -> bool {
        match self {
            JobError::There(error) => error.is_worth_retrying(),
            JobError::Here(error) => matches!(error, Error::NoSpace { .. }),
        }
    }

    /// Whether the request may not have arrived.
    pub fn is_of_the_way(&self) -> bool {
        matches!(self, JobError::There(error) if error.kind == ErrorKind::Unreachable)
    }

    /// Whether the file there is not what it should be, or not there: an older one may be.
    pub fn is_of_the_file(&self) -> bool {
        match self {
            JobError::There(error) => matches!(error.kind, ErrorKind::NotThere | ErrorKind::BadAnswer),
            JobError::Here(error) => matches!(error, Error::Damaged { .. } | Error::Mismatch { .. }),
        }
    }

    /// Anything else, in words.
    pub fn other(text: impl Into<String>) -> JobError {
        JobError::Here(Error::Other(text.into()))
    }
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Error {
        match error {
            JobError::Here(error) => error,
            JobError::There(error) if error.kind == ErrorKind::Config => Error::Config(error.to_string()),
            JobError::There(error) => Error::Other(error.to_string()),
        }
    }
}
