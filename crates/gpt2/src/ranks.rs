//! The ranks of a training: the processes that compute it together.
//!
//! Reading order: `group` (the seam: five calls, and the one rank that is alone), `place` (which rank this process is,
//! and where rank 0 is), `secret` and `frame` (who may enter, and what is said), `hub` and `link` (rank 0's side and
//! the others'), `mailbox` (what has arrived), `transport` (gradients: over c10d's gloo, `mesh`, or an MPI library,
//! `mpi`), `pace` (which rank the others wait for), `together` (the group made of these), `launch` (ranks that rank 0
//! starts itself), `sameness` (what must be equal on all of them), `spread` (what rank 0 gives to those that lack it).
//!
//! Invariant: every wait ends: with what was waited for, after a time, or because a rank is gone, which is named.
//! Nothing of a rank is believed before it has proved that it knows the job's secret. Deliberately not here: what is
//! computed, and in which order gradients are added (`reduction`).

mod frame;
mod group;
mod held;
mod hub;
mod launch;
mod link;
mod mailbox;
mod mesh;
#[cfg(feature = "mpi")]
mod mpi;
mod pace;
mod place;
mod sameness;
mod secret;
mod spread;
mod together;
mod transport;

pub use group::{Alone, Incoming, Outgoing, RankGroup};
pub(crate) use group::{numbers_in, share};
pub use held::{HeldPart, HeldParts, HeldStep, PartHolder, PartServer};
pub use hub::RanksEnd;
pub use launch::LaunchedRanks;
pub use link::{MOMENTS_THREAD, THREAD as RANKS_THREAD};
pub use place::{RankPlace, say};
pub use sameness::{RankFacts, libtorch_kind, processor_flags, processor_kind};
pub use secret::JobSecret;
pub use spread::{SpreadEnd, spread};
pub use together::{Follower, Leader, RankVoice};
pub use transport::finish;
