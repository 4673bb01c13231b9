//! A job for tests: a text on the disk, and the settings to read it.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Mutex;

use ckptd_core::config::{DataSection, TrainSection};

use super::*;

/// A folder with a text, a cache and the settings to read one into the other.
pub(super) struct Job {
    pub(super) folder: tempfile::TempDir,
    pub(super) data: DataSection,
    pub(super) train: TrainSection,
    pub(super) vocab_size: u64,
    pub(super) threads: usize,
}

/// Remembers which stages there were.
#[derive(Default)]
struct Stages(Mutex<Vec<String>>);

impl ProgressSink for Stages {
    fn begin(&self, stage: &str, _total_bytes: u64) {
        self.0.lock().unwrap().push(stage.to_owned());
    }

    fn advance(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
}

impl Job {
    pub(super) fn new(text: &str) -> Job {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), text).unwrap();
        let data = DataSection {
            text: vec![folder.path().join("a.txt").to_string_lossy().into_owned()],
            cache: folder.path().join("cache"),
            validation: 0.1,
            ..DataSection::default()
        };
        let train = TrainSection { batch_size: 2, sequence_length: 8, ..TrainSection::default() };
        Job { folder, data, train, vocab_size: 300, threads: 2 }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// GPT-2's file form: 256 byte tokens, three merges, the end-of-text token last.
    pub(super) fn with_gpt2_files(mut self) -> Job {
        let mut letters: Vec<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        letters.sort_unstable();
        let tokens =
            letters.iter().map(char::to_string).chain(["th", "the", "Ġthe", "<|endoftext|>"].map(String::from));
        let vocab: serde_json::Map<String, serde_json::Value> =
            tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
        std::fs::create_dir(self.path("gpt2")).unwrap();
        std::fs::write(self.path("gpt2/vocab.json"), serde_json::to_string(&vocab).unwrap()).unwrap();
        std::fs::write(self.path("gpt2/merges.txt"), "#version: 0.2\nt h\nth e\nĠ the\n").unwrap();
        self.data.tokenizer = Some(self.path("gpt2"));
        self
    }

    pub(super) fn request(&self) -> DataRequest<'_> {
        DataRequest {
            data: &self.data,
            train: &self.train,
            model_folder: None,
            model_configs: [None, None],
            vocab_size: self.vocab_size,
            threads: self.threads,
            before: None,
        }
    }

    /// The dataset and the stages it took.
    pub(super) fn open(&self) -> Result<(TokenDataset, Vec<String>)> {
        let stages = Stages::default();
        let dataset = open(&self.request(), &stages)?;
        Ok((dataset, stages.0.into_inner().unwrap()))
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        let (dataset, _) = self.open().unwrap();
        dataset.train.ids(0..dataset.train.len()).chain(dataset.val.ids(0..dataset.val.len())).collect()
    }

    pub(super) fn error(&self) -> String {
        let error = self.open().map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 78, "{error}");
        error.to_string()
    }

    pub(super) fn cached(&self, beginning: &str, ending: &str) -> PathBuf {
        let entries = std::fs::read_dir(&self.data.cache).unwrap().map(|entry| entry.unwrap().path());
        let is_it = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(beginning) && name.ends_with(ending)
        };
        let mut found: Vec<PathBuf> = entries.filter(is_it).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }
}
