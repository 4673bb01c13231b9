//! What others wrote becomes a snapshot: Hugging Face folders, Trainer checkpoints, `.pt` and safetensors files,
//! bundles, snapshots from elsewhere.
//!
//! Reading order: [`load`] recognises the source and reads it (`places`: which folder is meant) into [`parts`]
//! (`pt_dict`: the entries of a `.pt`; `containers`: GGUF, npz, llm.c; `trainer`: the files of a Trainer;
//! [`optimizer_state`]: an optimiser's state as it stands). [`assemble`] makes the snapshot of them, exactly the one
//! that was exported where the source says which that was, else by [`crate::gpt2_reading`] and `optimizer`
//! (`optimizer_kind`: which one it is; `optimizer_order`: whose moments they are); [`run`] commits it to a new store.
//!
//! Invariant: a source that claims to be an exported snapshot is that to the last bit, or is refused; any other source
//! is a state that a fresh training could have. Deliberately not here: the command line.

pub mod assemble;
mod containers;
pub mod load;
mod optimizer;
mod optimizer_kind;
mod optimizer_order;
pub mod optimizer_state;
pub mod options;
pub mod parts;
mod places;
mod pt_dict;
pub mod run;
mod trainer;

pub use assemble::LoadedSource;
pub use load::{is_snapshot, load, load_model};
pub use options::{FreshOptimizer, ImportOptions, LoadOptions};
pub use places::{SourcePlace, find_adapter};
pub use run::{ImportReport, import};
