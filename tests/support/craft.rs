//! Files made byte by byte: pickles by op-code, torch archives, safetensors, zip and tar.zst bundles.
#![allow(dead_code, clippy::unwrap_used)] // each user takes its own part of this

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The pickle of one object, between the protocol mark and the stop.
pub fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

pub fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn int(number: i64) -> Vec<u8> {
    [b"\x8a\x08", &number.to_le_bytes()[..]].concat()
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

pub fn ints(numbers: &[i64]) -> Vec<u8> {
    tuple(&numbers.iter().map(|&n| int(n)).collect::<Vec<_>>())
}

/// A persistent id: `elements` values of `kind` under `key`.
pub fn storage(kind: &str, key: &str, elements: i64) -> Vec<u8> {
    let kind = format!("ctorch\n{kind}\n").into_bytes();
    [tuple(&[text("storage"), kind, text(key), text("cpu"), int(elements)]), b"Q".to_vec()].concat()
}

pub fn tensor(storage: &[u8], offset: i64, shape: &[i64], stride: &[i64]) -> Vec<u8> {
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let arguments = tuple(&[storage.to_vec(), int(offset), ints(shape), ints(stride), b"\x89".to_vec(), hooks]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
}

pub fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [key.as_slice(), value].concat()).collect();
    [b"}(".to_vec(), items, b"u".to_vec()].concat()
}

/// A state dict of one tensor under the embedding's name.
pub fn state(tensor: Vec<u8>) -> Vec<u8> {
    dict(&[(text("transformer.wte.weight"), tensor)])
}

/// An archive as torch.save writes it, with sixteen floats as storage 0.
pub fn torch(pickle: &[u8]) -> Vec<u8> {
    torch_with(pickle, &[("data/0", vec![0; 64])])
}

pub fn torch_with(pickle: &[u8], records: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut entries = vec![("archive/data.pkl".to_owned(), pickle.to_vec())];
    entries.push(("archive/byteorder".into(), b"little".to_vec()));
    entries.extend(records.iter().map(|(name, bytes)| (format!("archive/{name}"), bytes.clone())));
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    zip(&entries, CompressionMethod::Stored)
}

pub fn zip(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(method).unix_permissions(0o644);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Where each record of the central directory begins, in order.
pub fn directory(zip: &[u8]) -> Vec<usize> {
    let end = zip.len() - 22;
    let mut at = u32_at(zip, end + 16) as usize;
    let mut places = Vec::new();
    while zip[at..].starts_with(b"PK\x01\x02") {
        places.push(at);
        at += 46 + u16_at(zip, at + 28) as usize + u16_at(zip, at + 30) as usize + u16_at(zip, at + 32) as usize;
    }
    places
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// A safetensors file of this header and so many bytes of data.
pub fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// One entry of a safetensors header.
pub fn item(name: &str, dtype: &str, shape: &str, offsets: [u64; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{}]}}"#, offsets[0], offsets[1])
}

/// A tar entry of any kind: its header and its content.
pub fn tar_entry(name: &[u8], kind: u8, announced: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(announced);
    header.set_mode(0o644);
    header.as_old_mut().linkflag[0] = kind;
    if matches!(kind, b'1' | b'2') {
        header.as_old_mut().linkname[..11].copy_from_slice(b"config.json");
    }
    header.set_cksum();
    let mut entry = header.as_bytes().to_vec();
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

pub fn tar_zst(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = entries.concat();
    tar.extend([0; 1024]);
    zst(&tar)
}

pub fn zst(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
