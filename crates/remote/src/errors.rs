//! What can go wrong between this machine and an object store, by what the caller will do about it.
//!
//! Invariant: an error says scheme, bucket and name, and never a credential: what a store or a client said passes
//! through the remote's redactor first.

use std::fmt;

use crate::names::ObjectName;

/// A result with [`ObjectError`] unless another error is named.
pub type Result<T, E = ObjectError> = std::result::Result<T, E>;

/// What was asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Open,
    Create,
    Swap,
    Put,
    Get,
    GetRange,
    Head,
    List,
    Delete,
    BeginUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    Sweep,
}

impl Operation {
    fn doing(self) -> &'static str {
        match self {
            Operation::Open => "opening",
            Operation::Create => "creating",
            Operation::Swap => "replacing",
            Operation::Put => "writing",
            Operation::Get | Operation::GetRange => "reading",
            Operation::Head => "looking at",
            Operation::List => "listing",
            Operation::Delete => "deleting",
            Operation::BeginUpload => "beginning the upload of",
            Operation::UploadPart => "uploading a part of",
            Operation::CompleteUpload => "completing the upload of",
            Operation::AbortUpload => "aborting the upload of",
            Operation::Sweep => "clearing leftovers of",
        }
    }
}

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// There is no such object.
    NotThere,
    /// There is no such upload (any more): begin another one.
    NoUpload,
    /// The store cannot do this at all.
    Unsupported,
    /// The object is larger than the caller is willing to read.
    TooLarge,
    /// The credentials are wrong, have expired, or do not allow this. A later try may have newer ones.
    Denied,
    /// The clock of this machine is so far off that the store refuses its signatures.
    ClockOff,
    /// No space, no quota, or no inode is left at the destination.
    NoSpace,
    /// The bucket, container or folder is not there.
    NoBucket,
    /// The address, the settings or the credentials' form are wrong: exit 78.
    Config,
    /// The store's answer was not what its protocol says.
    BadAnswer,
    /// The network, or the store for the moment: try again.
    Unreachable,
    /// Anything else that the store refused.
    Refused,
}

/// A failed request: what was done, where, and why it failed.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ObjectError {
    /// What was asked.
    pub operation: Operation,
    /// Which object; none where the whole remote is meant.
    pub name: Option<String>,
    /// The remote, as `s3://bucket/prefix`.
    pub place: String,
    /// What to do about it.
    pub kind: ErrorKind,
    /// What happened, as a clause, without credentials.
    pub detail: String,
}

impl ObjectError {
    /// The failure of `operation` on `name` at `place`.
    pub fn new(
        operation: Operation,
        place: impl Into<String>,
        name: Option<&ObjectName>,
        kind: ErrorKind,
        detail: impl Into<String>,
    ) -> ObjectError {
        let name = name.map(|name| name.as_str().to_owned());
        ObjectError { operation, name, place: place.into(), kind, detail: detail.into() }
    }

    /// Whether the same request may succeed when it is made again later, with nothing changed here.
    pub fn is_worth_retrying(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unreachable | ErrorKind::NoSpace | ErrorKind::Denied | ErrorKind::ClockOff | ErrorKind::NoBucket
        )
    }

    /// Whether the object, and nothing else, is missing.
    pub fn is_not_there(&self) -> bool {
        self.kind == ErrorKind::NotThere
    }

    /// What the user can do, as a clause.
    fn hint(&self) -> Option<&'static str> {
        match self.kind {
            ErrorKind::Denied => Some("check the credentials and what they allow (docs/remote.md)"),
            ErrorKind::ClockOff => Some("set this machine's clock, as with: timedatectl set-ntp true"),
            ErrorKind::NoSpace => Some("free some space there, or raise its quota"),
            ErrorKind::NoBucket => Some("create it, or correct the URL"),
            ErrorKind::Unreachable => Some("see whether this machine's network and the store work"),
            _ => None,
        }
    }
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.operation.doing())?;
        match &self.name {
            Some(name) => write!(f, "{}/{name}", self.place.trim_end_matches('/'))?,
            None => f.write_str(&self.place)?,
        }
        write!(f, " failed: {}", self.detail)?;
        self.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_error_says_what_was_done_where_why_and_what_to_do() {
        let name = ObjectName::new("lease.json").unwrap();
        let place = "s3://bucket/job";
        let error = ObjectError::new(Operation::Swap, place, Some(&name), ErrorKind::ClockOff, "the clock is off");
        let text = error.to_string();
        assert!(text.starts_with("replacing s3://bucket/job/lease.json failed: the clock is off; set this"), "{text}");
        let error = ObjectError::new(Operation::List, place, None, ErrorKind::Unreachable, "no answer for 30 s");
        let text =
            "listing s3://bucket/job failed: no answer for 30 s; see whether this machine's network and the store work";
        assert_eq!(error.to_string(), text);
        assert!(error.is_worth_retrying() && !error.is_not_there());
    }
}
