//! Safetensors files and model folders whose headers and indexes say what is not so.

use super::Case;
use super::craft::*;

pub fn cases() -> Vec<Case> {
    let mut cases = headers();
    cases.extend(folders());
    cases
}

fn one(name: &str, expect: &'static str, items: &[String], data: usize) -> Case {
    Case::file(name, expect, safetensors(&format!("{{{}}}", items.join(",")), data))
}

fn headers() -> Vec<Case> {
    let raw = |length: u64, rest: &[u8]| [&length.to_le_bytes()[..], rest].concat();
    let float = |name: &str, offsets| item(name, "F32", "[2]", offsets);
    let three: Vec<String> = (0..3).map(|i| item(&format!("t{i}"), "U8", "[0]", [0, 0])).collect();
    vec![
        Case::file("a header one byte longer than the file", "but the file ends after", raw(8, b"{\"a\":1}")),
        Case::file("seven bytes", "neither a .pt", vec![0; 7]),
        Case::file("a header of 8 bytes", "at most 7 are read", safetensors("{      }", 0))
            .under(|l| l.header_bytes = 7),
        Case::file("a header that is no JSON", "its header is not what it should be", safetensors("{\"a\":", 0)),
        Case::file("a header that is a list", "neither a .pt", safetensors("[1,2]", 0)),
        Case::file(
            "lists where a tensor should be",
            "its header is not what it should be",
            safetensors("{\"a\":[[1]]}", 0),
        ),
        Case::file(
            "a shape of seventeen numbers",
            "17 dimensions",
            safetensors(&format!("{{{}}}", item("a", "U8", &format!("[{}1]", "1,".repeat(16)), [0, 1])), 1),
        ),
        Case::file(
            "numbers where a tensor should be",
            "its header is not what it should be",
            safetensors("{\"a\":[0,0]}", 0),
        ),
        Case::file("cut data", "the file is cut", safetensors(&format!("{{{}}}", float("a", [0, 8])), 7)),
        Case::file("more data than tensors", "safetensors", safetensors(&format!("{{{}}}", float("a", [0, 8])), 9)),
        one("one name twice", "twice", &[float("a", [0, 8]), float("a", [0, 8])], 8),
        one("overlapping tensors", "safetensors", &[float("a", [0, 8]), float("b", [4, 12])], 12),
        one("a hole", "safetensors", &[float("a", [0, 8]), float("b", [16, 24])], 24),
        one("offsets backwards", "safetensors", &[item("a", "F32", "[0]", [1, 0])], 1),
        one("a shape of another size", "safetensors", &[item("a", "F32", "[3]", [0, 8])], 8),
        one("a negative shape", "its header is not what", &[item("a", "F32", "[-2]", [0, 8])], 8),
        one("an unknown type", "safetensors", &[item("a", "F7", "[2]", [0, 8])], 8),
        one("a type of others", "element type", &[item("a", "F8_E4M3", "[8]", [0, 8])], 8),
        one("an empty name", "has 0 bytes", &[float("", [0, 8])], 8),
        one("a name of 513 bytes", "has 513 bytes", &[float(&"n".repeat(513), [0, 8])], 8),
        one("a name with control characters", "control characters", &[float("a\\u0007", [0, 8])], 8),
        one("three tensors", "more than 2 tensors", &three, 0).under(|l| l.tensors = 2),
        one("metadata that is no text", "its header is not what", &["\"__metadata__\":{\"a\":[1]}".into()], 0),
        one(
            "a further field that is a list",
            "its header is not what",
            &["\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":[1]}".into()],
            0,
        ),
        one("a description that is none", "not a ckptd.json", &["\"__metadata__\":{\"ckptd\":\"{}\"}".into()], 0),
        one("not a GPT-2", "has no transformer.wte.weight", &[float("a", [0, 8])], 8),
    ]
}

fn folders() -> Vec<Case> {
    let weights = safetensors(&format!("{{{}}}", item("a", "F32", "[2]", [0, 8])), 8);
    let config = ("config.json", b"{}".to_vec());
    let index = |name: &str, expect: &'static str, map: &str, files: &[(&str, Vec<u8>)]| {
        let index = format!("{{\"weight_map\":{map}}}").into_bytes();
        let mut all = vec![config.clone(), ("model.safetensors.index.json", index)];
        all.extend(files.iter().cloned());
        Case::folder(name, expect, &all)
    };
    let shards = [("a.safetensors", weights.clone()), ("b.safetensors", weights.clone())];
    vec![
        index("a shard in a folder", "not the plain name", r#"{"a":"a/b.safetensors"}"#, &[]),
        index("a shard with a step back", "not the plain name", r#"{"a":"a/../b.safetensors"}"#, &[]),
        index("a shard with a backslash", "not the plain name", r#"{"a":"a\\b"}"#, &[]),
        index("two shards", "2 shards; at most 1", r#"{"a":"a.safetensors","b":"b.safetensors"}"#, &shards)
            .under(|l| l.shards = 1),
        index("a shard that is missing", "is not in the folder", r#"{"a":"a.safetensors"}"#, &[]),
        index("a tensor in two shards", "is both in", r#"{"a":"a.safetensors","b":"b.safetensors"}"#, &shards),
        index("an index that is not true", "where it is not", r#"{"zzz":"a.safetensors"}"#, &shards),
        index("an index that is no map", "not an index of shards", "[]", &[]),
        Case::folder("no config", "has no config.json", &[("model.safetensors", weights.clone())]),
        Case::folder(
            "a config that is no JSON",
            "not a JSON object",
            &[("config.json", b"[]".to_vec()), ("model.safetensors", weights.clone())],
        ),
        Case::folder(
            "a config of 1 MiB and a byte",
            "at most 1048576",
            &[("config.json", vec![b' '; (1 << 20) + 1]), ("model.safetensors", weights.clone())],
        ),
        Case::folder(
            "a config of another model",
            "model_type is \"llama\"",
            &[("config.json", br#"{"model_type":"llama"}"#.to_vec()), ("model.safetensors", weights.clone())],
        ),
        Case::folder("no weights", "holds no weights", std::slice::from_ref(&config)),
        Case::folder(
            "a state with a file elsewhere",
            "is no plain name",
            &[
                config.clone(),
                ("model.safetensors", weights.clone()),
                ("ckptd.json", super::bundles::state(&["a/b"], &[])),
            ],
        ),
        Case::folder("a folder for weights", "not a regular file", &[config, ("model.safetensors/", Vec::new())]),
    ]
}
