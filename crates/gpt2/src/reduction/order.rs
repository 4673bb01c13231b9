//! The orders in which the gradients of a step's micro-batches are added, and their numbers.
//!
//! Deliberately not here: adding.

use ckptd_core::arithmetic::{ArithmeticNumber, KnownArithmetic};

/// Each micro-batch's gradient is computed from zero, and these are added as a binary tree over their indices.
pub const TREE: ArithmeticNumber = ArithmeticNumber::new(2);

/// The arithmetic of this worker: `gpt2`, `optim` and this as they are, and the older ones that they still compute.
pub const ARITHMETIC: KnownArithmetic = KnownArithmetic { newest: TREE, older: &[ArithmeticNumber::FIRST] };

/// How a step's gradient comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumOrder {
    /// Each micro-batch is added into the sum while its backward pass runs: one after the other, on one rank.
    Sequential,
    /// By a tree.
    Tree,
}

/// The arithmetic that a training with this many micro-batches per step begins with. With one there is nothing to add,
/// and the first number keeps its roots.
pub fn begins_with(micro_batches: u64) -> ArithmeticNumber {
    if micro_batches > 1 { ARITHMETIC.newest } else { ArithmeticNumber::FIRST }
}

impl SumOrder {
    /// Of a training under `arithmetic`, whose steps have this many micro-batches.
    pub fn of(arithmetic: ArithmeticNumber, micro_batches: u64) -> SumOrder {
        if arithmetic.is_first() && micro_batches > 1 { SumOrder::Sequential } else { SumOrder::Tree }
    }
}
