//! The orders in which the gradients of a step's micro-batches are added, and their numbers.
//!
//! Deliberately not here: adding.

use crate::gpt2::NormGradients;
use ckptd_core::arithmetic::{ArithmeticNumber, KnownArithmetic};

/// Each micro-batch's gradient is computed from zero, and these are added as a binary tree over their indices.
pub const TREE: ArithmeticNumber = ArithmeticNumber::new(2);

/// As [`TREE`], and the gradients of layer norms are added up by fixed blocks of rows, whatever the number of threads.
pub const FIXED_NORMS: ArithmeticNumber = ArithmeticNumber::new(3);

/// The arithmetic of this worker: `gpt2`, `optim` and this as they are, and the older ones that they still compute.
pub const ARITHMETIC: KnownArithmetic =
    KnownArithmetic { newest: FIXED_NORMS, older: &[ArithmeticNumber::FIRST, TREE] };

/// How a step's gradient comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumOrder {
    /// Each micro-batch is added into the sum while its backward pass runs: one after the other, on one rank.
    Sequential,
    /// By a tree.
    Tree,
}

/// How the gradients of layer norms are added up under `arithmetic`.
pub fn norm_gradients(arithmetic: ArithmeticNumber) -> NormGradients {
    if arithmetic >= FIXED_NORMS { NormGradients::FixedBlocks } else { NormGradients::PerThread }
}

impl SumOrder {
    /// Of a training under `arithmetic`, whose steps have this many micro-batches.
    pub fn of(arithmetic: ArithmeticNumber, micro_batches: u64) -> SumOrder {
        if arithmetic.is_first() && micro_batches > 1 { SumOrder::Sequential } else { SumOrder::Tree }
    }
}
