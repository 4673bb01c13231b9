//! What any foreground service needs.
//!
//! Reading order: [`inbox`] (the one queue), [`signals`], [`user_stop`], [`verifier`], [`recorder`], [`history`],
//! [`job_file`] (threads that feed it), [`report`] and [`status`] (what clients are told), [`service`] (to the service
//! manager), [`printer`] and [`panel`], [`log_keeper`], [`order`].
//! Deliberately not here: training.

pub mod history;
pub mod inbox;
pub mod job_file;
pub mod log_keeper;
pub mod order;
pub mod panel;
pub mod printer;
pub mod recorder;
pub mod report;
pub mod service;
pub mod signals;
pub mod status;
pub mod user_stop;
pub mod verifier;
