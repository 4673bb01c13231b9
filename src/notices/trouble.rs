//! A source that does not answer, in the log.

use tracing::{debug, info, warn};

use crate::once_flag::OnceFlag;

/// One line of the log per trouble, however often it is met, and one when it is over.
pub(super) struct SourceTrouble {
    name: &'static str,
    told: OnceFlag,
}

impl SourceTrouble {
    /// No trouble yet, with the source `name`.
    pub(super) fn new(name: &'static str) -> SourceTrouble {
        SourceTrouble { name, told: OnceFlag::default() }
    }

    /// `what` is wrong with an answer.
    pub(super) fn met(&mut self, what: &str) {
        let name = self.name;
        if self.told.raise() {
            warn!("{name}: {what}; the training goes on, and it is asked again");
        } else {
            debug!("{name}: {what}");
        }
    }

    /// There was an answer.
    pub(super) fn over(&mut self) {
        if self.told.lower() {
            info!("{}: it answers again", self.name);
        }
    }
}
