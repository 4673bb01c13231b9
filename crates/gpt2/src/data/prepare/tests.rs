//! The whole way from text to tokens, on real files.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ckptd_core::config::TrainSection;
use ckptd_core::progress::NoProgress;
use ckptd_core::token_file::TokensDtype;

use super::super::request::DataBefore;
use super::test_job::Job;
use super::*;
use crate::data::order::{DataCursor, EvalBatches, TrainBatches};
use crate::tokens::recall;

fn story() -> String {
    (0..400).map(|i| format!("the cat {i} and the other\n\tsaw {} of them;  it's fine\n", i * i)).collect()
}

#[test]
fn gpt2_files_give_gpt2_ids_and_documents_are_joined_with_the_end_of_text() {
    let mut job = Job::new("").with_gpt2_files();
    job.train = TrainSection { batch_size: 1, sequence_length: 2, eval_every: 0, ..TrainSection::default() };
    std::fs::create_dir(job.path("texts")).unwrap();
    for (name, text) in [("a.txt", "the thé"), ("empty.txt", ""), ("z.md", "the<|endoftext|>the"), ("z.rs", "no text")]
    {
        std::fs::write(job.path("texts").join(name), text).unwrap();
    }
    job.data.text = vec![job.path("texts").to_string_lossy().into_owned()];
    let vocab: std::collections::BTreeMap<String, u32> = recall(&job.path("gpt2/vocab.json")).unwrap();
    let tokens = ["the", "Ġ", "th", "Ã", "©", "<|endoftext|>", "the", "<|endoftext|>", "the"];
    assert_eq!(job.ids(), tokens.map(|token| vocab[token]));
    let (dataset, _) = job.open().unwrap();
    assert_eq!((dataset.eot, dataset.vocab_size), (Some(259), 260));

    std::fs::write(job.path("carried.json"), dataset.tokenizer_json().unwrap()).unwrap();
    job.data.tokenizer = Some(job.path("carried.json"));
    assert_eq!(job.open().unwrap().0.content_hash, dataset.content_hash, "the carried tokenizer is the same one");
}

#[test]
fn text_in_blocks_and_by_words_has_the_ids_of_the_whole_text_with_any_number_of_threads() {
    let text = story().repeat(12) + &" \n\n\t é\u{a0}— don't 12,5 the<|endoftext|>".repeat(4000);
    let mut job = Job::new(&text).with_gpt2_files();
    let one = job.ids();
    (job.threads, job.data.cache) = (5, job.path("other cache"));
    assert_eq!(job.ids(), one);
    let json = job.open().unwrap().0.tokenizer_json().unwrap().to_vec();
    let whole = tokenizers::Tokenizer::from_bytes(json).unwrap().encode_fast(text.as_str(), false).unwrap();
    assert!(text.len() > 5 * crate::data::text::BLOCK_BYTES);
    assert_eq!(whole.get_ids(), one);
}

#[test]
fn a_second_opening_tokenizes_nothing_and_a_changed_text_is_tokenized_anew() {
    let job = Job::new(&story()).with_gpt2_files();
    let (first, stages) = job.open().unwrap();
    assert_eq!(stages, ["reading text", "tokenizing"]);
    let (second, stages) = job.open().unwrap();
    assert!(!stages.contains(&"tokenizing".to_owned()), "{stages:?}");
    assert_eq!(first.content_hash, second.content_hash);
    let modified = job.path("a.txt").metadata().unwrap().modified().unwrap();
    std::fs::write(job.path("a.txt"), story().replace("cat", "dog")).unwrap();
    std::fs::File::options().write(true).open(job.path("a.txt")).unwrap().set_modified(modified).unwrap();
    let (third, stages) = job.open().unwrap();
    assert!(stages.contains(&"tokenizing".to_owned()), "{stages:?}");
    assert_ne!(third.content_hash, first.content_hash);
}

#[test]
fn a_damaged_cache_is_made_again_and_never_believed() {
    let job = Job::new(&story()).with_gpt2_files();
    let ids = job.ids();
    let path = job.cached("tokens-", ".bin");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[100] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], &whole[..7], b""] {
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(job.ids(), ids);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
    std::fs::write(path.with_extension("json"), "{").unwrap();
    assert_eq!(job.ids(), ids);
}

