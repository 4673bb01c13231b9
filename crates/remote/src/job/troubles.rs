//! What does not work between a session and its remote, and what people were told of it.
//!
//! Invariant: of each kind of trouble people are told once, until everything works again; and that it does, once.

use std::collections::BTreeSet;
use std::time::Duration;

use super::error::JobError;
use crate::errors::ErrorKind;

/// What a trouble concerns: each of these works or does not, whatever the others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Concern {
    /// Who owns the job.
    Lease,
    /// Snapshots and their markers.
    Sending,
    /// What is taken away there.
    Retention,
}

/// The troubles of now.
#[derive(Debug, Default)]
pub struct Troubles {
    concerns: BTreeSet<Concern>,
    told: BTreeSet<Option<ErrorKind>>,
    /// What was known of the lease at its last trouble: until when markers might be written.
    lease_at: Option<Duration>,
}

impl Troubles {
    /// Something failed. Whether that is news.
    pub fn failed(&mut self, concern: Concern, error: &JobError, write_until: Option<Duration>) -> bool {
        let kind = match error {
            JobError::There(error) => Some(error.kind),
            JobError::Here(_) => None,
        };
        self.note(concern, write_until);
        self.told.insert(kind)
    }

    /// The lease was not renewed in time, and nobody knows why. Whether that is news.
    pub fn suspended(&mut self, write_until: Option<Duration>) -> bool {
        self.note(Concern::Lease, write_until);
        self.told.is_empty() && self.told.insert(None)
    }

    fn note(&mut self, concern: Concern, write_until: Option<Duration>) {
        self.concerns.insert(concern);
        if concern == Concern::Lease {
            self.lease_at = write_until;
        }
    }

    /// Something works. Whether that is news: everything does again.
    pub fn works(&mut self, concern: Concern) -> bool {
        if !self.concerns.remove(&concern) || !self.concerns.is_empty() {
            return false;
        }
        self.told.clear();
        true
    }

    /// Whether the lease was renewed since it was in trouble.
    pub fn lease_is_back(&self, write_until: Option<Duration>) -> bool {
        self.concerns.contains(&Concern::Lease) && write_until > self.lease_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::{ObjectError, Operation};

    #[test]
    fn each_kind_is_told_once_until_everything_works_again() {
        let mut troubles = Troubles::default();
        let error = |kind| JobError::from(ObjectError::new(Operation::Put, "s3://b/j", None, kind, "no"));
        let (full, down) = (error(ErrorKind::NoSpace), error(ErrorKind::Unreachable));
        let at = |seconds| Some(Duration::from_secs(seconds));
        assert!(troubles.failed(Concern::Lease, &down, at(10)));
        assert!(!troubles.suspended(at(10)), "why is known");
        assert!(!troubles.failed(Concern::Sending, &down, at(10)));
        assert!(troubles.failed(Concern::Sending, &full, at(10)), "another kind");
        assert!(!troubles.lease_is_back(at(10)) && troubles.lease_is_back(at(11)));
        assert!(!troubles.works(Concern::Lease), "sending does not");
        assert!(!troubles.works(Concern::Retention), "that was none");
        assert!(troubles.works(Concern::Sending) && !troubles.works(Concern::Sending));
        assert!(troubles.suspended(None) && troubles.works(Concern::Lease));
    }
}
