//! Bundles with names that are not plain, with more in them than they announce, or with another content than they say.

use zip::CompressionMethod::{Deflated, Stored};

use super::Case;
use super::craft::*;

pub fn cases() -> Vec<Case> {
    let mut cases = zips();
    cases.extend(tars());
    cases.extend(contents());
    cases
}

/// A `ckptd.json` that carries these names and describes these files.
pub fn state(carried: &[&str], files: &[(&str, &[u8])]) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(name, bytes)| {
            serde_json::json!({"name": name, "bytes": bytes.len(), "hash": blake3::hash(bytes).to_hex().to_string()})
        })
        .collect();
    let train = serde_json::json!({
        "step": 1, "tokens_seen": 0, "epoch": 0, "position": 0, "last_eval_step": 0, "best_val_loss": null,
        "settings": {}
    });
    let provenance = serde_json::json!({"ckptd": "", "libtorch": "", "host": "", "device": "", "reason": ""});
    serde_json::json!({
        "format": 1, "run_id": "0123456789abcdef0123456789abcdef", "seq": 1, "parent": null,
        "created_at": "2026-01-01T00:00:00Z", "root": "00", "train": train,
        "metrics": {"train_loss": null, "val_loss": null, "val_step": null}, "provenance": provenance,
        "tensors": [], "carried": carried, "files": files,
    })
    .to_string()
    .into_bytes()
}

fn zips() -> Vec<Case> {
    let named = |what: &str, expect: &'static str, name: &str| {
        Case::bundle(what, expect, zip(&[("config.json", b"{}"), (name, b"x")], Stored))
    };
    let patched = |what: &str, expect: &'static str, patch: &dyn Fn(&mut Vec<u8>, usize)| {
        let mut bytes = zip(&[("config.json", b"{}"), ("weights", &[7; 4000])], Deflated);
        let second = directory(&bytes)[1];
        patch(&mut bytes, second);
        Case::bundle(what, expect, bytes)
    };
    let mode = |mode: u32| (mode << 16).to_le_bytes();
    let small = zip(&[("a", &[0; 600]), ("b", &[0; 600])], Deflated);
    vec![
        named("zip: a name with a step back", "could leave the folder", "a/../b"),
        named("zip: a name with a backslash", "could leave the folder", "a\\b"),
        named("zip: a name with a control character", "could leave the folder", "a\tb"),
        named("zip: a name of 1025 bytes", "at most 1024 are read", &"n".repeat(1025)),
        named("zip: a name of 256 bytes", "could leave the folder", &"n".repeat(256)),
        named("zip: a folder within", "could leave the folder", "a/b/c"),
        named("zip: two folders", "another folder", "other/x"),
        patched("zip: a link", "a link or a device", &|b, at| put(b, at + 38, &mode(0o120_777))),
        patched("zip: a device", "a link or a device", &|b, at| put(b, at + 38, &mode(0o020_666))),
        patched("zip: a pipe", "a link or a device", &|b, at| put(b, at + 38, &mode(0o010_666))),
        patched("zip: more than it announces", "larger than its declared", &|b, at| {
            put(b, at + 24, &3999u32.to_le_bytes())
        }),
        patched("zip: less than it announces", "does not have the", &|b, at| put(b, at + 24, &4001u32.to_le_bytes())),
        patched("zip: a wrong checksum", "hecksum", &|b, at| put(b, at + 16, &[1, 2, 3, 4])),
        patched("zip: an unknown method", "weights", &|b, at| put(b, at + 10, &[77, 0])),
        patched("zip: broken data", "weights", &|b, at| {
            let data = u32_at(b, at + 42) as usize + 37;
            put(b, data, &[0xff; 8]);
        }),
        patched("zip: encrypted", "encrypted", &|b, at| b[at + 8] |= 1),
        Case::bundle("zip: one name twice", "occurs twice", zip(&[("./x", b"1"), ("x", b"2")], Stored)),
        Case::bundle("zip: one byte more than justified", "would unpack to at least 1200 bytes", small.clone()).under(
            |l| {
                (l.expansion, l.expansion_bytes) = (0, 1199);
            },
        ),
        Case::bundle("zip: more than its size justifies", "would unpack to at least", small.clone()).under(|l| {
            (l.expansion, l.expansion_bytes) = (1, 0);
        }),
        Case::bundle("zip: two files", "more than 1 files", small).under(|l| l.bundle_files = 1),
        Case::bundle("zip: nothing in it", "neither a", zip(&[], Stored)),
    ]
}

