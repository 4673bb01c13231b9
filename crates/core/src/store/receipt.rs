//! Receipts: that a snapshot was read back from the device, remembered as a small file.
//!
//! Invariant: a receipt is trusted only while the file is, by size, times, inode and the hash of its trailer, the very
//! file that was read back. It spares reading it again for a listing; a resume hashes what it loads all the same.
//! Deliberately not here: the reading back (verify).

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::read::SnapshotReader;
use super::{format, layout};
use crate::error::{Error, Result};
use crate::os::fs::Dir;

/// That a snapshot was read back, chunk by chunk, and matched its hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Hash of the trailer, which covers every byte of the file.
    pub file_hash: String,
    pub root: String,
    pub bytes: u64,
    pub inode: u64,
    pub modified_ns: i128,
    pub changed_ns: i128,
    pub verified_at: jiff::Timestamp,
}

/// Largest receipt that is read.
const MAX_RECEIPT: u64 = 64 << 10;

impl Receipt {
    pub fn new(reader: &SnapshotReader, stat: &Stat) -> Receipt {
        Receipt {
            file_hash: format::hex(&reader.file_hash()),
            root: reader.manifest().root.clone(),
            bytes: stat.st_size as u64,
            inode: stat.st_ino,
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec as i64),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec as i64),
            verified_at: jiff::Timestamp::now(),
        }
    }

    /// Whether it speaks of the file that is there now.
    pub fn covers(&self, stat: &Stat, file_hash: &format::Hash) -> bool {
        self.file_hash == format::hex(file_hash)
            && self.bytes == stat.st_size as u64
            && self.inode == stat.st_ino
            && self.modified_ns == nanoseconds(stat.st_mtime, stat.st_mtime_nsec as i64)
            && self.changed_ns == nanoseconds(stat.st_ctime, stat.st_ctime_nsec as i64)
    }

    pub fn write(&self, receipts: &Dir, id: &str) -> Result<()> {
        let json =
            serde_json::to_vec_pretty(self).map_err(|e| Error::Other(format!("writing the receipt of {id}: {e}")))?;
        receipts.write_durably(&layout::receipt_file(id), &json)
    }

    /// `None` where there is none, or none that can be read: the snapshot then counts as not verified.
    pub fn read(receipts: &Dir, id: &str) -> Option<Receipt> {
        let bytes = receipts.read_small(&layout::receipt_file(id), MAX_RECEIPT).ok()??;
        serde_json::from_slice(&bytes).ok()
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}