#[test]
fn a_tokenizer_is_trained_to_the_vocabulary_and_the_same_in_every_process() {
    const PRINT: &str = "CKPTD_TEST_PRINTS_TOKENIZER";
    let mut job = Job::new(&story());
    job.vocab_size = 400;
    job.threads = 4;
    let (dataset, _) = job.open().unwrap();
    let hash = blake3::hash(dataset.tokenizer_json().unwrap()).to_hex().to_string();
    if std::env::var_os(PRINT).is_some() {
        println!("tokenizer {hash}");
        return;
    }
    assert!((257..=400).contains(&dataset.vocab_size), "{}", dataset.vocab_size);
    assert!(dataset.vocab_size > 300 && dataset.eot == Some(0));
    // Every process has hash maps of its own order.
    for _ in 0..3 {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "a_tokenizer_is_trained_to_the_vocabulary_and_the_same_in_every_process"])
            .env(PRINT, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.contains(&format!("tokenizer {hash}")), "{output}");
    }
    job.vocab_size = 256;
    assert!(job.error().contains("at least 257"));
}

#[test]
fn processes_that_fill_one_cache_at_once_all_get_the_same_tokens() {
    let job = Job::new(&story().repeat(20));
    let hashes: Vec<(String, Vec<u32>)> = std::thread::scope(|scope| {
        let open = || {
            let dataset = job.open().unwrap().0;
            (dataset.content_hash, dataset.val.ids(0..dataset.val.len()).collect())
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]));
    job.cached("tokens-", ".bin");
    let left = std::fs::read_dir(&job.data.cache).unwrap();
    assert!(left.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with(".tmp-")));
}

#[test]
fn a_killed_tokenizing_leaves_nothing_that_counts() {
    const WORK: &str = "CKPTD_TEST_CACHE";
    let mut job = Job::new(&story().repeat(60));
    if let Some(cache) = std::env::var_os(WORK) {
        job.data.cache = cache.into();
        println!("working");
        let _ = job.open();
        return;
    }
    for delay_ms in [0, 5, 20, 50, 100] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "a_killed_tokenizing_leaves_nothing_that_counts"])
            .env(WORK, &job.data.cache)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("working") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut output, &mut line).unwrap() > 0);
        }
        // Not a wait for anything: the kill falls at another moment each time.
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let ids = job.ids();
    job.data.cache = job.path("fresh cache");
    assert_eq!(ids, job.ids());
}

#[test]
fn a_token_file_is_used_as_it_is_and_its_hash_is_its_identity() {
    let mut job = Job::new("");
    let path = job.path("t.bin");
    let bytes: Vec<u8> = (0..400u16).flat_map(|i| (i % 300).to_le_bytes()).collect();
    std::fs::write(&path, &bytes).unwrap();
    (job.data.text, job.data.tokens) = (Vec::new(), Some(path.clone()));
    let (dataset, _) = job.open().unwrap();
    assert_eq!(dataset.content_hash, blake3::hash(&bytes).to_hex().as_str());
    assert_eq!((dataset.train.len(), dataset.val.len()), (360, 40));
    assert_eq!(dataset.val.ids(0..2).collect::<Vec<_>>(), [60, 61]);
    assert_eq!((dataset.eot, dataset.tokenizer_files.len(), dataset.vocab_size), (None, 0, 300));

    job.vocab_size = 299;
    assert!(job.error().contains("token id 299 at position 299 is beyond the model's vocabulary (vocab_size 299)"));
    job.vocab_size = 70_000;
    assert!(job.error().contains("[data] tokens_dtype"), "as uint32 the ids are too large");
    job.data.tokens_dtype = Some(TokensDtype::Uint16);
    assert_eq!(job.open().unwrap().0.train.len(), 360);
    job.data.tokens_dtype = None;
    std::fs::write(&path, &bytes[..799]).unwrap();
    assert!(job.error().contains("799 bytes are no whole number of 4-byte ids"));
    job.data.tokens = Some(job.path("missing.bin"));
    assert!(job.error().contains("missing.bin does not exist"));
}

#[test]
fn too_little_text_says_how_much_there_is_how_much_is_needed_and_what_to_change() {
    let mut job = Job::new(&"xy".repeat(100)).with_gpt2_files();
    job.train.batch_size = 30;
    let error = job.error();
    assert!(error.contains("180 tokens to train on") && error.contains("needs 241"), "{error}");
    assert!(error.contains("[train] batch_size 30 x sequence_length 8 + 1"), "{error}");
    job.train.batch_size = 10;
    let error = job.error();
    assert!(
        error.contains("[data] validation: 0.1 of 200 tokens is 20") && error.contains("eval_every = 0"),
        "{error}"
    );
    job.train.eval_every = 0;
    job.open().unwrap();
}

