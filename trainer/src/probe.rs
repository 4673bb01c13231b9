//! What a model answers: its logits for given tokens, for comparison with other implementations and other snapshots.
//!
//! Deliberately not here: sampling text.

use std::path::PathBuf;

use ckptd::interop::hf;
use ckptd::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::capture::State;
use crate::device::{self, Context};
use crate::gpt2::{Gpt2, Gpt2Config, init};

#[derive(clap::Args)]
pub struct LogitsArguments {
    /// A Hugging Face folder.
    #[arg(long)]
    pub model: PathBuf,
    /// A JSON array of rows of token ids, all of one length.
    #[arg(long)]
    pub tokens: PathBuf,
    /// Where the logits go: float32, little-endian, [rows, positions, vocab_size].
    #[arg(long)]
    pub out: PathBuf,
    /// Threads; 0: one per processor.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Writes the logits that `arguments` ask for.
pub fn logits(arguments: &LogitsArguments) -> Result<()> {
    device::set_threads(arguments.threads);
    let folder = hf::open(&arguments.model)?;
    let origin = arguments.model.display().to_string();
    let config =
        Gpt2Config::from_json(&String::from_utf8_lossy(&folder.config_json), &format!("{origin}/config.json"))?;
    let rows = read_rows(&arguments.tokens, &config)?;

    let mut state = State::new(&config.parameters(), &[], Device::Cpu, Default::default())?;
    state.fill(|destinations| init::from_tensors(&folder.tensors, &origin, destinations))?;
    let flat: Vec<i64> = rows.concat();
    let inputs =
        Tensor::f_from_slice(&flat).and_then(|t| t.f_view([rows.len() as i64, -1])).context("making the batch")?;
    let logits = Gpt2::new(config, Device::Cpu).logits(state.params(), &inputs)?;
    let mut bytes = vec![0; 4 * logits.numel()];
    let copied = logits.f_contiguous().and_then(|l| l.f_to_kind(Kind::Float));
    copied.and_then(|l| l.f_copy_data_u8(&mut bytes, logits.numel())).context("reading the logits")?;
    std::fs::write(&arguments.out, bytes).map_err(|e| Error::io("writing", &arguments.out, e))
}

fn read_rows(path: &std::path::Path, config: &Gpt2Config) -> Result<Vec<Vec<i64>>> {
    let wrong = |what: String| Error::Config(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
    let rows: Vec<Vec<i64>> = serde_json::from_str(&text).map_err(|e| wrong(format!("not rows of token ids: {e}")))?;
    let length = rows.first().map_or(0, Vec::len);
    if length == 0 || rows.iter().any(|row| row.len() != length) {
        return Err(wrong("the rows must be of one length, at least 1".into()));
    }
    match rows.iter().flatten().find(|&&id| id < 0 || id >= config.vocab_size) {
        Some(id) => Err(wrong(format!("token {id} is not in the vocabulary of {}", config.vocab_size))),
        None => Ok(rows),
    }
}
