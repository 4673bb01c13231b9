//! ckptd's GPT-2 worker as a library: `main.rs` is the program over these modules.
//!
//! Modules in reading order: [`setup`] (from a config to a training that is ready), [`train`] (the training loop),
//! [`rank_session`] (how many ranks come together),
//! [`snapshots`] (taking them meanwhile), [`events`] (what the agent is told and says); below them [`torch`] (errors
//! and device) and [`process`] (threads, malloc), [`gpt2`] (the model and its gradients), [`capture`] (the training
//! state and snapshots of it that do not stop the training), [`optim`] (the update), [`ranks`] (the processes that
//! compute together) and [`reduction`] (the order in which gradients are added), [`data`] and [`tokens`] (what it
//! trains on), [`rng`], [`weights`] (weights for inference), [`probe`] (a fingerprint of the logits), [`generate`]
//! (text generation), [`merge`] (an adapter into its base model).

#![warn(unreachable_pub)]

pub mod agreement;
pub mod capture;
pub mod data;
pub mod evaluations;
pub mod events;
pub mod generate;
pub mod gpt2;
pub mod merge;
pub mod optim;
pub mod probe;
pub mod process;
pub mod rank_session;
pub mod ranks;
pub mod reduction;
pub mod rng;
pub mod setup;
pub mod snapshots;
pub mod tokens;
pub mod torch;
pub mod train;
pub mod weights;
