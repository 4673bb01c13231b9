//! `[status]` of the job file: where a running job can be asked and looked at.
//!
//! Invariant: a page that others can reach has a token of the user's own.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[status]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusSection {
    /// Empty: in the store.
    pub socket: PathBuf,
    /// Where the page and the metrics are served; `None`: nowhere.
    pub http: Option<SocketAddr>,
    /// The page needs no token.
    pub http_open: bool,
    /// Holds the token; `None`: one is made in the store.
    pub http_token_file: Option<PathBuf>,
    /// Names besides this machine's own under which the page is reached.
    pub http_hosts: Vec<String>,
    /// The metrics as a file, for node_exporter; `None`: none.
    pub metrics_file: Option<PathBuf>,
}
