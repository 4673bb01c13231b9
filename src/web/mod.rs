//! A job for those who look from elsewhere: a page, metrics, a file of metrics.
//!
//! Reading order: [`view`] (a report as the page shows it), [`token`] (what a reader has to know), [`metrics_file`],
//! [`page`] (of a running job). Deliberately not here: HTTP and what it looks like (ckptd-page).

pub mod metrics_file;
pub mod page;
pub mod token;
pub mod view;
