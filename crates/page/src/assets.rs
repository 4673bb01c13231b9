//! The files of the page, which are part of the program, and the headers that keep it to itself.
//!
//! Invariant: nothing is loaded from elsewhere, no script and no style stands in a document, and nothing of a job is
//! written into one: the scripts fetch data and set it as text.

use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

/// A file of the page.
#[derive(Clone, Copy)]
pub(crate) struct PageFile {
    pub(crate) name: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) text: &'static str,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// What documents refer to.
pub(crate) const FILES: [PageFile; 7] = [
    PageFile { name: "page.css", content_type: "text/css; charset=utf-8", text: include_str!("../assets/page.css") },
    PageFile { name: "stream.js", content_type: JAVASCRIPT, text: include_str!("../assets/stream.js") },
    PageFile { name: "words.js", content_type: JAVASCRIPT, text: include_str!("../assets/words.js") },
    PageFile { name: "chart.js", content_type: JAVASCRIPT, text: include_str!("../assets/chart.js") },
    PageFile { name: "job.js", content_type: JAVASCRIPT, text: include_str!("../assets/job.js") },
    PageFile { name: "jobs.js", content_type: JAVASCRIPT, text: include_str!("../assets/jobs.js") },
    PageFile { name: "icon.svg", content_type: "image/svg+xml", text: include_str!("../assets/icon.svg") },
];

/// One job.
pub(crate) const JOB: &str = include_str!("../assets/job.html");
/// Several jobs.
pub(crate) const JOBS: &str = include_str!("../assets/jobs.html");
/// Where the token is asked for; `ROOT` stands for the way to the page's beginning, `NOTE` for what went wrong.
pub(crate) const LOGIN: &str = include_str!("../assets/login.html");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Headers of every answer.
pub(crate) const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];
