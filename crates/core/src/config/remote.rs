//! `[remote]` of the job file: where snapshots are replicated to, and how.
//!
//! Invariant: nothing here changes what is in a snapshot. Deliberately not here: credentials, which stand in no job
//! file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::RetentionPolicy;
use crate::text::{ByteSize, parse_duration};

/// `[remote]`. Where snapshots go changes nothing of what is in them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RemoteSection {
    /// The job's own place; `None`: snapshots stay on this machine.
    pub url: Option<String>,
    /// Another service with the protocol of the URL's scheme; `None`: as the environment says.
    pub endpoint: Option<String>,
    /// Which verified snapshots are sent.
    pub send: SendWhat,
    /// Bytes per second at most; `None`: as fast as it goes.
    pub max_rate: Option<ByteSize>,
    /// After so long without a sign of life the job is free for another machine.
    pub lease: Lease,
    /// How snapshots are checked at their destination.
    pub verify: RemoteVerify,
    /// The newest so many stay there; two always do.
    pub keep_last: usize,
    /// So many with the lowest validation loss stay there.
    pub keep_best: usize,
    /// Those whose step is a multiple of it stay there.
    pub keep_every_steps: Option<u64>,
    /// The newest of each of the last so many hours stays there.
    pub keep_hourly: usize,
    /// The newest of each of the last so many days stays there.
    pub keep_daily: usize,
    /// What the files there may take in all; rules that do not bind give way.
    pub max_bytes: Option<ByteSize>,
}

/// `[remote] send`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SendWhat {
    /// Each one; where the link is slower, the newest.
    Every,
    /// Those with the lowest validation loss so far, and the last one of a session.
    Best,
    /// The last one of a session.
    Final,
}

/// `[remote] lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Lease {
    /// The job is free after so long without a sign of life.
    Ttl(Duration),
    /// One machine at a time runs the job, and a person sees to that.
    None,
}

/// `[remote] verify`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RemoteVerify {
    /// As the store confirms by digests, or read back whole.
    Auto,
    /// Read back whole.
    Whole,
    /// A share of the chunks is read back: such a snapshot is called sampled, not verified.
    Share(f64),
}

impl Default for RemoteSection {
    fn default() -> RemoteSection {
        let RetentionPolicy { keep_last, keep_best, keep_every_steps, keep_hourly, keep_daily, max_bytes } =
            RetentionPolicy::default();
        RemoteSection {
            url: None,
            endpoint: None,
            send: SendWhat::Every,
            max_rate: None,
            lease: Lease::Ttl(Duration::from_secs(60)),
            verify: RemoteVerify::Auto,
            keep_last,
            keep_best,
            keep_every_steps,
            keep_hourly,
            keep_daily,
            max_bytes,
        }
    }
}

impl RemoteSection {
    /// Which snapshots stay there.
    pub fn retention(&self) -> RetentionPolicy {
        let RemoteSection { keep_last, keep_best, keep_every_steps, keep_hourly, keep_daily, max_bytes, .. } = *self;
        RetentionPolicy { keep_last, keep_best, keep_every_steps, keep_hourly, keep_daily, max_bytes }
    }
}

impl TryFrom<String> for Lease {
    type Error = String;
    fn try_from(text: String) -> Result<Lease, String> {
        match text.as_str() {
            "none" => Ok(Lease::None),
            _ => parse_duration(&text).map(Lease::Ttl),
        }
    }
}

impl From<Lease> for String {
    fn from(lease: Lease) -> String {
        match lease {
            Lease::None => "none".into(),
            Lease::Ttl(ttl) => humantime::format_duration(ttl).to_string(),
        }
    }
}

impl TryFrom<String> for RemoteVerify {
    type Error = String;
    fn try_from(text: String) -> Result<RemoteVerify, String> {
        match text.as_str() {
            "auto" => Ok(RemoteVerify::Auto),
            "whole" => Ok(RemoteVerify::Whole),
            _ => match text.parse::<f64>() {
                Ok(share) if share > 0.0 && share < 1.0 => Ok(RemoteVerify::Share(share)),
                _ => Err(format!("{text:?} is not \"auto\", \"whole\" or a share such as \"0.05\"")),
            },
        }
    }
}

impl From<RemoteVerify> for String {
    fn from(verify: RemoteVerify) -> String {
        match verify {
            RemoteVerify::Auto => "auto".into(),
            RemoteVerify::Whole => "whole".into(),
            RemoteVerify::Share(share) => share.to_string(),
        }
    }
}
