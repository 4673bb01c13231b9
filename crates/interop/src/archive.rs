//! The zip container of `.pt` files and of bundles: its directory, checked, as plain entries.
//!
//! Invariant: the archive is one whole file (no bytes before or behind it, no comment), its directory is as small as
//! its entries justify, names are unique, no entry is encrypted, and no two entries share bytes: an overlapping
//! archive is how a few kilobytes unpack to terabytes.
//! Deliberately not here: what the entries mean (torch_pt, bundle).

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use crate::limits::ReadLimits;
use crate::mapped::MappedFile;
use ckptd_core::error::{Error, Result};

const MAX_NAME_BYTES: usize = 1024;

/// One entry of the directory. `data` are its bytes in the file, compressed or not.
#[derive(Clone, Debug)]
pub struct ArchiveEntry {
    pub index: usize,
    pub name: String,
    pub stored: bool,
    /// A regular file: neither a folder nor a link nor a device.
    pub regular: bool,
    pub folder: bool,
    pub bytes: u64,
    pub crc32: u32,
    pub data: Range<u64>,
}

/// Reads and checks the directory of the archive that fills `mapped`.
pub fn entries(mapped: &Arc<MappedFile>, limits: &ReadLimits) -> Result<Vec<ArchiveEntry>> {
    let refuse = |reason: String| Error::malformed(mapped.path(), reason);
    check_end(mapped.bytes(), limits).map_err(refuse)?;
    let mut zip = open(mapped)?;
    if zip.has_duplicate_names() {
        return Err(refuse("the zip directory names an entry twice".into()));
    }
    let mut entries = Vec::with_capacity(zip.len());
    for index in 0..zip.len() {
        entries.push(entry(&mut zip, index).map_err(|e| refuse(format!("zip entry {index}: {e}")))?);
    }
    check_layout(&entries, zip.central_directory_start()).map_err(refuse)?;
    Ok(entries)
}

/// The archive over the mapped bytes; call [`entries`] first, which checks it.
pub fn open(mapped: &Arc<MappedFile>) -> Result<ZipArchive<Cursor<&[u8]>>> {
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    ZipArchive::with_config(config, Cursor::new(mapped.bytes()))
        .map_err(|e| Error::malformed(mapped.path(), format!("not a readable zip archive: {e}")))
}

fn entry(zip: &mut ZipArchive<Cursor<&[u8]>>, index: usize) -> Result<ArchiveEntry, String> {
    let file = zip.by_index_raw(index).map_err(|e| e.to_string())?;
    let name = std::str::from_utf8(file.name_raw()).map_err(|_| "its name is not UTF-8".to_owned())?.to_owned();
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("its name has {} bytes; at most {MAX_NAME_BYTES} are read", name.len()));
    }
    if file.encrypted() {
        return Err(format!("{name:?} is encrypted"));
    }
    let start = file.data_start().ok_or_else(|| format!("{name:?} has no data"))?;
    let data = data(start, file.compressed_size()).ok_or_else(|| format!("{name:?} ends beyond the file"))?;
    let stored = file.compression() == CompressionMethod::Stored;
    if stored && file.size() != file.compressed_size() {
        return Err(format!("{name:?} is stored, but its two sizes differ"));
    }
    let folder = name.ends_with('/');
    // The upper half of the external attributes is the Unix mode where a Unix tool wrote them.
    let kind = file.unix_mode().unwrap_or(0) & 0o170_000;
    let regular = !folder && !file.is_symlink() && matches!(kind, 0 | 0o100_000);
    Ok(ArchiveEntry { index, stored, regular, folder, bytes: file.size(), crc32: file.crc32(), data, name })
}

/// The bytes of an entry; `None` where its end overflows.
fn data(start: u64, bytes: u64) -> Option<Range<u64>> {
    Some(start..start.checked_add(bytes)?)
}

/// Every entry's data lies before the directory, and no two overlap.
fn check_layout(entries: &[ArchiveEntry], directory_start: u64) -> Result<(), String> {
    let mut order: Vec<&ArchiveEntry> = entries.iter().collect();
    order.sort_by_key(|entry| (entry.data.start, entry.data.end));
    if let Some(beyond) = order.iter().find(|entry| entry.data.end > directory_start) {
        return Err(format!(
            "zip entry {:?} reaches beyond the end of the data; the file is cut or made up",
            beyond.name
        ));
    }
    match order.windows(2).find(|pair| pair[0].data.end > pair[1].data.start) {
        Some(pair) => Err(format!("the zip entries {:?} and {:?} overlap", pair[0].name, pair[1].name)),
        None => Ok(()),
    }
}

/// The end record closes the file, and the directory it announces is of a sane size. This comes before the zip crate
/// sees the file, which would allocate by the announced counts.
fn check_end(bytes: &[u8], limits: &ReadLimits) -> Result<(), String> {
    const END: usize = 22;
    const CUT: &str = "no zip end record at the end of the file; it is cut, has a comment, or is no zip archive";
    let end = bytes.len().checked_sub(END).and_then(|at| bytes.get(at..)).ok_or(CUT)?;
    if !end.starts_with(b"PK\x05\x06") || u16_at(end, 20) != Some(0) {
        return Err(CUT.into());
    }
    let mut count = u64::from(u16_at(end, 10).unwrap_or(0));
    let mut directory_bytes = u64::from(u32_at(end, 12).unwrap_or(0));
    // Zip64: a locator stands before the end record and says where the longer record is.
    let locator = bytes.len().checked_sub(END + 20).and_then(|at| bytes.get(at..at + 20));
    if let Some(locator) = locator.filter(|bytes| bytes.starts_with(b"PK\x06\x07")) {
        let record = u64_at(locator, 8).and_then(|at| bytes.get(usize::try_from(at).ok()?..));
        let record =
            record.filter(|bytes| bytes.starts_with(b"PK\x06\x06")).ok_or("the zip64 end record is missing")?;
        count = count.max(u64_at(record, 32).unwrap_or(u64::MAX));
        directory_bytes = directory_bytes.max(u64_at(record, 40).unwrap_or(u64::MAX));
        // Fields at their largest only say "see the longer record".
        if u32_at(end, 12) == Some(u32::MAX) {
            directory_bytes = u64_at(record, 40).unwrap_or(u64::MAX);
        }
    }
    if count > limits.zip_entries {
        return Err(format!("{count} zip entries; at most {} are read", limits.zip_entries));
    }
    let most = limits.zip_directory_bytes.min(bytes.len() as u64);
    if directory_bytes > most {
        return Err(format!("a zip directory of {directory_bytes} bytes; at most {most} are read"));
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, data: Range<u64>) -> ArchiveEntry {
        let (name, bytes) = (name.to_owned(), data.end - data.start);
        ArchiveEntry { index: 0, name, stored: true, regular: true, folder: false, bytes, crc32: 0, data }
    }

    #[test]
    fn entries_that_share_a_byte_or_reach_into_the_directory_are_refused() {
        let layout = |b: Range<u64>| check_layout(&[entry("a", 10..20), entry("b", b)], 30);
        assert_eq!(layout(20..30), Ok(()));
        assert!(layout(19..25).is_err_and(|what| what.contains("overlap")));
        assert!(layout(5..11).is_err_and(|what| what.contains("overlap")));
        assert!(layout(10..20).is_err_and(|what| what.contains("overlap")));
        assert!(layout(20..31).is_err_and(|what| what.contains("beyond the end of the data")));
    }

    #[test]
    fn data_whose_end_overflows_is_none() {
        assert_eq!(data(10, 5), Some(10..15));
        assert_eq!(data(10, u64::MAX - 9), None);
    }
}
