//! PyTorch's `.pt` files (`torch.save`, the zip format): read without Python and without executing anything.
//!
//! The archive holds `<folder>/data.pkl`, a pickle that describes the object, and `<folder>/data/<key>`, the bytes of
//! each storage, stored as they are and aligned, so tensors take them from a memory mapping in place.
//!
//! Reading order: [`file`] opens an archive; `machine` interprets its pickle onto the `heap`, where `object` makes
//! tensors of calls to the allowed [`globals`]; `tree` turns the heap into [`value`]s. [`pickler`] and [`writer`] go
//! the other way. Deliberately not here: what the keys of a state dict mean (hf, import).

pub mod file;
pub mod globals;
mod heap;
mod machine;
mod object;
pub mod pickler;
mod tree;
pub mod value;
pub mod writer;

pub use file::{PtFile, plain_pickle};
pub use value::{PtOpaque, PtStorage, PtValue, TensorRef};