fn tars() -> Vec<Case> {
    let named = |what: &str, expect: &'static str, name: &[u8], kind: u8| {
        Case::bundle(
            what,
            expect,
            tar_zst(&[tar_entry(b"config.json", b'0', 2, b"{}"), tar_entry(name, kind, 1, b"x")]),
        )
    };
    let good = tar_zst(&[tar_entry(b"config.json", b'0', 2, b"{}")]);
    let two = tar_zst(&[tar_entry(b"a", b'0', 600, &[0; 600]), tar_entry(b"b", b'0', 600, &[0; 600])]);
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(11).unwrap();
        std::io::Write::write_all(&mut encoder, &[&tar_entry(b"a", b'0', 1, b"x")[..], &[0; 10_240]].concat()).unwrap();
        encoder.finish().unwrap()
    };
    vec![
        named("tar: a name with a step back", "could leave the folder", b"a/../b", b'0'),
        named("tar: a folder within", "could leave the folder", b"a/b/c", b'0'),
        named("tar: a name that is not UTF-8", "not UTF-8", b"\xff\xfe", b'0'),
        named("tar: a symbolic link", "plain files only", b"model.safetensors", b'2'),
        named("tar: a hard link", "plain files only", b"model.safetensors", b'1'),
        named("tar: a device", "plain files only", b"thing", b'3'),
        named("tar: a block device", "plain files only", b"thing", b'4'),
        named("tar: a pipe", "plain files only", b"pipe", b'6'),
        named("tar: a sparse file", "plain files only", b"sparse", b'S'),
        named("tar: one name twice", "occurs twice", b"config.json", b'0'),
        Case::bundle("tar: attributes", "plain files only", {
            tar_zst(&[tar_entry(b"pax", b'x', 13, b"13 comment=x\n"), tar_entry(b"a", b'0', 1, b"x")])
        }),
        Case::bundle("tar: a long name", "plain files only", {
            tar_zst(&[tar_entry(b"././@LongLink", b'L', 5, b"name\0"), tar_entry(b"a", b'0', 1, b"x")])
        }),
        Case::bundle("tar: two files", "more than 1 files", two.clone()).under(|l| l.bundle_files = 1),
        Case::bundle("tar: more than justified", "would unpack to at least 600 bytes, of which only 599", two)
            .under(|l| (l.expansion, l.expansion_bytes) = (0, 1199)),
        Case::bundle("tar: more announced than there is", "config.json", {
            tar_zst(&[tar_entry(b"config.json", b'0', 512 + 1024 + 1, b"{}")])
        }),
        Case::bundle("tar: a window of 2 KiB", "requires too much memory", wide).under(|l| l.zstd_window_log = 10),
        Case::bundle("tar: a wrong header", "tar.zst", zst(&[&[b'x'; 512][..], &[0; 1024]].concat())),
        Case::bundle("tar: cut", "tar.zst", good[..good.len() / 2].to_vec()),
        Case::bundle("tar: without its checksum", "nothing was unpacked", good[..good.len() - 2].to_vec()),
        Case::bundle("tar: a wrong checksum", "nothing was unpacked", {
            let mut bytes = good.clone();
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        }),
        Case::bundle("tar: noise behind it", "nothing was unpacked", [good.clone(), vec![7; 600]].concat()),
        Case::bundle("tar: a second archive behind it", "more follows", [good, zst(&[9; 2000])].concat()),
        Case::bundle("tar: no zstd behind the magic", "tar.zst", b"\x28\xb5\x2f\xfd\xff\xff\xff\xff".to_vec()),
    ]
}

/// Bundles whose description is not true of them.
fn contents() -> Vec<Case> {
    let bundle = |state: &[u8], files: &[(&str, &[u8])]| {
        let mut all: Vec<(&str, &[u8])> = vec![("ckptd.json", state)];
        all.extend_from_slice(files);
        zip(&all, Stored)
    };
    let described = state(&[], &[("config.json", b"{}")]);
    vec![
        Case::bundle("a file that was changed", "its hash differs", bundle(&described, &[("config.json", b"[]")])),
        Case::bundle("a file that is missing", "config.json is missing", bundle(&described, &[])),
        Case::bundle(
            "a file that was added",
            "was not packed by ckptd",
            bundle(&described, &[("config.json", b"{}"), ("x.pth", b"x")]),
        ),
        Case::bundle(
            "a description of files elsewhere",
            "is no plain name",
            bundle(&state(&[], &[("a/x", b"x")]), &[]),
        ),
        Case::bundle("a description that is no JSON", "not a ckptd.json", bundle(b"{", &[])),
        Case::bundle("a description of another version", "not a ckptd.json", bundle(b"{\"format\":2}", &[])),
    ]
}
