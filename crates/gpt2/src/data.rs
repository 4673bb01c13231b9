//! From the text or the token file that a job names to the tokens that it trains and validates on.
//!
//! The flow: `choose` decides for a tokenizer, which `tokenizer_files` reads as transformers does (`added_tokens`,
//! `token_order`, `gpt2_tokenizer`) or `tokenizer_training` trains; `files` finds the text files and hashes them;
//! `text_reader` opens them (`text_decoder`, `json_lines`, `parquet_rows`), and `text` cuts them into blocks where
//! `cut` allows it; `from_text` tokenizes them once into a file in the cache ([`crate::tokens`]), `from_tokens` takes
//! one from elsewhere; `prepare` plans and splits what a `request` asks for; `known` finds tokens that another rank has
//! opened; [`order`] says which tokens a step sees.
//!
//! Invariant: a dataset's hash stands for everything that decides its ids, and equal inputs give equal ids, on every
//! machine and with any number of threads. A file in the cache is whole or absent, and two processes may fill it at
//! once. Deliberately not here: tensors.

mod added_tokens;
mod choose;
mod cut;
mod files;
mod from_text;
mod from_tokens;
mod gpt2_tokenizer;
mod json_lines;
mod known;
pub mod order;
mod parquet_footer;
mod parquet_rows;
mod prepare;
mod request;
mod text;
mod text_decoder;
mod text_files;
mod text_reader;
mod token_order;
pub mod tokenizer;
pub mod tokenizer_files;
mod tokenizer_training;

pub use choose::end_of_text;
pub use known::{FoundTokens, KnownTokens};
pub use prepare::{DataPlan, TokenDataset, open, plan};
pub use request::{DataBefore, DataChange, DataRequest};
