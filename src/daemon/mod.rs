//! What a foreground service needs, whatever it watches over.

pub mod printer;
pub mod recorder;
pub mod service;
pub mod status;
pub mod verifier;
pub mod watcher;
