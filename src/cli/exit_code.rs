//! Exit codes besides an error's own.

pub(super) const DONE: u8 = 0;
/// The command worked, and what it looked at is damaged, differs or is not finite.
pub(super) const CHECK_FAILED: u8 = 1;
/// EX_TEMPFAIL: the session is over, run it again to go on.
pub(super) const RESUME_LATER: u8 = 75;
