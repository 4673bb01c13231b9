//! Training a tokenizer on the texts of a job that has none.
//!
//! Invariant: equal texts give equal tokenizers. Deliberately not here: tokenizers that are there (`tokenizer_files`).

use std::sync::mpsc;
use std::time::Duration;

use ckptd_core::progress::ProgressSink;
use ckptd_core::{Error, Result};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::cut::CutRule;
use super::gpt2_tokenizer::{END_OF_TEXT, byte_level};
use super::text::{BLOCK_BYTES, TextBlocks, TextInput};
use super::tokenizer::TextEncoder;

/// Bytes of text that a tokenizer is trained on at most, taken evenly from everything.
const TRAINING_BYTES: u64 = 64 << 20;

/// Trains a byte-level BPE of at most `vocab_size` tokens, <|endoftext|> the first of them, on the texts of `input`,
/// in `pool`.
///
/// The crate's trainer counts in any order and breaks ties by token ids, so that the result depends on neither the
/// number of threads nor the order of its hash maps; a test compares several processes.
pub(super) fn train(
    input: TextInput,
    vocab_size: u64,
    pool: &rayon::ThreadPool,
    progress: &dyn ProgressSink,
) -> Result<TextEncoder> {
    let alphabet = ByteLevel::alphabet();
    if vocab_size <= alphabet.len() as u64 {
        return Err(Error::Config(format!(
            "[data] tokenizer: one trained on the text needs a vocabulary of at least {}, the model has {vocab_size}; \
             name the model's own",
            alphabet.len() + 1
        )));
    }
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size as usize)
        .min_frequency(2)
        .initial_alphabet(alphabet.into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let (read_to, read_from) = mpsc::channel();
    let mut sample = TokenizerSample::new(input, TRAINING_BYTES, read_to);
    progress.begin("training a tokenizer", sample.total);

    // The training runs beside this thread, which goes on showing that there is progress.
    std::thread::scope(|scope| {
        let work = scope.spawn(move || {
            let mut tokenizer = byte_level(BPE::default(), false);
            let mut trainer = TrainerWrapper::BpeTrainer(trainer);
            let trained = pool.install(|| tokenizer.train(&mut trainer, &mut sample).map(|_| ()));
            match sample.error.take() {
                Some(error) => Err(error),
                None => trained.and_then(|()| to_encoder(&tokenizer)).map_err(unexpected),
            }
        });
        let told = loop {
            let told = match read_from.recv_timeout(Duration::from_secs(1)) {
                Ok(bytes) => progress.advance(bytes),
                Err(mpsc::RecvTimeoutError::Timeout) => progress.advance(0),
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
            };
            if told.is_err() {
                break told;
            }
        };
        told.and(work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn to_encoder(tokenizer: &Tokenizer) -> tokenizers::Result<TextEncoder> {
    TextEncoder::from_json(tokenizer.to_string(false)?.into_bytes())
}

fn unexpected(error: tokenizers::Error) -> Error {
    Error::Other(format!("training a tokenizer: {error}; name one in [data] tokenizer"))
}

/// The blocks that a tokenizer is trained on: all, or about `limit` bytes of them, evenly spread. An error ends them
/// and is kept.
struct TokenizerSample<'a> {
    blocks: TextBlocks<'a>,
    read_to: mpsc::Sender<u64>,
    limit: u64,
    total: u64,
    read: u64,
    told_bytes: u64,
    error: Option<Error>,
}

impl<'a> TokenizerSample<'a> {
    fn new(input: TextInput<'a>, limit: u64, read_to: mpsc::Sender<u64>) -> TokenizerSample<'a> {
        let total = input.files.iter().map(|file| file.bytes).sum();
        // What it counts are words: where the text is cut matters little, and the memory stays bounded.
        let blocks = TextBlocks::new(input, CutRule::FirstRelease);
        TokenizerSample { blocks, read_to, limit, total, read: 0, told_bytes: 0, error: None }
    }

    /// How many blocks should have been taken after `read` bytes.
    fn quota(&self, read: u64) -> u128 {
        u128::from(read) * u128::from(self.limit) / (u128::from(self.total.max(1)) * BLOCK_BYTES as u128)
    }
}

impl Iterator for TokenizerSample<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let text = match self.blocks.next() {
                Ok(block) => block?.text,
                Err(error) => {
                    self.error = Some(error);
                    return None;
                }
            };
            // The receiver is gone only where the result is not waited for.
            let _ = self.read_to.send(self.blocks.bytes_done() - self.told_bytes);
            self.told_bytes = self.blocks.bytes_done();
            let before = self.read;
            self.read += text.len() as u64;
            if self.total <= self.limit || self.quota(before) != self.quota(self.read) {
                return Some(text);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::text_files::TextFile;
    use super::*;

    #[test]
    fn a_large_text_is_sampled_evenly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let text: String = (0..BLOCK_BYTES * 5).map(|i| format!(" {i:07}")).collect();
        std::fs::write(&path, &text).unwrap();
        let bytes = text.len() as u64;
        let files = [TextFile { path, bytes, hash: blake3::hash(text.as_bytes()) }];
        let input = TextInput { files: &files, field: None, first_release: false };
        let (read_to, _shares) = mpsc::channel();
        let blocks: Vec<String> = TokenizerSample::new(input, bytes / 4, read_to.clone()).collect();
        assert!((9..=11).contains(&blocks.len()), "{} of 40 blocks", blocks.len());
        let starts: Vec<usize> = blocks.iter().map(|block| text.find(&block[..8]).unwrap()).collect();
        assert!(starts.windows(2).all(|pair| (3..=5).contains(&((pair[1] - pair[0]) / BLOCK_BYTES + 1))), "{starts:?}");
        assert_eq!(TokenizerSample::new(input, bytes, read_to).collect::<String>(), text);
    }
}
