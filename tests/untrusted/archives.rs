//! Zip containers of `.pt` files that announce what is not in them, and files that are no such container.

use zip::CompressionMethod;

use super::Case;
use super::craft::*;

fn good_pickle() -> Vec<u8> {
    pickle(&state(tensor(&storage("FloatStorage", "0", 16), 0, &[4, 4], &[4, 1])))
}

pub fn cases() -> Vec<Case> {
    let good = torch(&good_pickle());
    let patched = |name: &str, expect: &'static str, patch: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        patch(&mut bytes);
        Case::file(name, expect, bytes)
    };
    let end = good.len() - 22;
    let first = directory(&good)[0];
    let third = directory(&good)[2];
    let mut cases = vec![
        patched("a cut archive", "no zip end record", &|b| b.truncate(good.len() / 2)),
        patched("a byte behind the archive", "no zip end record", &|b| b.push(0)),
        patched("a comment", "no zip end record", &|b| put(b, end + 20, &[1, 0])),
        patched("a byte before the archive", "neither a .pt", &|b| b.insert(0, 0)),
        patched("a directory one byte on", "zip", &|b| b[end + 16] += 1),
        patched("a directory longer than the file", "a zip directory of", &|b| {
            put(b, end + 12, &(end as u32 + 23).to_le_bytes())
        }),
        patched("one entry more than there are", "zip", &|b| put(b, end + 8, &[4, 0, 4, 0])),
        patched("data beyond the directory", "beyond the end of the data", &|b| {
            b[third + 20] += 1;
            b[third + 24] += 1;
        }),
        patched("two sizes of stored data", "its two sizes differ", &|b| b[third + 24] += 1),
        patched("an encrypted entry", "encrypted", &|b| b[first + 8] |= 1),
    ];
    let zip64 = |count: u64, directory: u64| {
        let mut bytes = good.clone();
        let record = bytes.len() as u64 - 22;
        let end = bytes.split_off(bytes.len() - 22);
        bytes.extend(b"PK\x06\x06");
        bytes.extend(44u64.to_le_bytes());
        bytes.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([count, count, directory, 0].map(u64::to_le_bytes).concat());
        bytes.extend(b"PK\x06\x07\0\0\0\0");
        bytes.extend(record.to_le_bytes());
        bytes.extend([1, 0, 0, 0]);
        bytes.extend(end);
        bytes
    };
    let with = |records: &[(&str, Vec<u8>)]| torch_with(&good_pickle(), records);
    cases.extend([
        Case::file("three entries", "3 zip entries; at most 2", good.clone()).under(|l| l.zip_entries = 2),
        Case::file("four entries by zip64", "4 zip entries; at most 3", zip64(4, 100)).under(|l| l.zip_entries = 3),
        Case::file("a directory of 150 bytes", "at most 150 are read", good.clone())
            .under(|l| l.zip_directory_bytes = 150),
        Case::file("a zip64 directory longer than the file", "a zip directory of", zip64(3, good.len() as u64 + 77)),
        Case::file(
            "compressed records",
            "is compressed",
            zip(&[("a/data.pkl", &good_pickle()), ("a/data/0", &[0; 64])], CompressionMethod::Deflated),
        ),
        Case::file(
            "another byte order",
            "another byte order",
            zip(
                &[("a/data.pkl", &good_pickle()), ("a/byteorder", b"big"), ("a/data/0", &[0; 64])],
                CompressionMethod::Stored,
            ),
        ),
        Case::file(
            "one name twice",
            "names an entry twice",
            with(&[("data/0", vec![0; 64]), ("data/1", vec![0; 64])]).replace_name("archive/data/1", "archive/data/0"),
        ),
        Case::file(
            "two pickles",
            "more than one data.pkl",
            with(&[("data/0", vec![0; 64])]).replace_name("archive/byteorder", "archived/data.pkl"),
        ),
        Case::file("a program", "TorchScript", with(&[("data/0", vec![0; 64]), ("constants.pkl", vec![])])),
        Case::file("the legacy format", "legacy format", {
            [&b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."[..], &[0; 100]].concat()
        }),
        Case::file("a bare pickle", "a bare pickle", pickle(b"N")),
        Case::file("the old tar format", "legacy tar format", tar_entry(b"pickle", b'0', 0, b"")),
        Case::file("an empty file", "neither a .pt", Vec::new()),
        Case::file("zeros", "neither a .pt", vec![0; 4096]),
        Case::file("half a magic number", "neither a .pt", b"PK".to_vec()),
        Case::file("a snapshot's first bytes", "", b"\x89CKPTD\r\n\x01\0\0\0\0\0\0\0".to_vec()),
        Case::file("a snapshot of noise", "", [&b"\x89CKPTD\r\n\x01\0\0\0\0\0\0\0"[..], &[0x5a; 5000]].concat()),
    ]);
    cases
}

trait ReplaceName {
    fn replace_name(self, from: &str, to: &str) -> Self;
}

impl ReplaceName for Vec<u8> {
    /// Renames an entry in both of its headers; the names are of one length.
    fn replace_name(mut self, from: &str, to: &str) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let places: Vec<usize> =
            (0..self.len() - from.len()).filter(|&i| self[i..].starts_with(from.as_bytes())).collect();
        for at in places {
            put(&mut self, at, to.as_bytes());
        }
        self
    }
}
