//! Small JSON documents at the top of a store: the job that ran there last, and the sessions so far.
//!
//! Invariant: a record is replaced durably and whole. One that another release wrote and this one does not understand
//! reads as absent: records only make plans and messages better. Deliberately not here: what stands in them.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::handle::Store;
use super::layout;
use super::lock::StoreLock;
use crate::error::{Error, Result};
use crate::ids::RunId;

/// Which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The config of the job that ran in the store last, so that its retention and its status socket are known without
    /// its file.
    Job,
    /// The sessions so far, and what they taught about costs.
    Sessions,
    /// The store's place in the history of a training that several machines may run.
    Remote,
    /// What of the last session is at the job's remote, for `status`.
    Replication,
    /// How far the upload of a snapshot is, so that it can be gone on with.
    Upload,
}

impl Record {
    const fn file(self) -> &'static str {
        match self {
            Record::Job => layout::JOB,
            Record::Sessions => layout::SESSIONS,
            Record::Remote => layout::REMOTE,
            Record::Replication => layout::REPLICATION,
            Record::Upload => layout::UPLOAD,
        }
    }

    /// Largest record that is read, in bytes.
    const fn max_bytes(self) -> u64 {
        match self {
            Record::Job => 1 << 20,
            Record::Sessions | Record::Remote | Record::Replication | Record::Upload => 4 << 20,
        }
    }
}

/// Largest token of a page that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

impl Store {
    /// What a reader of the job's page has to know; it is made when it is asked for first, for its owner's eyes only.
    pub fn page_token(&self, _lock: &StoreLock) -> Result<String> {
        let kept = self.dir.read_small(layout::PAGE_TOKEN, MAX_TOKEN_BYTES)?;
        if let Some(token) = kept.and_then(|bytes| page_token(&bytes)) {
            return Ok(token);
        }
        let token = RunId::random()?.to_string();
        self.dir.write_durably(layout::PAGE_TOKEN, format!("{token}\n").as_bytes())?;
        Ok(token)
    }

    /// The record as it was written last; `None` where it is missing, or not one that this release understands. Fails
    /// where the file is there and cannot be read.
    pub fn read_record<T: DeserializeOwned>(&self, record: Record) -> Result<Option<T>> {
        let json = self.dir.read_small(record.file(), record.max_bytes())?;
        Ok(json.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// Replaces the record durably.
    pub fn write_record<T: Serialize>(&self, _lock: &StoreLock, record: Record, value: &T) -> Result<()> {
        let json = match record {
            // People read the job; the sessions are many.
            Record::Job => serde_json::to_vec_pretty(value),
            Record::Sessions | Record::Remote | Record::Replication | Record::Upload => serde_json::to_vec(value),
        };
        let json = json.map_err(|e| Error::Other(format!("writing {}: {e}", record.file())))?;
        self.dir.write_durably(record.file(), &json)
    }
}

/// The shortest token of a page.
pub const MIN_PAGE_TOKEN: usize = 16;

/// The token in a file of one; `None` where that is none: it is too short, or has spaces or what is no text in it.
pub fn page_token(bytes: &[u8]) -> Option<String> {
    let token = std::str::from_utf8(bytes).ok()?.trim();
    (token.len() >= MIN_PAGE_TOKEN && token.chars().all(|c| c.is_ascii_graphic())).then(|| token.to_owned())
}
