//! From the text or the token file that a job names to the tokens that it trains and validates on.
//!
//! The flow: `files` finds the text files and hashes them; [`tokenizer`] loads a tokenizer or trains one; text is read
//! in blocks (`text`) and tokenized once into a file in the cache ([`crate::tokens`]), which `prepare` maps and splits;
//! [`order`] says which tokens a step sees.
//!
//! Invariant: a dataset's hash stands for everything that decides its ids, and equal inputs give equal ids, on every
//! machine and with any number of threads. A file in the cache is whole or absent, and two processes may fill it at
//! once. Deliberately not here: tensors.

mod files;
pub mod order;
mod prepare;
mod text;
pub mod tokenizer;

pub use prepare::{DataRequest, TokenDataset, open};
