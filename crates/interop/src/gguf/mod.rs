//! GGUF files of GPT-2, as llama.cpp's converter writes them and transformers reads them: [`reader`], [`writer`],
//! [`names`] (which tensor is which parameter), [`value`] (what the header says).
//!
//! Deliberately not here: quantised tensors, other architectures, the tokenizer's and the config's files (import,
//! export).

pub mod names;
pub mod reader;
pub mod value;
pub mod writer;

pub use reader::{GgufFile, MAGIC, open};
pub use value::GgufValue;
pub use writer::write;

use ckptd_core::dtype::DType;

/// What every file has, unless it says otherwise: tensors begin at multiples of this.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// The types of tensors that are read and written, with their numbers in the file.
const TYPES: [(u32, DType); 3] = [(0, DType::F32), (1, DType::F16), (30, DType::BF16)];
