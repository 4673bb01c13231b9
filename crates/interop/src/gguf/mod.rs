//! GGUF files of GPT-2, as llama.cpp's converter writes them and transformers reads them: [`reader`], [`writer`],
//! [`names`] (which tensor is which parameter), [`value`] (what the header says).
//!
//! Deliberately not here: quantised tensors, other architectures, the tokenizer's and the config's files (import,
//! export).

pub mod names;
pub mod reader;
pub mod value;
pub mod writer;

pub use reader::{GgufFile, open};
pub use value::{GgufValue, MAGIC};
pub use writer::write;
