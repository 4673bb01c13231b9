//! What the tests of all packages share.
//!
//! [`random`] and [`text`]: the same numbers and the same words for the same seed; [`small`] and [`stepped`]:
//! training states; [`curve`]: the history of one; [`job`]: a job in a folder of its own and the programs that run
//! it; [`worker`]: a worker that trains nothing; [`python`]: the interpreter with torch and transformers;
//! [`servers`]: object stores, and a proxy that breaks HTTP on purpose.
//!
//! Invariant: nothing here depends on the project's own sources or on time, so that a test's training is the same
//! whatever else changes. Deliberately not here: the paths of the programs, which only the package that builds them
//! knows.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on ends here

pub mod curve;
pub mod job;
pub mod python;
pub mod random;
pub mod servers;
pub mod small;
pub mod stepped;
pub mod text;
pub mod worker;
