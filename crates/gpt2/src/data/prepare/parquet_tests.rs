//! Parquet as pyarrow writes it gives the ids of the same texts as JSONL.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use ckptd_core::config::TrainSection;
use ckptd_testkit::python;

use super::test_job::Job;

/// A job for the texts of one file.
fn job() -> Job {
    let mut job = Job::new("").with_gpt2_files();
    job.train = TrainSection { batch_size: 1, sequence_length: 2, eval_every: 0, ..TrainSection::default() };
    job
}

/// What became of the file at `path`: the ids and the notes, or the error.
fn read(job: &mut Job, path: &Path) -> Result<(Vec<u32>, Vec<String>), String> {
    job.data.text = vec![path.to_string_lossy().into_owned()];
    let is_content = path.file_stem().unwrap() == "content";
    job.data.field = is_content.then(|| "content".into());
    job.data.cache = path.with_extension("cache");
    let (dataset, _) = job.open().map_err(|e| e.to_string())?;
    let ids = dataset.train.ids(0..dataset.train.len()).chain(dataset.val.ids(0..dataset.val.len())).collect();
    Ok((ids, dataset.notes))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

fn rows_are_documents_as_lines_of_jsonl_are(folder: &Path) {
    let mut job = job();
    let all = files(folder, "parquet");
    assert!(all.len() > 10);
    for path in all {
        let rows = read(&mut job, &path).unwrap_or_else(|e| panic!("{e}"));
        let lines = read(&mut job, &path.with_extension("jsonl")).unwrap_or_else(|e| panic!("{e}"));
        assert!(rows.0.len() > 100);
        assert!(rows == lines, "{}: {:?} {:?}", path.display(), rows.1, lines.1);
    }
}

fn a_column_that_is_no_text_is_refused_with_those_that_are(folder: &Path) {
    let mut job = job();
    for (name, what) in [
        ("list", r#"column "text" is a list, not text; its columns of text are body, title: name one"#),
        ("struct", r#"column "text" is a struct, not text; its columns of text are body, title"#),
        ("map", r#"column "text" is a map, not text"#),
        ("number", r#"column "text" is a number (INT64), not text"#),
        ("bytes", r#"column "text" is bytes, not text"#),
        ("date", r#"column "text" is of the type DATE, not text"#),
        ("missing", r#"it has no column "text"; its columns of text are body, title: name one: [data] field = "body""#),
        ("numbers", r#"it has no column "text"; no column of it is text"#),
        ("brotli", r#"column "text", row 1: it is packed with BROTLI"#),
        ("latin", r#"column "text", row 2: it is no UTF-8"#),
    ] {
        let path = folder.join(format!("{name}.parquet"));
        let error = read(&mut job, &path).unwrap_err();
        assert!(error.contains(&path.display().to_string()) && error.contains(what), "{error}");
    }
}

fn cut_files_are_refused_by_name(whole: &Path) {
    let mut job = job();
    let bytes = std::fs::read(whole).unwrap();
    let path = job.path("cut.parquet");
    for length in [4, 9, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = read(&mut job, &path).unwrap_err();
        assert!(error.contains("cut.parquet cannot be read as Parquet"), "{error}");
    }
}

#[test]
fn parquet_gives_the_ids_of_jsonl_or_is_refused_with_file_and_column() {
    let folder = tempfile::tempdir().unwrap();
    python::run("make_parquet.py", &[folder.path()]);
    rows_are_documents_as_lines_of_jsonl_are(&folder.path().join("read"));
    a_column_that_is_no_text_is_refused_with_those_that_are(&folder.path().join("refused"));
    cut_files_are_refused_by_name(&folder.path().join("read/few.parquet"));
}
