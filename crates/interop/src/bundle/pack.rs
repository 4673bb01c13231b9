//! A folder into a bundle.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::kind::BundleKind;
use crate::mapped::MappedFile;
use crate::names;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;

const PIECE_BYTES: usize = 1 << 20;
/// The lowest level with Huffman codes of its own: weights hardly shrink by more at any level, and at level 1 they
/// grow.
const DEFLATE_LEVEL: i64 = 2;
/// Level 1 is within half a percent of the higher ones on weights, and many times faster.
const ZSTD_LEVEL: i32 = 1;

/// Packs all files of `dir` into `file`, which lies at `path`; the state's description first.
pub fn pack(dir: &Path, file: &mut File, path: &Path, kind: BundleKind, progress: &dyn ProgressSink) -> Result<()> {
    let mut plain = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io("reading folder", dir, e))? {
        let name = entry.map_err(|e| Error::io("reading folder", dir, e))?.file_name();
        plain.push(name.into_string().map_err(|name| Error::malformed(dir, format!("{name:?} is no UTF-8 name")))?);
    }
    plain.sort_by_key(|name| (name != names::RECORD, name.clone()));
    let files: Vec<Arc<MappedFile>> =
        plain.iter().map(|name| MappedFile::open(&dir.join(name))).collect::<Result<_>>()?;
    progress.begin("packing", files.iter().map(|file| file.len()).sum());
    let files = plain.into_iter().zip(files);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    match kind {
        BundleKind::Zip => pack_zip(files, &mut out, path, progress)?,
        BundleKind::TarZst => pack_tar(files, &mut out, path, progress)?,
    }
    out.flush().map_err(|e| Error::io("writing", path, e))
}

fn pack_zip(
    files: impl Iterator<Item = (String, Arc<MappedFile>)>,
    out: &mut BufWriter<&mut File>,
    path: &Path,
    progress: &dyn ProgressSink,
) -> Result<()> {
    let mut zip = ZipWriter::new(out);
    for (name, file) in files {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(DEFLATE_LEVEL))
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            // Deflate may enlarge what does not shrink, by a little.
            .large_file(file.len() >= u64::from(u32::MAX) / 2);
        zip.start_file(name, options).map_err(|e| Error::io("writing", path, e.into()))?;
        copy(file.bytes(), &mut zip, path, progress)?;
    }
    zip.finish().map(drop).map_err(|e| Error::io("writing", path, e.into()))
}

fn pack_tar(
    files: impl Iterator<Item = (String, Arc<MappedFile>)>,
    out: &mut BufWriter<&mut File>,
    path: &Path,
    progress: &dyn ProgressSink,
) -> Result<()> {
    let writing = |e| Error::io("writing", path, e);
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL).map_err(writing)?;
    encoder.include_checksum(true).map_err(writing)?;
    for (name, file) in files {
        let mut header = tar::Header::new_ustar();
        header.set_path(&name).map_err(writing)?;
        header.set_size(file.len());
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        encoder.write_all(header.as_bytes()).map_err(writing)?;
        copy(file.bytes(), &mut encoder, path, progress)?;
        let padding = file.len().next_multiple_of(512) - file.len();
        encoder.write_all(&[0; 512][..padding as usize]).map_err(writing)?;
    }
    encoder.write_all(&[0; 1024]).map_err(writing)?;
    encoder.finish().map(drop).map_err(writing)
}

fn copy(bytes: &[u8], out: &mut impl Write, path: &Path, progress: &dyn ProgressSink) -> Result<()> {
    for piece in bytes.chunks(PIECE_BYTES) {
        out.write_all(piece).map_err(|e| Error::io("writing", path, e))?;
        progress.advance(piece.len() as u64)?;
    }
    Ok(())
}
