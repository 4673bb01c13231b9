//! Safetensors files: [`reader`] takes tensors in place of a memory mapping, [`writer`] writes them.
//!
//! Deliberately not here: folders and shards (hf).

pub mod reader;
pub mod writer;

pub use reader::{SafetensorsFile, check_name, open};
pub use writer::{TensorSpec, WrittenFile, write};
