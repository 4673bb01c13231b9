//! Writes the zip archive that `torch.save` writes: the same records in the same order, storages as they are and
//! aligned to 64 bytes, so that `torch.load(..., mmap=True, weights_only=True)` maps them.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::pickler::{self, PtObject};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;

const ALIGNMENT: u16 = 64;

/// Writes `object` to `file`, which lies at `path`. `content` gives the bytes of the storages, whose sizes are
/// `storage_bytes`, in their order, each in one piece or more, to the function that it gets.
pub fn write(
    file: &mut File,
    path: &Path,
    object: &PtObject,
    storage_bytes: &[u64],
    content: impl FnOnce(&mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()>,
    progress: &dyn ProgressSink,
) -> Result<()> {
    // The folder's name is that of the file, as with torch.save.
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = stem.trim_start_matches('.').split('.').next().unwrap_or_default();
    let folder = if folder.is_empty() { "archive" } else { folder };
    let mut archive = PtArchive::begin(BufWriter::with_capacity(1 << 20, file), path, folder, object)?;
    content(&mut |index, piece| {
        archive.piece(index, storage_bytes[index], piece)?;
        progress.advance(piece.len() as u64)
    })?;
    let (mut out, sizes) = archive.finish()?;
    if sizes != storage_bytes {
        let reason = format!("the storages have {sizes:?} bytes, not the {storage_bytes:?} that were announced");
        return Err(Error::mismatch(path, reason));
    }
    out.flush().map_err(|e| Error::io("writing", path, e))
}

/// An archive in the making. It may lie within another file: places are counted from where `out` says that it begins.
pub struct PtArchive<'a, W: Write + Seek> {
    zip: ZipWriter<W>,
    path: &'a Path,
    folder: String,
    sizes: Vec<u64>,
}

impl<'a, W: Write + Seek> PtArchive<'a, W> {
    /// Begins the archive of `object`, whose records lie in `folder`; `path` is for messages.
    pub fn begin(out: W, path: &'a Path, folder: &str, object: &PtObject) -> Result<PtArchive<'a, W>> {
        let mut archive = PtArchive { zip: ZipWriter::new(out), path, folder: folder.to_owned(), sizes: Vec::new() };
        archive.record("data.pkl", &pickler::pickle(object))?;
        archive.record(".format_version", b"1")?;
        archive.record(".storage_alignment", ALIGNMENT.to_string().as_bytes())?;
        archive.record("byteorder", b"little")?;
        Ok(archive)
    }

    /// A piece of storage number `index`, which will have `bytes` in all. Storages come in their order.
    pub fn piece(&mut self, index: usize, bytes: u64, piece: &[u8]) -> Result<()> {
        if self.sizes.len() <= index {
            self.sizes.resize(index + 1, 0);
            self.start(&format!("data/{index}"), bytes)?;
        }
        self.sizes[index] += piece.len() as u64;
        self.zip.write_all(piece).map_err(|e| Error::io("writing", self.path, e))
    }

    /// Ends the archive; returns what it was written to, and the storages' sizes.
    pub fn finish(mut self) -> Result<(W, Vec<u64>)> {
        self.record("version", b"3\n")?;
        let out = self.zip.finish().map_err(|e| zip_error(self.path, e))?;
        Ok((out, self.sizes))
    }

    fn start(&mut self, name: &str, bytes: u64) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(bytes >= u64::from(u32::MAX))
            .with_alignment(ALIGNMENT);
        self.zip.start_file(format!("{}/{name}", self.folder), options).map_err(|e| zip_error(self.path, e))
    }

    fn record(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.start(name, content.len() as u64)?;
        self.zip.write_all(content).map_err(|e| Error::io("writing", self.path, e))
    }
}

fn zip_error(path: &Path, error: zip::result::ZipError) -> Error {
    Error::io("writing", path, error.into())
}
