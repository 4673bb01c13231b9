//! Writes GGUF files, tensor by tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::value::{ALIGNMENT, GgufValue, MAGIC, TYPES};
use crate::safetensors::TensorSpec;
use ckptd_core::error::{Error, Result};

const VERSION: u32 = 3;

/// Writes `values` and `tensors` to `file`, which is empty and lies at `path`. `content` hands the row-major bytes of
/// the tensors over in their order, each in one piece or more.
pub fn write(
    file: &mut File,
    path: &Path,
    values: &[(&str, GgufValue)],
    tensors: &[TensorSpec],
    content: impl FnOnce(&mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let writing = |e| Error::io("writing", path, e);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut head = header(values, tensors).map_err(|what| Error::mismatch(path, what))?;
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    out.write_all(&head).map_err(writing)?;
    let mut sizes = vec![0u64; tensors.len()];
    let mut last = None;
    content(&mut |index, piece| {
        if let Some(before) = last.replace(index).filter(|before| *before != index) {
            out.write_all(padding(sizes[before])).map_err(writing)?;
        }
        sizes[index] += piece.len() as u64;
        out.write_all(piece).map_err(writing)
    })?;
    if let Some(last) = last {
        out.write_all(padding(sizes[last])).map_err(writing)?;
    }
    if let Some((item, size)) = tensors.iter().zip(sizes).find(|(item, size)| item.bytes() != *size) {
        return Err(Error::mismatch(path, format!("tensor {} has {size} bytes, not {}", item.name, item.bytes())));
    }
    out.flush().map_err(writing)
}

/// What stands between a tensor of so many bytes and the next.
fn padding(bytes: u64) -> &'static [u8] {
    const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
    &ZEROS[..(bytes.next_multiple_of(ALIGNMENT) - bytes) as usize]
}

fn header(values: &[(&str, GgufValue)], tensors: &[TensorSpec]) -> Result<Vec<u8>, String> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for (key, entry) in values {
        text(&mut out, key);
        out.extend(entry.kind().to_le_bytes());
        value(&mut out, entry);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
        let kind = TYPES.iter().find(|(_, dtype)| *dtype == tensor.dtype).map(|(kind, _)| *kind);
        let kind = kind.ok_or_else(|| format!("{} is {}, which GGUF does not have", tensor.name, tensor.dtype))?;
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
    }
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn value(out: &mut Vec<u8>, entry: &GgufValue) {
    match entry {
        GgufValue::U8(number) => out.push(*number),
        GgufValue::I8(number) => out.extend(number.to_le_bytes()),
        GgufValue::U16(number) => out.extend(number.to_le_bytes()),
        GgufValue::I16(number) => out.extend(number.to_le_bytes()),
        GgufValue::U32(number) => out.extend(number.to_le_bytes()),
        GgufValue::I32(number) => out.extend(number.to_le_bytes()),
        GgufValue::F32(number) => out.extend(number.to_le_bytes()),
        GgufValue::Bool(truth) => out.push(u8::from(*truth)),
        GgufValue::Text(content) => text(out, content),
        GgufValue::Array(items) => {
            // An empty list is one of text.
            out.extend(items.first().map_or(8, GgufValue::kind).to_le_bytes());
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| value(out, item));
        }
        GgufValue::U64(number) => out.extend(number.to_le_bytes()),
        GgufValue::I64(number) => out.extend(number.to_le_bytes()),
        GgufValue::F64(number) => out.extend(number.to_le_bytes()),
    }
}
