//! The operating system: file-system calls, durable writes, processes, ports.
//!
//! Invariant: nothing here knows what a store is.

pub mod block_writer;
pub mod dir;
pub mod faults;
pub mod fs;
pub mod port;
pub mod process;
pub mod publish;
pub mod stamp;
pub mod temporary;
