//! `ckptd-gpt2 generate`: text generation, one token at a time.
//!
//! Invariant: the text follows from the parameters, the prompt, the seed and the settings (and in its last bits from
//! processor and threads, as everything that libtorch computes). Every token is computed from at most the model's
//! n_positions tokens before it. Deliberately not here: a cache of keys and values; a step computes the whole context.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ckptd_core::store::{PassedOver, SnapshotChoice};
use ckptd_core::{Error, Result};
use ckptd_interop::names;
use clap::builder::RangedU64ValueParser;
use indicatif::ProgressBar;
use tch::{Device, Tensor};

use crate::data;
use crate::data::tokenizer::TextEncoder;
use crate::data::tokenizer_files::TokenizerFiles;
use crate::gpt2::Gpt2Model;
use crate::process;
use crate::rng;
use crate::torch::TorchContext;
use crate::weights::{self, ModelWeights};

#[derive(clap::Args)]
pub struct GenerateArguments {
    /// The store's folder, or the job file.
    #[arg(long, value_name = "STORE|CONFIG", required_unless_present = "model")]
    store: Option<PathBuf>,
    /// latest, best, a step number or a file.
    #[arg(long, default_value = "latest")]
    snapshot: String,
    /// An error where latest or best passes over a snapshot that is newer, or that cannot be read.
    #[arg(long)]
    strict: bool,
    /// Instead of a store's snapshot: a model folder, a .pt or safetensors file, a bundle, a snapshot file.
    #[arg(long, value_name = "PATH", conflicts_with = "store")]
    model: Option<PathBuf>,
    /// A tokenizer.json or a folder with one, for a model that has none with it.
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// What the text begins with; without it, it begins as a document does.
    #[arg(long, default_value = "")]
    prompt: String,
    /// Most tokens to add; the model may end the text before that.
    #[arg(long, default_value_t = 100)]
    tokens: u64,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// Below 1 likelier tokens become likelier still; 0 takes the likeliest every time.
    #[arg(long, default_value_t = 0.8, value_parser = parse_temperature)]
    temperature: f64,
    /// Choose among this many of the likeliest tokens; 0: all.
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new())]
    top_k: usize,
    /// Choose among the likeliest tokens that together are this probable; 1: all.
    #[arg(long, default_value_t = 0.95, value_parser = parse_share)]
    top_p: f64,
    /// Threads; 0: one per processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// How the next token is drawn from its logits.
#[derive(Clone, Copy, Debug)]
struct SamplingSettings {
    temperature: f64,
    top_k: usize,
    top_p: f64,
}

/// Prints the prompt and what the model adds to it, as it comes.
pub fn generate(arguments: &GenerateArguments) -> Result<()> {
    let threads = process::set_threads(arguments.threads)?;
    let path = match (&arguments.store, &arguments.model) {
        (Some(store), _) => chosen(store, arguments)?,
        (None, model) => model.clone().unwrap_or_default(),
    };
    let bar = spinner(format!("reading {}", path.display()));
    let model = weights::open(&path, threads)?;
    let encoder = encoder(&model, arguments.tokenizer.as_deref(), &path)?;
    bar.finish_and_clear();

    let end = end_of_text(&encoder, &model);
    let prompt = prompt_ids(&encoder, &arguments.prompt, end)?;
    let sampling =
        SamplingSettings { temperature: arguments.temperature, top_k: arguments.top_k, top_p: arguments.top_p };
    let began = Instant::now();
    let mut text = StreamedText { encoder: &encoder, ids: Vec::new(), shown: 0 };
    if !show(&arguments.prompt)? {
        return Ok(());
    }
    let mut writer = TextGenerator { model, context: prompt, vocabulary: encoder.vocab_size() as usize };
    for index in 0..arguments.tokens {
        let [word] = rng::words("generate", [arguments.seed, index]);
        let id = choose(&writer.next_logits()?, sampling, (word >> 11) as f64 / (1u64 << 53) as f64)?;
        if Some(id) == end {
            break;
        }
        writer.context.push(i64::from(id));
        if !show(&text.push(id)?)? {
            return Ok(());
        }
    }
    show(&format!("{}\n", text.rest()?))?;
    tell_speed(text.ids.len(), writer.model.step, began.elapsed());
    Ok(())
}