#[test]
fn a_tokenizer_that_is_missing_or_invalid_is_refused_by_name() {
    let mut job = Job::new(&story());
    std::fs::write(job.path("bad.json"), "{\"model\": 1}").unwrap();
    job.data.tokenizer = Some(job.path("bad.json"));
    assert!(job.error().contains("bad.json: not a tokenizer.json"), "{}", job.error());
    job.data.tokenizer = Some(job.path("nowhere"));
    assert!(job.error().contains("nowhere is neither a tokenizer.json nor a folder"), "{}", job.error());
    let mut job = Job::new(&story()).with_gpt2_files();
    job.vocab_size = 100;
    assert!(job.error().contains("is beyond the model's vocabulary (vocab_size 100)"));
}

#[test]
fn ids_of_every_type_are_taken_as_they_are_where_file_or_job_says_the_type() {
    let mut job = Job::new("");
    job.data.text = Vec::new();
    job.vocab_size = 50_257;
    let ids: Vec<u32> = (0..400).map(|i| i * 7919 % 50_257).collect();
    let bytes = |width: usize| -> Vec<u8> {
        ids.iter().flat_map(|&id| u64::from(id).to_le_bytes()[..width].to_vec()).collect()
    };
    let npy = |descr: &str, width: usize| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (400,), }}\n");
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &bytes(width)].concat()
    };
    let header: Vec<u8> = [20_240_520u32, 1, 400].iter().flat_map(|number| number.to_le_bytes()).collect();
    let llm_c = [&header[..], &[0; 1012], &bytes(2)].concat();
    let mut contents = std::collections::BTreeSet::new();
    for (name, file, dtype) in [
        ("u2.npy", npy("<u2", 2), None),
        ("i8.npy", npy("<i8", 8), None),
        ("llm.bin", llm_c, None),
        ("u2.bin", bytes(2), None),
        ("u4.bin", bytes(4), Some(TokensDtype::Uint32)),
        ("i4.bin", bytes(4), Some(TokensDtype::Int32)),
        ("i8.bin", bytes(8), Some(TokensDtype::Int64)),
    ] {
        std::fs::write(job.path(name), file).unwrap();
        (job.data.tokens, job.data.tokens_dtype) = (Some(job.path(name)), dtype);
        assert_eq!(job.ids(), ids, "{name}");
        assert!(contents.insert(job.open().unwrap().0.content_hash), "{name}");
    }
}

