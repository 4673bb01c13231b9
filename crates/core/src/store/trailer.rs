//! The trailer: the last bytes of a snapshot file, which find and hash all the rest.
//!
//! Invariant: what it says agrees with the file's length, and it hashes itself.

use std::ops::Range;
use std::path::Path;

use super::format::{HEAD_BYTES, HEAD_MAGIC, Hash, MAX_MANIFEST, RECORD_BYTES, VERSION, hash_at, newer, u64_at};
use crate::error::{Error, Result};

/// Length of the trailer.
pub const TRAILER_BYTES: usize = 152;
const TRAILER_MAGIC: [u8; 8] = *b"ckptdEND";

/// Where the parts of a file lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Version of the file.
    pub version: u32,
    /// Length of the whole file.
    pub file_bytes: u64,
    /// Where the chunk table is.
    pub table: Range<u64>,
    /// Where the manifest is.
    pub manifest: Range<u64>,
    /// BLAKE3 of the chunk table.
    pub table_hash: Hash,
    /// BLAKE3 of the manifest.
    pub manifest_hash: Hash,
}

impl Trailer {
    /// Of a file of a version whose chunks end at `table_at`.
    pub fn new(version: u32, table_at: u64, table: &[u8], manifest: &[u8]) -> Trailer {
        let manifest_at = table_at + table.len() as u64;
        let end = manifest_at + manifest.len() as u64;
        Trailer {
            version,
            file_bytes: end + TRAILER_BYTES as u64,
            table: table_at..manifest_at,
            manifest: manifest_at..end,
            table_hash: *blake3::hash(table).as_bytes(),
            manifest_hash: *blake3::hash(manifest).as_bytes(),
        }
    }

    /// The trailer as it is written, with its own hash.
    pub fn to_bytes(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = Vec::with_capacity(TRAILER_BYTES);
        bytes.extend_from_slice(&TRAILER_MAGIC);
        bytes.extend_from_slice(&u64::from(self.version).to_le_bytes());
        for number in [self.file_bytes, self.table.start, self.table.end, self.manifest.end] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.table_hash);
        bytes.extend_from_slice(&self.manifest_hash);
        let own = blake3::hash(&bytes);
        bytes.extend_from_slice(own.as_bytes());
        bytes.extend_from_slice(&TRAILER_MAGIC);
        let mut fixed = [0; TRAILER_BYTES];
        fixed[..bytes.len()].copy_from_slice(&bytes);
        fixed
    }

    /// Parses and checks the last bytes of a file of `file_bytes`.
    pub fn parse(bytes: &[u8; TRAILER_BYTES], file_bytes: u64, path: &Path) -> Result<Trailer> {
        let damaged = |reason: &str| Err(Error::damaged(path, reason));
        if bytes[..8] != TRAILER_MAGIC {
            return damaged("does not end as a ckptd snapshot; it was cut, or is not one");
        }
        let Some(version) = (1..=VERSION).find(|version| u64_at(bytes, 8) == u64::from(*version)) else {
            return damaged("the trailer is damaged");
        };
        let trailer = Trailer {
            version,
            file_bytes: u64_at(bytes, 16),
            table: u64_at(bytes, 24)..u64_at(bytes, 32),
            manifest: u64_at(bytes, 32)..u64_at(bytes, 40),
            table_hash: hash_at(bytes, 48),
            manifest_hash: hash_at(bytes, 80),
        };
        if *bytes != trailer.to_bytes() {
            return damaged("the trailer is damaged");
        }
        let contiguous = trailer.file_bytes == file_bytes
            && HEAD_BYTES as u64 <= trailer.table.start
            && trailer.table.start <= trailer.table.end
            && trailer.table.end <= trailer.manifest.end
            && trailer.manifest.end.checked_add(TRAILER_BYTES as u64) == Some(file_bytes)
            && (trailer.table.end - trailer.table.start).is_multiple_of(RECORD_BYTES as u64)
            && trailer.manifest.end - trailer.manifest.start <= MAX_MANIFEST;
        if !contiguous {
            return damaged(&format!("the file has {file_bytes} bytes, which is not what its trailer says"));
        }
        Ok(trailer)
    }
}

impl Trailer {
    /// Refuses a file whose other parts say another version than this trailer.
    pub(super) fn require_version(&self, said: u32, path: &Path) -> Result<()> {
        if self.version == said {
            return Ok(());
        }
        let reason = format!("its trailer says version {}, another part of it version {said}", self.version);
        Err(Error::damaged(path, reason))
    }
}

/// Refuses a file of a later version, which is not damaged: its head and its trailer, whole by its own hash, agree on
/// the version. Every version keeps to that much.
pub fn check_version(head: &[u8; HEAD_BYTES], trailer: &[u8; TRAILER_BYTES], path: &Path) -> Result<()> {
    let version = u64_at(trailer, 8);
    let mut in_head = [0; 8];
    in_head[..4].copy_from_slice(&head[8..12]);
    let agree = head[..8] == HEAD_MAGIC && u64::from_le_bytes(in_head) == version;
    let whole = trailer[..8] == TRAILER_MAGIC && hash_at(trailer, 112) == *blake3::hash(&trailer[..112]).as_bytes();
    if agree && whole && version > u64::from(VERSION) { Err(newer(path, version)) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::format::{check_head, head};
    use super::*;

    #[test]
    fn a_later_version_is_named_where_head_and_whole_trailer_agree_on_it_and_is_damage_where_not() {
        let trailer = Trailer::new(1, HEAD_BYTES as u64, &[], b"{}");
        let (mut head, mut bytes, path) = (head(1), trailer.to_bytes(), Path::new("x"));
        assert_eq!(Trailer::parse(&bytes, trailer.file_bytes, path).unwrap(), trailer);
        head[8] = 9;
        check_version(&head, &bytes, path).unwrap();
        bytes[8] = 9;
        check_version(&head, &bytes, path).unwrap();
        let own = blake3::hash(&bytes[..112]);
        bytes[112..144].copy_from_slice(own.as_bytes());
        let error = check_version(&head, &bytes, path).unwrap_err();
        assert!(matches!(error, Error::Newer { version: 9, .. }) && error.to_string().contains("format 9"), "{error}");
        assert!(check_head(&head, path).is_err() && Trailer::parse(&bytes, trailer.file_bytes, path).is_err());
    }
}
