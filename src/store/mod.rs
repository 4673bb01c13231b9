//! The store.
pub mod codec;
