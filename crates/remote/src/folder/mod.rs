//! Objects as files in a folder: a mounted drive, a network file system, another disk.
//!
//! [`files`]: what is done with files; [`storage`]: the trait over it. Where a folder knows neither hard links nor a
//! rename that never replaces (Google Drive through FUSE), what is being created is seen while it is written.

mod files;
mod storage;

pub use files::CreateBy;
pub use storage::{FolderStorage, open};
