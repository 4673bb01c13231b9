//! A snapshot becomes what others load: a Hugging Face folder, a `.pt` file, a safetensors file, a bundle.
//!
//! Reading order: [`options`] and [`run`] (one export), `source` (the snapshot), `folder` and `target` (Hugging Face),
//! `torch` (`.pt` and the optimiser's state, with `hyper`), `safetensors`, `job_file` (the job that goes with a state);
//! `trainer`, `dcp`, `nanogpt` and `gguf` (what else others go on from);
//! bundles are packed in [`crate::bundle`].
//!
//! Invariant: what is written appears whole, by a rename, or not at all; every tensor's bytes are those that were
//! saved unless another float type was asked for. Deliberately not here: the command line.

mod dcp;
mod folder;
mod gguf;
mod hyper;
mod job_file;
mod nanogpt;
pub mod options;
pub mod run;
mod safetensors;
mod shape;
mod source;
mod target;
mod torch;
mod trainer;

pub use options::{ExportFormat, ExportOptions, MAX_SHARD_BYTES};
pub use run::{ExportReport, export};
