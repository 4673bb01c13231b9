//! Tokenizers that are read from a folder give the ids of transformers' AutoTokenizer for the same folder.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use ckptd_gpt2::data::tokenizer_files::TokenizerFiles;
use ckptd_testkit::python;
use serde::Deserialize;

/// What transformers makes of random texts.
#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    /// `None`: it raises.
    ids: Vec<Option<Vec<u32>>>,
    eos: Option<String>,
}

/// Every text that differs, of the folder `path`; nothing else may differ.
fn differences(path: &Path) -> Vec<String> {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let expected = std::fs::read(path.with_file_name(format!("{name}.json"))).unwrap();
    let expected: Expected = serde_json::from_slice(&expected).unwrap();
    let read = TokenizerFiles::at(path).unwrap().unwrap().read().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(read.encoder.named_end_of_text(), expected.eos.as_deref(), "{name}: the end of text");
    let compare = |(text, ids): (&String, &Option<Vec<u32>>)| {
        let ours = read.encoder.encode_text(text).ok();
        (ours != *ids).then(|| format!("{name}: {text:?} is {ours:?}, not {ids:?}"))
    };
    expected.texts.iter().zip(&expected.ids).filter_map(compare).collect()
}

#[test]
fn ids_are_those_of_transformers_for_odd_tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    python::run("make_tokenizers.py", &[folder.path(), Path::new("1000")]);
    let mut folders: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    assert!(folders.len() >= 20, "{folders:?}");
    let all: Vec<String> = folders.iter().flat_map(|path| differences(path)).collect();
    assert!(all.is_empty(), "{} texts differ:\n{}", all.len(), all[..all.len().min(8)].join("\n"));
}