#[test]
fn a_type_that_nobody_says_is_not_guessed_and_what_is_no_id_is_named_with_its_place() {
    let mut job = Job::new("");
    (job.data.text, job.data.tokens) = (Vec::new(), Some(job.path("t.bin")));
    let write = |numbers: &[i64], width: usize| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()[..width].to_vec()).collect();
        std::fs::write(job.folder.path().join("t.bin"), bytes).unwrap();
    };
    let mut ids: Vec<i64> = (0..400).map(|i| i * 7 % 299 + 1).collect();
    for width in [4, 8] {
        write(&ids, width);
        let error = job.error();
        assert!(error.contains("t.bin") && error.contains("say it: [data] tokens_dtype = \"int32\""), "{error}");
    }
    ids[17] = -100;
    write(&ids, 8);
    job.data.tokens_dtype = Some(TokensDtype::Int64);
    assert!(job.error().contains("t.bin: token id -100 at position 17 is no id"), "{}", job.error());
    std::fs::write(job.path("t.bin"), b"PK\x03\x04and so on").unwrap();
    job.data.tokens_dtype = None;
    assert!(job.error().contains("it is a zip archive"), "{}", job.error());
    job.vocab_size = 50_257;
    std::fs::write(job.path("t.bin"), story().repeat(2)).unwrap();
    assert!(job.error().contains("it is text; name it in [data] text"), "{}", job.error());
    job.data.tokens_dtype = Some(TokensDtype::Uint16);
    job.open().unwrap();
    let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1,)}\n";
    let npy = [b"\x93NUMPY\x01\x00", &[header.len() as u8, 0][..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(job.path("t.bin"), npy).unwrap();
    job.data.tokens_dtype = Some(TokensDtype::Uint16);
    assert!(job.error().contains("says int32, and [data] tokens_dtype says uint16"), "{}", job.error());
}

/// The job's files as a snapshot would carry them, with a GPT-2's config.
fn carried(dataset: &TokenDataset) -> Vec<CarriedFile> {
    let config = br#"{"model_type": "gpt2"}"#.to_vec();
    let config = CarriedFile { name: "config.json".into(), bytes: config.into() };
    std::iter::once(config).chain(dataset.tokenizer_files.iter().cloned()).collect()
}

fn before<'a>(files: &'a [CarriedFile], content: Option<&'a str>, accepts_changes: bool) -> Option<DataBefore<'a>> {
    Some(DataBefore { path: std::path::Path::new("/s/step-1.ckpt"), files, content, accepts_changes })
}

#[test]
fn more_text_keeps_the_snapshots_tokenizer_and_is_told_in_words() {
    let mut job = Job::new(&story());
    let (first, _) = job.open().unwrap();
    let files = carried(&first);
    std::fs::write(job.path("more.txt"), "quite other words, xylophone and zebra\n".repeat(400)).unwrap();
    job.data.text.push(job.path("more.txt").to_string_lossy().into_owned());
    let request = DataRequest { before: before(&files, Some(&first.content_hash), true), ..job.request() };
    let plan = plan(&request, &NoProgress).unwrap();
    let expected = "the texts differ: 1 file then, 2 files now (new: more.txt)";
    assert_eq!(plan.changes(), [DataChange::Data(expected.into())]);
    assert_eq!(plan.open(&NoProgress).unwrap().tokenizer_json(), first.tokenizer_json());
    std::fs::remove_dir_all(&job.data.cache).unwrap();
    let plan = super::plan(&request, &NoProgress).unwrap();
    assert!(matches!(plan.changes(), [DataChange::Data(what)] if what.contains("not known any more")));
}

#[test]
fn another_tokenizer_than_the_snapshots_is_a_change_and_the_same_one_is_none() {
    let mut job = Job::new(&story()).with_gpt2_files();
    let (first, _) = job.open().unwrap();
    let files = carried(&first);
    let changes = |job: &Job, accepts| {
        let request = DataRequest { before: before(&files, Some(&first.content_hash), accepts), ..job.request() };
        let plan = plan(&request, &NoProgress).unwrap();
        let changes = plan.changes().to_vec();
        (changes, plan.open(&NoProgress).unwrap().tokenizer_json().unwrap().to_vec())
    };
    assert_eq!(changes(&job, false).0, [], "vocab.json and merges.txt are the tokenizer.json that is carried");
    let vocab = std::fs::read_to_string(job.path("gpt2/vocab.json")).unwrap();
    let swapped = vocab.replace(r#""a":64"#, r#""a":0"#).replace(r#""!":0"#, r#""!":64"#);
    assert_ne!(swapped, vocab);
    std::fs::write(job.path("gpt2/vocab.json"), swapped).unwrap();
    let (found, json) = changes(&job, false);
    let [DataChange::Tokenizer(what), ..] = &found[..] else { panic!("{found:?}") };
    assert!(what.contains("2 of 260 tokens have another id") && what.contains("take [data] tokenizer out"), "{what}");
    assert_eq!(json, first.tokenizer_json().unwrap(), "not accepted, it is not used");
    assert_ne!(changes(&job, true).1, first.tokenizer_json().unwrap());
    job.data.tokenizer = None;
    assert_eq!(changes(&job, true).0, [], "the snapshot's own");
}

#[test]
fn what_the_first_release_made_of_a_text_goes_on_as_it_was() {
    let mut job = Job::new(&(story() + &"é".repeat(80_000))).with_gpt2_files();
    let (now, _) = job.open().unwrap();
    let json = now.tokenizer_json().unwrap();
    let text = std::fs::read(job.path("a.txt")).unwrap();
    let mut key = blake3::Hasher::new();
    key.update(b"ckptd tokens v1").update(blake3::hash(json).as_bytes()).update(blake3::hash(&text).as_bytes());
    let then = key.finalize().to_hex().to_string();
    let files = carried(&now);
    job.data.tokenizer = None;
    let request = DataRequest { before: before(&files, Some(&then), false), ..job.request() };
    let old = open(&request, &NoProgress).unwrap();
    assert_eq!(old.content_hash, then);
    assert_ne!(now.content_hash, then);
    let ids = |dataset: &TokenDataset| dataset.train.ids(0..dataset.train.len()).collect::<Vec<_>>();
    assert_eq!(ids(&old)[..1000], ids(&now)[..1000]);
}

#[test]
fn documents_end_with_the_token_that_the_model_or_the_tokenizer_names() {
    let mut job = Job::new("the").with_gpt2_files();
    job.train = TrainSection { batch_size: 1, sequence_length: 2, eval_every: 0, ..TrainSection::default() };
    job.data.validation = 0.0;
    std::fs::write(job.path("b.txt"), "the th").unwrap();
    job.data.text.push(job.path("b.txt").to_string_lossy().into_owned());
    let vocab: std::collections::BTreeMap<String, u32> = recall(&job.path("gpt2/vocab.json")).unwrap();
    let end = |job: &Job, configs| {
        let request = DataRequest { model_configs: configs, ..job.request() };
        let dataset = open(&request, &NoProgress).unwrap();
        (dataset.train.ids(1..2).next().unwrap(), dataset.notes)
    };
    assert_eq!(end(&job, [None, None]), (vocab["<|endoftext|>"], Vec::new()));
    std::fs::write(job.path("gpt2/tokenizer_config.json"), r#"{"eos_token": "!"}"#).unwrap();
    let generation = format!(r#"{{"eos_token_id": [{}, 5]}}"#, vocab["?"]);
    let (id, notes) = end(&job, [Some(b"{}"), Some(generation.as_bytes())]);
    assert_eq!(id, vocab["!"]);
    assert!(notes[0].contains("\"!\"") && notes[0].contains("\"?\""), "{notes:?}");
    std::fs::write(
        job.path("gpt2/tokenizer_config.json"),
        r#"{"eos_token": null, "bos_token": null, "unk_token": null}"#,
    )
    .unwrap();
    assert_eq!(end(&job, [Some(b"{}"), Some(generation.as_bytes())]).0, vocab["?"]);
}

#[test]
fn packed_and_marked_texts_and_records_give_the_ids_of_the_plain_text() {
    let job = Job::new(&story()).with_gpt2_files();
    let plain = job.ids();
    let units: Vec<u8> = ("\u{feff}".to_owned() + &story()).encode_utf16().flat_map(u16::to_be_bytes).collect();
    let gz = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let halves = story().as_bytes().split_at(5000).0.to_vec();
    let members = [gz(&halves), gz(&story().as_bytes()[5000..])].concat();
    let zst = zstd::encode_all(story().as_bytes(), 3).unwrap();
    let record = serde_json::json!({"id": 1, "text": story(), "score": 0.5}).to_string();
    for (name, bytes) in [
        ("u16.txt", units),
        ("a.txt.gz", members),
        ("a.zst", zst),
        ("a.jsonl", record.clone().into_bytes()),
        ("b.jsonl.gz", gz(record.as_bytes())),
    ] {
        let mut other = Job::new("").with_gpt2_files();
        std::fs::write(other.path(name), bytes).unwrap();
        other.data.text = vec![other.path(name).to_string_lossy().into_owned()];
        assert_eq!(other.ids(), plain, "{name}");
    }
}

#[test]
fn each_record_is_a_document_of_its_own() {
    let mut job = Job::new("").with_gpt2_files();
    job.train = TrainSection { batch_size: 1, sequence_length: 2, eval_every: 0, ..TrainSection::default() };
    job.data.validation = 0.0;
    let lines = "{\"body\": \"the\"}\n{\"body\": null}\n{\"body\": \"the\"}\n{\"body\": \"th\"}\n";
    std::fs::write(job.path("a.jsonl"), lines).unwrap();
    job.data.text = vec![job.path("a.jsonl").to_string_lossy().into_owned()];
    assert!(job.error().contains("a.jsonl, line 1: it has no \"text\"; it has body"), "{}", job.error());
    job.data.field = Some("body".into());
    let vocab: std::collections::BTreeMap<String, u32> = recall(&job.path("gpt2/vocab.json")).unwrap();
    let (dataset, _) = job.open().unwrap();
    assert!(dataset.notes[0].starts_with("1 records without a text"), "{:?}", dataset.notes);
    let end = vocab["<|endoftext|>"];
    assert_eq!(job.ids(), [vocab["the"], end, vocab["the"], end, vocab["th"]]);
}

#[test]
fn files_that_are_no_text_are_refused_by_name() {
    let refused = |name: &str, bytes: &[u8]| {
        let mut job = Job::new("").with_gpt2_files();
        std::fs::write(job.path(name), bytes).unwrap();
        job.data.text = vec![job.path(name).to_string_lossy().into_owned()];
        let error = job.error();
        assert!(error.contains(name), "{error}");
        error
    };
    let latin: Vec<u8> = "une \u{e9}t\u{e9} \u{e0} la mer\n".repeat(200).chars().map(|c| c as u8).collect();
    assert!(refused("latin.txt", &latin).contains("iconv -f LATIN1"));
    assert!(refused("wide.txt", &story().bytes().flat_map(|b| [b, 0]).collect::<Vec<u8>>()).contains("NUL"));
    assert!(refused("a.zip.txt", b"PK\x03\x04....").contains("zip archive"));
    assert!(refused("a.pdf", b"%PDF-1.7").contains("pdftotext"));
    assert!(refused("a.gz", b"\x1f\x8b\x08\x00 not gzip at all").contains("cannot be unpacked"));
    let zst = zstd::encode_all(story().as_bytes(), 3).unwrap();
    assert!(refused("a.zst", &zst[..zst.len() / 2]).contains("cannot be unpacked"));
}

#[test]
fn what_was_passed_over_and_what_the_tokenizer_drops_is_told() {
    let mut job = Job::new(&"ab xa где b ".repeat(100));
    let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}"#;
    std::fs::write(job.path("letters.json"), json).unwrap();
    job.data.tokenizer = Some(job.path("letters.json"));
    let fifo = job.path("b.txt");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    job.data.text = vec![job.folder.path().to_string_lossy().into_owned()];
    let notes = job.open().unwrap().0.notes;
    let told = |what: &str| assert!(notes.iter().any(|note| note.contains(what)), "{notes:?}");
    told("b.txt is a FIFO");
    told("no token for unknown characters and dropped 400 of 800, the first of them in \"xa\" in");
    assert_eq!(notes.len(), 2);
}

#[test]
fn bytes_that_are_no_text_are_reported_once() {
    let job = Job::new("").with_gpt2_files();
    std::fs::write(job.path("a.txt"), [story().as_bytes(), b"\xff\xfe"].concat()).unwrap();
    let notes = job.open().unwrap().0.notes;
    assert!(notes.len() == 1 && notes[0].starts_with("2 bytes that are no UTF-8"), "{notes:?}");
    assert!(job.open().unwrap().0.notes.is_empty());
}

#[test]
fn batches_hold_windows_and_their_shift_and_go_on_past_an_epoch_end() {
    let mut job = Job::new(&story()).with_gpt2_files();
    job.data.validation = 0.3;
    let (dataset, _) = job.open().unwrap();
    let batches = TrainBatches::new(dataset.train.clone(), 8, 1337);
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    let last = batches.sampler().samples_per_epoch() - 1;
    let next = batches.fill(DataCursor { epoch: 4, position: last }, 3, &mut inputs, &mut targets);
    assert_eq!(next, DataCursor { epoch: 5, position: 2 });
    let places = [(4, last), (5, 0), (5, 1)];
    for (row, (epoch, position)) in places.into_iter().enumerate() {
        let window: Vec<i64> = dataset.train.ids(batches.sampler().window(epoch, position)).map(i64::from).collect();
        assert_eq!(inputs[row * 8..(row + 1) * 8], window[..8]);
        assert_eq!(targets[row * 8..(row + 1) * 8], window[1..]);
    }

    let eval = EvalBatches::new(dataset.val.clone(), 8, 2, 5);
    assert_eq!(eval.len(), 5);
    eval.fill(4, &mut inputs, &mut targets);
    let windows = (dataset.val.len() - 1) / 8;
    let start = 9 * windows / 10 * 8;
    assert_eq!(inputs[8..], dataset.val.ids(start..start + 8).map(i64::from).collect::<Vec<_>>());
    assert_eq!(targets[8..], dataset.val.ids(start + 1..start + 9).map(i64::from).collect::<Vec<_>>());
    assert_eq!(EvalBatches::new(dataset.val.slice(0..34), 8, 2, 5).len(), 2, "only full batches");
    assert!(EvalBatches::new(dataset.val.slice(0..16), 8, 2, 5).is_empty());
}
