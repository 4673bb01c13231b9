//! The small JSON documents of a job.
//!
//! Invariant: a document that another release wrote with more fields is read all the same; one that does not parse is
//! an error that names it. None holds a credential. Deliberately not here: their names (layout).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use ckptd_core::ids::{RunId, StateRoot};

use crate::holder::Holder;
use crate::layout::{ContentHash, MarkerName};

/// The version of the layout that is written, and the newest that is read.
pub const VERSION: u32 = 1;

/// `run.json`: which training the job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`VERSION`] of the layout.
    pub version: u32,
    /// The training.
    pub run_id: RunId,
}

/// 128 random bits as hex, by which a process knows what it wrote itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(pub String);

impl Nonce {
    /// A new one.
    ///
    /// # Errors
    /// Where the system gives no random bits.
    pub fn random() -> ckptd_core::Result<Nonce> {
        Ok(Nonce(RunId::random()?.into()))
    }
}

/// Who owns the job: `lease.json`, and the files in `epochs/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Counts the ownerships, from 1.
    pub epoch: u64,
    /// The owner's own.
    pub nonce: Nonce,
    /// Grows with each sign of life.
    pub counter: u64,
    /// Sequence number of the snapshot that this ownership goes on from; 0: from the beginning.
    pub base: u64,
    /// The owner has left: the job is free.
    pub released: bool,
    /// After so long without a sign of life the job is free, in milliseconds.
    pub ttl_ms: u64,
    /// Which process it is.
    pub holder: Holder,
}

/// How a snapshot was checked at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checked {
    /// All of it was read back.
    Whole,
    /// The store confirmed a digest of every part.
    Digests,
    /// A share of it was read back: not the same as verified.
    Sampled,
}

impl Checked {
    /// Whether every byte was checked.
    pub fn is_verified(self) -> bool {
        self != Checked::Sampled
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Checked::Whole | Checked::Digests => "verified",
            Checked::Sampled => "sampled",
        }
    }
}

/// `job.json`: the job as its file says, for a machine that has only the URL. What of it is taken is for the reader to
/// decide: whoever may write there may write anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// [`VERSION`] of the layout.
    pub version: u32,
    /// The sections of the job file, as JSON.
    pub config: serde_json::Value,
}

/// A file that snapshots share and that lies in `blobs/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRecord {
    /// What it is called on the machine that fetches it: "tokens.bin".
    pub name: String,
    /// Hash of its content.
    pub hash: ContentHash,
    /// Its length.
    pub bytes: u64,
}

/// A commit marker: a snapshot is here, and was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Marker {
    /// [`VERSION`] of the layout.
    pub version: u32,
    /// By which the writer knows that it wrote this.
    pub nonce: Nonce,
    /// The training.
    pub run_id: RunId,
    /// Which ownership of the job wrote it.
    pub epoch: u64,
    /// The snapshot's place in the run.
    pub seq: u64,
    /// Steps completed.
    pub step: u64,
    /// The identity of the state.
    pub root: StateRoot,
    /// Hash of the file, and with it its name in `data/`.
    pub file_hash: ContentHash,
    /// Length of the file.
    pub bytes: u64,
    /// Bytes of its tensors.
    pub raw_bytes: u64,
    /// When the snapshot was taken, on the clock of its machine.
    pub created_at: Timestamp,
    /// Its parameters and its loss are finite.
    pub healthy: bool,
    /// Validation loss of exactly this state.
    pub val_loss: Option<f64>,
    /// How it was checked here.
    pub checked: Checked,
    /// What a machine needs besides.
    #[serde(default)]
    pub blobs: Vec<BlobRecord>,
}

impl Marker {
    /// Its name in `commits/`.
    pub fn name(&self) -> MarkerName {
        MarkerName::new(self.epoch, self.seq, &self.file_hash)
    }
}

/// The time between the two phases of a deletion: how long a write that was given up may take to land, with room.
pub const TRASH_TIME: SignedDuration = SignedDuration::from_hours(1);

/// `trash/`: the first phase of a deletion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrashRecord {
    /// The marker that was taken away.
    pub marker: Marker,
    /// Which ownership did that.
    pub by_epoch: u64,
    /// When, on the clock of its machine.
    pub at: Timestamp,
}

/// `trash/`: a file in `blobs/` that no marker names any longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnnamedRecord {
    /// Hash of the file.
    pub hash: ContentHash,
    /// Its length.
    pub bytes: u64,
    /// Since when, on the clock of the machine that saw it.
    pub at: Timestamp,
}

/// `history/`: the parts of the history of a training, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// [`VERSION`] of the layout.
    pub version: u32,
    /// The training.
    pub run_id: RunId,
    /// All of them.
    pub parts: Vec<HistoryPartRecord>,
}

/// A part of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPartRecord {
    /// Hash of its content.
    pub hash: ContentHash,
    /// Its length.
    pub bytes: u64,
    /// It is complete; else it is the beginning of a file that grows.
    pub is_packed: bool,
}

/// `uploads/`: what has to be aborted where its process does not come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// The store's name of the upload.
    pub upload_id: String,
    /// Length of the file.
    pub bytes: u64,
    /// Length of every part but the last.
    pub part_bytes: u64,
}
