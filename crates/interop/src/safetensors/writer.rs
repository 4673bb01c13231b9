//! Writes safetensors files tensor by tensor, so that few of them are in memory at a time.

use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value, json};

use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::block_writer::BlockWriter;
use ckptd_core::os::fs;
use ckptd_core::progress::ProgressSink;

/// What was written.
pub struct WrittenFile {
    pub bytes: u64,
    /// BLAKE3 of the file.
    pub hash: blake3::Hash,
}

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
}

impl TensorSpec {
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size() as u64
    }
}

/// Writes `items` to `file`, which is empty and lies at `path`, wider types first so that all are aligned. `content`
/// gives the row-major bytes of the items in the order that it is told, piece by piece, to the function that it gets.
/// `metadata` becomes the header's `__metadata__`.
///
/// It goes past the page cache where the file system allows that: the device works while tensors are decoded, and there
/// is little left for an fsync to wait for.
pub fn write(
    file: &File,
    path: &Path,
    items: &[TensorSpec],
    metadata: &[(&str, String)],
    content: impl FnOnce(&[usize], &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()>,
    progress: &dyn ProgressSink,
) -> Result<WrittenFile> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(items[i].dtype.size()));
    let header = header(items, &order, metadata);
    fs::preallocate(file, header.len() as u64 + items.iter().map(TensorSpec::bytes).sum::<u64>(), path)?;
    let mut out = BlockWriter::new(file, path.to_owned())?;
    let mut hasher = blake3::Hasher::new();
    let mut append = |bytes: &[u8]| {
        hasher.update(bytes);
        out.append(bytes)
    };
    append(&header)?;
    let mut sizes = vec![0; items.len()];
    content(&order, &mut |index, piece| {
        sizes[index] += piece.len() as u64;
        append(piece)?;
        progress.advance(piece.len() as u64)
    })?;
    if let Some((item, size)) = items.iter().zip(sizes).find(|(item, size)| item.bytes() != *size) {
        let reason = format!("tensor {} has {size} bytes, not {}", item.name, item.bytes());
        return Err(Error::mismatch(path, reason));
    }
    Ok(WrittenFile { bytes: out.finish()?, hash: hasher.finalize() })
}

/// The header's length and the header: JSON, padded with blanks to a multiple of 8.
fn header(items: &[TensorSpec], order: &[usize], metadata: &[(&str, String)]) -> Vec<u8> {
    let mut map = Map::new();
    let pairs = metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
    map.insert("__metadata__".into(), Value::Object(pairs.collect()));
    let mut start = 0;
    for &index in order {
        let item = &items[index];
        let end = start + item.bytes();
        map.insert(
            item.name.clone(),
            json!({"dtype": item.dtype.name(), "shape": item.shape, "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut json = Value::Object(map).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}
