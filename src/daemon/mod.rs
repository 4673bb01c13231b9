//! What any foreground service needs.
//!
//! Reading order: [`inbox`] (the one queue), [`signals`], [`user_stop`], [`verifier`], [`recorder`], [`history`],
//! [`job_file`] (threads that feed it), [`hooks`] (the user's programs), [`event_file`] and
//! [`tensorboard`], [`report`] and [`status`] (what clients are told), [`service`] (to the service
//! manager), [`printer`] and [`panel`], [`log_keeper`], [`order`].
//! Deliberately not here: training.

pub mod event_file;
pub mod history;
pub mod hooks;
pub mod inbox;
pub mod job_file;
mod last_worker;
pub mod log_keeper;
pub mod order;
pub mod panel;
pub mod printer;
pub mod recorder;
pub mod report;
pub mod service;
pub mod signals;
pub mod status;
pub mod tensorboard;
pub mod user_stop;
pub mod verifier;
