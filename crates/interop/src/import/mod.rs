//! What others wrote becomes a snapshot: Hugging Face folders, Trainer checkpoints, `.pt` and safetensors files,
//! bundles, snapshots from elsewhere.
//!
//! Reading order: [`load`] recognises the source and reads it (`places`: which folder is meant; `containers`: GGUF,
//! npz, llm.c; `parts`: tensors, names, dtypes; `optimizer`: the
//! moments and step of PyTorch's optimisers); [`assemble`] makes the snapshot, exactly the one that was exported where
//! the source says which that was; [`run`] commits it to a new store.
//!
//! Invariant: a source that claims to be an exported snapshot is that to the last bit, or is refused; any other source
//! is a state that a fresh training could have. Deliberately not here: the command line.

pub mod assemble;
mod containers;
pub mod load;
mod optimizer;
pub mod options;
mod parts;
mod places;
pub mod run;

pub use assemble::LoadedSource;
pub use load::{is_snapshot, load};
pub use options::{FreshOptimizer, ImportOptions};
pub use run::{ImportReport, import};
