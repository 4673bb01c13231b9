//! Receipts: that a snapshot was read back from the device, remembered as a small file.
//!
//! Invariant: a receipt is trusted only while the file is, by size, times, inode and the hash of its trailer, the very
//! file that was read back. It spares reading it again for a listing; a resume hashes what it loads all the same.
//! Deliberately not here: the reading back (verify).

use serde::{Deserialize, Serialize};

use super::read::SnapshotReader;
use super::{format, layout};
use crate::error::{Error, Result};
use crate::ids::{SnapshotId, StateRoot};
use crate::os::dir::Dir;
use crate::os::stamp::FileStamp;

/// That a snapshot was read back, chunk by chunk, and matched its hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Hash of the trailer, which covers every byte of the file.
    pub file_hash: String,
    /// Root that the manifest says.
    pub root: StateRoot,
    /// Size of the file.
    pub bytes: u64,
    /// Number of the file in its file system.
    pub inode: u64,
    /// Time of its last write, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Time of its last change, in nanoseconds since 1970.
    pub changed_ns: i128,
    /// When it was read back.
    pub verified_at: jiff::Timestamp,
}

/// Largest receipt that is read.
const MAX_RECEIPT: u64 = 64 << 10;

impl Receipt {
    /// Of the file that was read back through `reader` and had this stamp.
    pub fn new(reader: &SnapshotReader, stamp: &FileStamp) -> Receipt {
        Receipt {
            file_hash: format::hex(&reader.file_hash()),
            root: reader.manifest().root.clone(),
            bytes: stamp.bytes,
            inode: stamp.inode,
            modified_ns: stamp.modified_ns(),
            changed_ns: stamp.changed_ns(),
            verified_at: jiff::Timestamp::now(),
        }
    }

    /// Whether it speaks of the file that is there now.
    pub fn covers(&self, stamp: &FileStamp, file_hash: &format::Hash) -> bool {
        self.file_hash == format::hex(file_hash)
            && self.bytes == stamp.bytes
            && self.inode == stamp.inode
            && self.modified_ns == stamp.modified_ns()
            && self.changed_ns == stamp.changed_ns()
    }

    /// Makes the receipt of the snapshot `id` durable, in place of an older one.
    pub fn write(&self, receipts: &Dir, id: &SnapshotId) -> Result<()> {
        let json =
            serde_json::to_vec_pretty(self).map_err(|e| Error::Other(format!("writing the receipt of {id}: {e}")))?;
        receipts.write_durably(&layout::receipt_file(id), &json)
    }

    /// `None` where it is missing or cannot be read: the snapshot then counts as not verified.
    pub fn read(receipts: &Dir, id: &SnapshotId) -> Option<Receipt> {
        let bytes = receipts.read_small(&layout::receipt_file(id), MAX_RECEIPT).ok()??;
        serde_json::from_slice(&bytes).ok()
    }
}
