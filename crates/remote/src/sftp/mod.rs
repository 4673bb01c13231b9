//! Objects as files behind SFTP, through the system's `ssh`: agents, jump hosts, keys and known hosts are the user's.
//!
//! [`session`]: one connection; [`files`]: what is done with files over it; [`storage`]: the trait over both.

mod files;
mod session;
mod storage;

pub use storage::open;
