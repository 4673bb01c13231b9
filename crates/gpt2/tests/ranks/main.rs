//! Many ranks, one result: plain processes that find one another through the environment, as any launcher sets it. A
//! file is a promise.
#![allow(clippy::unwrap_used)]

mod apart;
mod harness;
mod losses;
mod refusals;
mod results;
