//! The text of a short job file that runs as it is: twenty lines whose figures fit this machine.
//!
//! Deliberately not here: the reference with every key (`config/ckptd.toml`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use ckptd_core::config::TrainSection;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::available_memory;
use ckptd_core::text::{exact_duration, grouped, significant};
use ckptd_interop::footprint::ModelShape;

/// Sequences that make a step, where memory does not ask for fewer.
const SEQUENCES: u64 = 8;
/// Tokens in a sequence at most, and at least.
const LONGEST: u64 = 1024;
const SHORTEST: u64 = 64;
/// Share of the free memory that a worker may take by the estimate.
const SHARE: f64 = 0.75;
/// Passes over the text, and bytes of a token of English.
const PASSES: u64 = 3;
const TOKEN_BYTES: u64 = 4;
/// Steps where the text says nothing, and the fewest.
const STEPS: u64 = 1000;
const FEWEST: u64 = 100;
/// Files that are looked at to estimate the size of the text.
const FILES: usize = 10_000;

/// What a training starts from.
pub(super) struct StartingPoint {
    /// `from = "..."` or `preset = "..."`.
    line: String,
    name: String,
    shape: ModelShape,
    /// The weights are trained already.
    is_trained: bool,
}

impl StartingPoint {
    /// The model folder or preset `from`, for the job file `file`.
    pub(super) fn find(from: &str, file: &Path) -> Result<StartingPoint> {
        if Path::new(from).is_dir() {
            let line = format!("from = {:?}", seen_from(file, from)?);
            let shape = ModelShape::of_folder(Path::new(from))?;
            return Ok(StartingPoint { line, name: from.to_owned(), shape, is_trained: true });
        }
        match ModelShape::of_preset(from) {
            Some(shape) => {
                let line = format!("preset = {from:?}");
                Ok(StartingPoint {
                    line,
                    name: format!("random weights in the shape of {from}"),
                    shape,
                    is_trained: false,
                })
            }
            None => Err(Error::Config(format!(
                "--from {from}: neither a folder that save_pretrained has written nor one of the presets gpt2-mini, \
                 gpt2, gpt2-medium, gpt2-large, gpt2-xl; ckptd downloads nothing"
            ))),
        }
    }
}

/// A job file to be.
pub(super) struct JobText {
    pub start: StartingPoint,
    pub texts: Vec<String>,
    pub hours: Option<f64>,
    pub steps: Option<u64>,
}

impl JobText {
    /// The text of the job file `file`.
    pub(super) fn write(&self, file: &Path) -> Result<String> {
        let StartingPoint { line, name, shape, is_trained } = &self.start;
        let free = available_memory();
        let fitted = fit(shape, free)?;
        let (batch, accumulation, length) = (fitted.batch_size, fitted.grad_accumulation, fitted.sequence_length);
        let per_step = batch * accumulation * length;
        let tokens = text_bytes(&self.texts) / TOKEN_BYTES;
        let usual = if tokens > 0 { (PASSES * tokens / per_step).max(FEWEST) } else { STEPS };
        let steps = self.steps.unwrap_or(usual);
        let passes = match tokens {
            0 => String::new(),
            tokens => {
                format!("  # about {} passes over the text", significant((steps * per_step) as f64 / tokens as f64))
            }
        };
        let peak = bytesize::ByteSize(shape.peak_bytes(&fitted));
        let of = free.map_or_else(String::new, |free| format!(" of {} that are free", bytesize::ByteSize(free)));
        let rate = if *is_trained { "5e-5" } else { "3e-4" };
        let (warmup, every) = ((steps / 10).clamp(1, 100).min(steps.saturating_sub(1)), (steps / 10).clamp(1, 500));
        let texts = self.texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ");
        let session = self.hours.map_or_else(String::new, |hours| {
            let budget = exact_duration(Duration::from_secs_f64((hours * 3600.0).round()));
            format!("\n[session]\nbudget = {budget:?}  # then a last snapshot and exit code 75: run it again\n")
        });
        Ok(format!(
            "# To train {name}: ckptd run {}\n# `ckptd init` without --from writes every key with its default.\n\n\
             [model]\n{line}\n\n[data]\ntext = [{texts}]\n\n[train]\nsteps = {steps}{passes}\n\
             batch_size = {batch}  # about {peak} of memory{of}\n\
             grad_accumulation = {accumulation}  # {} tokens per step\n\
             sequence_length = {length}\nlearning_rate = {rate}\nwarmup_steps = {warmup}\neval_every = {every}\n\
             {session}",
            file.display(),
            grouped(per_step),
        ))
    }
}

/// `path`, given from here, as the job file names it.
pub(super) fn seen_from(file: &Path, path: &str) -> Result<String> {
    let beside = file.parent().is_none_or(|folder| folder.as_os_str().is_empty());
    if beside || Path::new(path).is_absolute() {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path).map_err(|e| Error::io("resolving", path, e))?;
    Ok(absolute.to_string_lossy().into_owned())
}

/// Batch, accumulation and sequence length whose worker fits into `free` bytes, as many tokens as a step may have.
fn fit(shape: &ModelShape, free: Option<u64>) -> Result<TrainSection> {
    let room = free.map_or(u64::MAX, |free| (free as f64 * SHARE) as u64);
    let mut length = shape.positions.clamp(2, LONGEST);
    let mut least = 0;
    loop {
        for batch_size in [8, 4, 2, 1] {
            let train = TrainSection {
                batch_size,
                grad_accumulation: SEQUENCES / batch_size,
                sequence_length: length,
                ..TrainSection::default()
            };
            least = shape.peak_bytes(&train);
            if least <= room {
                return Ok(train);
            }
        }
        if length <= SHORTEST {
            let size = |bytes| bytesize::ByteSize(bytes).to_string();
            return Err(Error::Config(format!(
                "this model needs about {} of memory, and {} are free; take a smaller model, or a machine with more",
                size(least),
                free.map_or_else(|| "fewer".to_owned(), size)
            )));
        }
        length /= 2;
    }
}

/// Bytes of the text files that `texts` name, about; 0 where nothing can be said.
fn text_bytes(texts: &[String]) -> u64 {
    let mut left = FILES;
    texts.iter().map(|text| bytes_of(Path::new(text), &mut left)).sum()
}

/// A file's bytes, or those of the text files in a folder or below a glob's first wildcard.
fn bytes_of(path: &Path, left: &mut usize) -> u64 {
    let is_wild = |part: &std::ffi::OsStr| part.to_string_lossy().contains(['*', '?', '[']);
    let fixed: PathBuf = path.components().take_while(|part| !is_wild(part.as_os_str())).collect();
    let ending = path.extension().filter(|_| fixed != path).map(|ending| ending.to_string_lossy().into_owned());
    let Ok(metadata) = std::fs::metadata(&fixed) else { return 0 };
    if metadata.is_file() {
        return metadata.len();
    }
    let mut folders = vec![fixed];
    let mut bytes = 0;
    while let Some(entries) = folders.pop().and_then(|folder| std::fs::read_dir(folder).ok()) {
        for entry in entries.flatten() {
            *left = left.saturating_sub(1);
            let (path, metadata) = (entry.path(), entry.metadata());
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let counts = ending.as_ref().map_or(extension == "txt" || extension == "md", |ending| *ending == extension);
            match metadata {
                Ok(metadata) if metadata.is_dir() && *left > 0 => folders.push(path),
                Ok(metadata) if metadata.is_file() && counts => bytes += metadata.len(),
                _ => {}
            }
        }
    }
    bytes
}
