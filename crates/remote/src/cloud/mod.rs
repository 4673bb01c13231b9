//! Object stores that are reached by HTTP: S3 and what speaks like it, Google Cloud Storage, Azure.
//!
//! [`http`]: requests that end when nothing moves; [`storage`]: the trait over the client library; [`answers`]: what an
//! error of that library means; [`lifecycle`]: what becomes of parts that nobody completes; [`opening`]: what is the
//! same in opening each; [`s3`], [`google`], [`azure`]: settings and credentials of each.

mod answers;
mod azure;
mod google;
mod http;
mod lifecycle;
mod opening;
mod profile;
mod profile_keys;
mod s3;
mod storage;

pub use azure::open as open_azure;
pub use google::open as open_google;
pub use s3::open as open_s3;
