//! The operating system: file-system calls, durable writes.

pub mod block_writer;
pub mod faults;
pub mod fs;