/// The file of the store's snapshot that is asked for; what that passes over is told.
fn chosen(store: &Path, arguments: &GenerateArguments) -> Result<PathBuf> {
    let spec = &arguments.snapshot;
    let SnapshotChoice { entry, passed_over } = weights::choose(store, spec)?;
    for PassedOver { entry: passed, reason } in passed_over {
        if arguments.strict {
            let what = format!("{spec} would pass over {}: {reason}; name the snapshot that you want", passed.id);
            return Err(Error::Other(format!("{what}, or leave out --strict")));
        }
        eprintln!("warning: {spec} is {}; {} is passed over: {reason}", entry.id, passed.id);
    }
    Ok(entry.path)
}

/// On a terminal only: in a file it would be one line too many.
fn tell_speed(tokens: usize, step: Option<u64>, time: Duration) {
    if std::io::stderr().is_terminal() {
        let step = step.map_or(String::new(), |step| format!(", after {step} steps of training"));
        eprintln!("[{tokens} tokens, {:.1} per second{step}]", tokens as f64 / time.as_secs_f64().max(1e-9));
    }
}

fn spinner(message: String) -> ProgressBar {
    // It draws on a terminal only.
    let bar = ProgressBar::new_spinner().with_message(message);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The tokenizer that was named, or the one that came with the model.
fn encoder(model: &ModelWeights, named: Option<&Path>, origin: &Path) -> Result<TextEncoder> {
    if let Some(path) = named {
        let files = TokenizerFiles::at(path)?
            .ok_or_else(|| Error::Config(format!("--tokenizer: {} holds no tokenizer.json", path.display())))?;
        return Ok(files.read()?.encoder);
    }
    let files = TokenizerFiles::carried(&model.files, origin).ok_or_else(|| {
        Error::mismatch(origin, "it has no tokenizer with it; give --tokenizer, a tokenizer.json or a folder with one")
    })?;
    let read = files.read().map_err(|e| Error::mismatch(origin, format!("{e}; give --tokenizer")))?;
    Ok(read.encoder)
}

/// The token that ends a text, and that one begins behind.
fn end_of_text(encoder: &TextEncoder, model: &ModelWeights) -> Option<u32> {
    let configs = [names::CONFIG, names::GENERATION];
    let configs =
        configs.map(|name| model.files.iter().find(|file| file.name == name).map(|file| file.bytes.as_slice()));
    data::end_of_text(encoder, configs, model.config.vocab_size as u64).0
}

fn prompt_ids(encoder: &TextEncoder, prompt: &str, end_of_text: Option<u32>) -> Result<Vec<i64>> {
    let ids = encoder.encode_text(prompt).map_err(|e| Error::Other(format!("tokenizing the prompt: {e}")))?;
    match (ids.as_slice(), end_of_text) {
        // Documents are separated by this token, so one begins behind it.
        ([], Some(id)) => Ok(vec![i64::from(id)]),
        ([], None) => Err(Error::Config("the tokenizer has no token that begins a text; give a --prompt".into())),
        (ids, _) => Ok(ids.iter().map(|&id| i64::from(id)).collect()),
    }
}

struct TextGenerator {
    model: ModelWeights,
    context: Vec<i64>,
    /// Ids that the tokenizer knows; the model's may be more.
    vocabulary: usize,
}

impl TextGenerator {
    fn next_logits(&self) -> Result<Vec<f32>> {
        let ModelWeights { config, params, .. } = &self.model;
        let seen = self.context.len().min(config.n_positions as usize);
        let window = &self.context[self.context.len() - seen..];
        let inputs = Tensor::f_from_slice(window).and_then(|t| t.f_unsqueeze(0)).context("making the context")?;
        let mut logits = Gpt2Model::new(config.clone(), Device::Cpu).next_logits(params, &inputs)?;
        logits.truncate(self.vocabulary);
        Ok(logits)
    }
}

/// The text that ids make, given out as soon as it is whole: a character may take several tokens.
struct StreamedText<'a> {
    encoder: &'a TextEncoder,
    ids: Vec<u32>,
    /// Bytes given out.
    shown: usize,
}

