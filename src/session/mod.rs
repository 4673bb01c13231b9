//! How long a session lasts, and what is due when.

pub mod clock;
pub mod notice;

pub use notice::{Call, Notice};
