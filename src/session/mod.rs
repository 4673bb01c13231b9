//! How long a session lasts, and what is due when.

pub mod clock;
pub mod notice;
pub mod sources;

pub use notice::{Call, Notice};