impl StreamedText<'_> {
    fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.decode()?;
        let whole = text.trim_end_matches('\u{fffd}');
        let new = whole.get(self.shown..).unwrap_or_default().to_owned();
        self.shown += new.len();
        Ok(new)
    }

    fn rest(&self) -> Result<String> {
        Ok(self.decode()?.get(self.shown..).unwrap_or_default().to_owned())
    }

    fn decode(&self) -> Result<String> {
        self.encoder.decode(&self.ids).map_err(|e| Error::Other(format!("turning tokens into text: {e}")))
    }
}

/// Writes to stdout; false where the reader is gone.
fn show(text: &str) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::io("writing", "stdout", e)),
    }
}

/// The token that `uniform`, from 0 to below 1, falls on.
fn choose(logits: &[f32], sampling: SamplingSettings, uniform: f64) -> Result<u32> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return Err(Error::Other("the logits are NaN; `ckptd check` says which of its tensors have any".into()));
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    // The lower id first where two are equally likely: the result must not depend on how it is sorted.
    order.sort_unstable_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let Some(&likeliest) = order.first() else { return Err(Error::Other("the tokenizer knows no tokens".into())) };
    if sampling.temperature == 0.0 {
        return Ok(likeliest);
    }
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let top = f64::from(logits[likeliest as usize]);
    let weight = |id: u32| ((f64::from(logits[id as usize]) - top) / sampling.temperature).exp();
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut kept = 0.0;
    let end = order.iter().position(|&id| {
        kept += weight(id);
        kept >= sampling.top_p * total
    });
    order.truncate(end.map_or(order.len(), |end| end + 1));
    let mut left = uniform * kept;
    let drawn = order.iter().copied().find(|&id| {
        left -= weight(id);
        left < 0.0
    });
    Ok(drawn.unwrap_or(likeliest))
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(temperature) if temperature.is_finite() && temperature >= 0.0 => Ok(temperature),
        _ => Err("must be 0 or a positive number".into()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("must be above 0 and at most 1".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, f32::NEG_INFINITY];

    fn drawn(temperature: f64, top_k: usize, top_p: f64) -> Vec<u32> {
        let sampling = SamplingSettings { temperature, top_k, top_p };
        let mut ids: Vec<u32> = (0..1000).map(|i| choose(&LOGITS, sampling, i as f64 / 1000.0).unwrap()).collect();
        ids.dedup();
        ids
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_the_first_of_equals() {
        assert_eq!(drawn(0.0, 0, 1.0), [1]);
    }

    #[test]
    fn tokens_are_drawn_in_proportion_and_impossible_ones_never() {
        assert_eq!(drawn(1.0, 0, 1.0), [1, 3, 2, 0]);
        let sampling = SamplingSettings { temperature: 1.0, top_k: 0, top_p: 1.0 };
        let count =
            |id| (0..10_000).filter(|i| choose(&LOGITS, sampling, *i as f64 / 1e4).unwrap() == id).count() as f64;
        let total: f64 = LOGITS.iter().map(|&l| f64::from(l).exp()).sum();
        for id in 0..4 {
            assert!((count(id) / 1e4 - f64::from(LOGITS[id as usize]).exp() / total).abs() < 1e-3);
        }
    }

    #[test]
    fn top_k_and_top_p_cut_off_what_is_less_likely() {
        assert_eq!(drawn(1.0, 3, 1.0), [1, 3, 2]);
        assert_eq!(drawn(1.0, 1, 1.0), [1]);
        assert_eq!(drawn(1.0, 0, 0.5), [1, 3]);
        assert_eq!(drawn(1.0, 0, 1e-9), [1]);
    }

    #[test]
    fn nan_is_an_error_and_no_token() {
        let sampling = SamplingSettings { temperature: 1.0, top_k: 0, top_p: 1.0 };
        assert!(choose(&[0.0, f32::NAN], sampling, 0.5).unwrap_err().to_string().contains("NaN"));
    }
}
