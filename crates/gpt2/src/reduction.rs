//! From the gradients of micro-batches to the one gradient of a step, on any number of ranks.
//!
//! Reading order: `order` (orders of additions, and their numbers), `tree` (which sums a rank makes, and how they are
//! added), `parts` (which rank owns which values), `gradient` (doing it).
//!
//! Invariant: the result is a function of the micro-batches' gradients and the order alone, to the last bit: neither of
//! how many ranks there are, nor of which of them computed what. The library's own reductions are not used: theirs
//! depends on the number of ranks and on where a value lies. Deliberately not here: sending (`ranks`).

mod gradient;
mod order;
mod parts;
mod tree;

pub use gradient::{Gathers, StepGradient, owned_elements};
pub use order::{ARITHMETIC, FIXED_NORMS, SumOrder, TREE, norm_gradients};
