//! ckptd's GPT-2 worker as a library: `main.rs` is the training loop over these modules.
//!
//! Modules in reading order: [`device`] (where and with how many threads), [`gpt2`] (the model and its gradients),
//! [`capture`] (the training state and snapshots of it that do not stop the training), [`optim`] (the update).

pub mod capture;
pub mod device;
pub mod gpt2;
pub mod optim;
