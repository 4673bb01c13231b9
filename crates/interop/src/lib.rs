//! To and from what others read and write: Hugging Face folders, PyTorch's `.pt` files, safetensors, bundles.
//!
//! Invariant: everything read here comes from strangers. Nothing in a file is executed; every length, count and offset
//! is held against the file's size before anything is allocated or mapped; nothing is written but under the target
//! that the caller named. Deliberately not here: the store's own format (store), training (the worker).
//!
//! In reading order: [`limits`], [`mapped`], [`archive`], [`safetensors`], [`plain`], [`torch_pt`], [`dcp`], [`gguf`],
//! [`npz`], [`llmc`], [`foreign`], [`python_json`], [`names`], [`hf`] (reading and writing files); [`gpt2_names`],
//! [`gpt2_config`], [`gpt2_reading`] (what a GPT-2's files mean), [`adapter`] (LoRA of PEFT), [`output`];
//! [`export_record`], [`source_record`], [`export`], [`bundle`], [`import`], [`compare`], [`check`].

#![warn(unreachable_pub)]

pub mod adapter;
pub mod archive;
pub mod bundle;
pub mod check;
pub mod compare;
pub mod dcp;
pub mod export;
pub mod export_record;
pub mod footprint;
pub mod foreign;
pub mod gguf;
pub mod gpt2_config;
pub mod gpt2_names;
pub mod gpt2_reading;
pub mod hf;
pub mod import;
pub mod limits;
pub mod llmc;
pub mod mapped;
pub mod names;
pub mod npz;
pub mod output;
pub mod plain;
pub mod python_json;
pub mod safetensors;
pub mod source_record;
pub mod torch_pt;
