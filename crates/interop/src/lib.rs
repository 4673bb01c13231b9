//! To and from what others read and write: Hugging Face folders, PyTorch's `.pt` files, safetensors, bundles.
//!
//! Invariant: everything read here comes from strangers. Nothing in a file is executed; every length, count and offset
//! is held against the file's size before anything is allocated or mapped; nothing is written but under the target
//! that the caller named. Deliberately not here: the store's own format (store), training (the worker).
//!
//! In reading order: [`mapped`], [`archive`], [`safetensors`], [`torch_pt`], [`hf`] (reading and writing files) within [`limits`];
//! [`model`] (GPT-2's names), [`output`]; [`state`], [`export`], [`bundle`], [`import`],
//! [`check`].

pub mod archive;
pub mod bundle;
pub mod check;
pub mod export;
pub mod hf;
pub mod import;
pub mod limits;
pub mod mapped;
pub mod model;
pub mod output;
pub mod safetensors;
pub mod state;
pub mod torch_pt;
