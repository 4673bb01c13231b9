//! Bundles that want to write elsewhere, to fill the disk, or to pass for what they are not.

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
        "step": 1, "tokens_seen": 0, "epoch": 0, "position": 0, "last_eval_step": 0, "best_val_loss": null, "settings": {}
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
    let bomb = vec![0; 64 << 20];
    vec![
        named("zip: a name that climbs", "could leave the folder", "../evil"),
        named("zip: a name that climbs from a folder", "could leave the folder", "a/../../evil"),
        named("zip: an absolute name", "could leave the folder", "/tmp/evil"),
        named("zip: the name ..", "could leave the folder", ".."),
        named("zip: a name with backslashes", "could leave the folder", "..\\evil"),
        named("zip: a name with control characters", "could leave the folder", "a\u{1b}[2J"),
        named("zip: a name of 2000 bytes", "at most 1024 are read", &"n".repeat(2000)),
        named("zip: a name of 300 bytes", "could leave the folder", &"n".repeat(300)),
        named("zip: a folder within", "could leave the folder", "a/b/c"),
        named("zip: two folders", "another folder", "other/x"),
        patched("zip: a link", "a link or a device", &|b, at| put(b, at + 38, &mode(0o120_777))),
        patched("zip: a device", "a link or a device", &|b, at| put(b, at + 38, &mode(0o020_666))),
        patched("zip: a pipe", "a link or a device", &|b, at| put(b, at + 38, &mode(0o010_666))),
        patched("zip: more than it announces", "larger than its declared", &|b, at| {
            put(b, at + 24, &100u32.to_le_bytes())
        }),
        patched("zip: less than it announces", "does not have the", &|b, at| put(b, at + 24, &5000u32.to_le_bytes())),
        patched("zip: a wrong checksum", "hecksum", &|b, at| put(b, at + 16, &[1, 2, 3, 4])),
        patched("zip: an unknown method", "weights", &|b, at| put(b, at + 10, &[77, 0])),
        patched("zip: broken data", "weights", &|b, at| {
            let data = u32_at(b, at + 42) as usize + 37;
            put(b, data, &[0xff; 8]);
        }),
        patched("zip: encrypted", "encrypted", &|b, at| b[at + 8] |= 1),
        patched("zip: exabytes", "would unpack to at least", &|b, at| put(b, at + 24, &0xffff_fff0u32.to_le_bytes())),
        Case::bundle("zip: one name twice", "occurs twice", zip(&[("./x", b"1"), ("x", b"2")], Stored)),
        Case::bundle(
            "zip: 256 MiB of zeros",
            "would unpack to at least",
            zip(&[("a", &bomb), ("b", &bomb), ("c", &bomb), ("d", &bomb)], Deflated),
        ),
        Case::bundle("zip: 5000 files", "more than 4096 files", {
            let names: Vec<String> = (0..5000).map(|i| format!("f{i}")).collect();
            zip(&names.iter().map(|name| (name.as_str(), &b""[..])).collect::<Vec<_>>(), Stored)
        }),
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
    let zeros = zst(&[tar_entry(b"config.json", b'0', 300 << 20, b""), vec![0; 300 << 20]].concat());
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        std::io::Write::write_all(&mut encoder, &vec![0; 200 << 20]).unwrap();
        encoder.finish().unwrap()
    };
    vec![
        named("tar: a name that climbs", "could leave the folder", b"../evil", b'0'),
        named("tar: an absolute name", "could leave the folder", b"/tmp/evil", b'0'),
        named("tar: a folder within", "could leave the folder", b"a/b/c", b'0'),
        named("tar: a name that is not UTF-8", "not UTF-8", b"\xff\xfe", b'0'),
        named("tar: a symbolic link", "plain files only", b"model.safetensors", b'2'),
        named("tar: a hard link", "plain files only", b"model.safetensors", b'1'),
        named("tar: a device", "plain files only", b"null", b'3'),
        named("tar: a block device", "plain files only", b"sda", b'4'),
        named("tar: a pipe", "plain files only", b"pipe", b'6'),
        named("tar: a sparse file", "plain files only", b"sparse", b'S'),
        named("tar: attributes", "plain files only", b"pax", b'x'),
        named("tar: one name twice", "occurs twice", b"config.json", b'0'),
        Case::bundle("tar: a long name of gigabytes", "plain files only", {
            zst(&[tar_entry(b"././@LongLink", b'L', 4 << 30, b""), vec![b'n'; 1 << 20]].concat())
        }),
        Case::bundle("tar: 300 MiB of zeros", "would unpack to at least", zeros),
        Case::bundle("tar: exabytes", "would unpack to at least", tar_zst(&[tar_entry(b"a", b'0', 1 << 60, b"")])),
        Case::bundle("tar: a window of 128 MiB", "tar.zst", wide),
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
        Case::bundle("a description of files above", "is no plain name", bundle(&state(&[], &[("../x", b"x")]), &[])),
        Case::bundle("a description that is no JSON", "not a ckptd.json", bundle(b"{", &[])),
        Case::bundle("a description of another version", "not a ckptd.json", bundle(b"{\"format\":2}", &[])),
    ]
}
