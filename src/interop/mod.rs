//! To and from what others read and write: Hugging Face folders, PyTorch's `.pt` files, safetensors, bundles.
//!
//! Invariant: everything read here comes from strangers. Nothing in a file is executed; every length, count and offset
//! is held against the file's size before anything is allocated or mapped; nothing is written but under the target
//! that the caller named. Deliberately not here: the store's own format (store), training (the worker).
//!
//! In reading order: [`mapped`], [`archive`], [`safetensors`], [`torch_pt`], [`hf`].

pub mod archive;
pub mod hf;
pub mod mapped;
pub mod safetensors;
pub mod torch_pt;
