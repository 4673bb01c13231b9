//! A snapshot's manifest without its chunks.
//!
//! Invariant: a manifest that is returned matched its hash, and its trailer the file's length.

use std::fs::File;
use std::path::Path;

use super::format::{self, HEAD_BYTES, Manifest};
use super::trailer::{TRAILER_BYTES, Trailer, check_version};
use crate::error::{Error, Result};
use crate::os::fs;

/// The manifest alone, checked against the trailer and itself, and the hash that stands for the whole file.
pub fn peek(path: &Path) -> Result<(Manifest, format::Hash)> {
    let file = fs::open_path(path)?;
    let (manifest, trailer) = read_manifest(&file, path)?;
    Ok((manifest, *blake3::hash(&trailer.to_bytes()).as_bytes()))
}

/// The manifest and the trailer of an open file.
pub(super) fn read_manifest(file: &File, path: &Path) -> Result<(Manifest, Trailer)> {
    let size = fs::length(file, path)?;
    if size < (HEAD_BYTES + TRAILER_BYTES) as u64 {
        return Err(Error::damaged(path, format!("{size} bytes are too few for a snapshot; it was cut")));
    }
    let mut head = [0; HEAD_BYTES];
    fs::read_exact_at(file, &mut head, 0, path)?;
    let mut trailer = [0; TRAILER_BYTES];
    fs::read_exact_at(file, &mut trailer, size - TRAILER_BYTES as u64, path)?;
    check_version(&head, &trailer, path)?;
    let version = format::check_head(&head, path)?;
    let trailer = Trailer::parse(&trailer, size, path)?;
    trailer.require_version(version, path)?;
    let mut manifest = vec![0; (trailer.manifest.end - trailer.manifest.start) as usize];
    fs::read_exact_at(file, &mut manifest, trailer.manifest.start, path)?;
    if *blake3::hash(&manifest).as_bytes() != trailer.manifest_hash {
        return Err(Error::damaged(path, "the manifest does not match its hash"));
    }
    let manifest = format::parse_manifest(&manifest, path)?;
    trailer.require_version(manifest.format, path)?;
    Ok((manifest, trailer))
}
