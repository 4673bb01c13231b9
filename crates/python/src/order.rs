//! The order of an epoch, as the GPT-2 worker has it.

use ckptd_core::permutation::KeyedPermutation;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// What stands at `count` places of an epoch's order of `length` numbers: at `first`, and at each `stride`-th after it;
/// past its end the order begins again.
#[pyfunction]
pub(crate) fn epoch_order(
    length: u64,
    seed: u64,
    epoch: u64,
    first: u64,
    stride: u64,
    count: usize,
) -> PyResult<Vec<u64>> {
    if length == 0 {
        return Err(PyValueError::new_err("an order of no numbers"));
    }
    let order = KeyedPermutation::of_epoch(length, seed, epoch);
    let places = (0..count as u64).map(|index| first.wrapping_add(index.wrapping_mul(stride)) % length);
    Ok(places.map(|place| order.at(place)).collect())
}
