//! Objects as files behind SFTP, through the system's `ssh`: agents, jump hosts, keys and known hosts are the user's.
//!
//! [`session`]: one connection; [`files`]: what is done with files over it; [`calls`]: calls over several connections;
//! [`storage`]: the trait over all of it.

mod calls;
mod files;
mod session;
mod storage;

pub use storage::open;
