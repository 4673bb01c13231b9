//! The job that a state belongs to, so that an exported folder can be gone on with on another machine: `job.toml` with
//! the folder itself as its model, and on request the tokens that it trains on.
//!
//! Invariant: a run of `job.toml` has the same settings as the one that took the snapshot; where its data differ, the
//! worker refuses to resume. Deliberately not here: texts. They are larger, and the same texts give the same tokens.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::options::ExportOptions;
use super::source::ExportSource;
use super::target::ExportFolder;
use crate::mapped::{MappedFile, read_small};
use crate::names::{JOB, TOKENS, TOKENS_ORIGIN};
use ckptd_core::config::{Config, ModelSection};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::token_cache::{TokenCache, TokenOrigin, TokenRecord, TokenWidth};
use ckptd_core::token_file::{self, TokenLayout};

const HEAD: &str = "\
# The job of the state in this folder, as `ckptd export` has found it. To go on with it: ckptd run job.toml
";
const DATA_IS_ELSEWHERE: &str = "\
# [data] names files of the machine that it comes from: say where they are on this one. Other texts are refused.
";
const PIECE_BYTES: usize = 1 << 20;
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Writes the job of `options`, where one is known, and its tokens, where they are asked for.
pub(super) fn write(
    source: &ExportSource,
    folder: &mut ExportFolder,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<()> {
    let Some(job) = &options.job else {
        return if options.with_data {
            Err(Error::NotFound("no job has run in this store, so its data are not known".into()))
        } else {
            Ok(())
        };
    };
    let mut job = portable(job);
    if options.with_data {
        tokens(source, folder, options, progress)?;
        job.data.tokens = Some(TOKENS.into());
        job.data.text = Vec::new();
    }
    let head = format!("{HEAD}{}", if options.with_data { "" } else { DATA_IS_ELSEWHERE });
    let toml = toml::to_string_pretty(&job).map_err(|e| Error::Other(format!("writing {JOB}: {e}")))?;
    folder.file(JOB, format!("{head}\n{toml}").as_bytes())
}

/// The job as it is in the exported folder: what lies there is named from there, and the rest is where it always is.
fn portable(job: &Config) -> Config {
    let mut job = job.clone();
    job.job.store = PathBuf::new();
    job.model = ModelSection { from: Some(".".into()), preset: None, ..job.model };
    job.data.tokenizer = None;
    job.data.cache = PathBuf::new();
    job.status.socket = PathBuf::new();
    job
}

fn tokens(
    source: &ExportSource,
    folder: &mut ExportFolder,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<()> {
    let Some(data) = options.job.as_ref().map(|job| &job.data) else { return Ok(()) };
    let Some(content) = source.manifest().train.settings.data_content() else {
        return Err(Error::mismatch(source.path(), "the snapshot does not say what it was trained on"));
    };
    if let Some(path) = &data.tokens {
        return copy(path, Some(content), folder, progress).map(drop);
    }
    let cache = TokenCache::new(&data.cache);
    let record = cache.tokens_record(content);
    if let Some(gone) = [cache.tokens(content), record.clone()].into_iter().find(|path| !path.exists()) {
        return Err(Error::NotFound(format!(
            "{} is gone, in which the snapshot's tokens were kept; `ckptd run` with the job file makes it again from \
             the same text",
            gone.display()
        )));
    }
    let TokenRecord { width, .. } = serde_json::from_slice(&read_small(&record, MAX_RECORD_BYTES)?)
        .map_err(|e| Error::malformed(&record, format!("not what the worker writes there: {e}")))?;
    let blake3 = copy(&cache.tokens(content), None, folder, progress)?;
    let origin = TokenOrigin { blake3, content: content.to_owned(), width };
    let json =
        serde_json::to_string_pretty(&origin).map_err(|e| Error::Other(format!("writing {TOKENS_ORIGIN}: {e}")))?;
    folder.file(TOKENS_ORIGIN, format!("{json}\n").as_bytes())
}

/// Copies the token file at `path`, which must stand for `content` where that is given; returns its hash.
fn copy(path: &Path, content: Option<&str>, folder: &mut ExportFolder, progress: &dyn ProgressSink) -> Result<String> {
    let mapped = MappedFile::open(path)?;
    progress.begin("tokens", mapped.len());
    let mut hasher = blake3::Hasher::new();
    folder.part(TOKENS, |file| {
        for piece in mapped.bytes().chunks(PIECE_BYTES) {
            hasher.update(piece);
            file.write_all(piece).map_err(|e| Error::io("writing", TOKENS, e))?;
            progress.advance(piece.len() as u64)?;
        }
        Ok(())
    })?;
    let hash = hasher.finalize().to_hex().to_string();
    if content.is_none_or(|content| stands_for(mapped.bytes(), &hash, content)) {
        Ok(hash)
    } else {
        Err(Error::mismatch(path, "these are not the tokens that the snapshot was trained on"))
    }
}

/// Whether a token file with this hash stands for `content`, in the layout that its header says or in any other.
fn stands_for(file: &[u8], hash: &str, content: &str) -> bool {
    let offset = token_file::from_header(file).ok().flatten().map_or(0, |layout| layout.offset);
    let widths = [TokenWidth::U16, TokenWidth::U32, TokenWidth::I32, TokenWidth::I64];
    widths.into_iter().any(|width| TokenLayout { width, offset, tokens: 0 }.content(hash) == content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_job_keeps_its_settings_and_loses_its_machine() {
        let text = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a/*.txt\"]\n[train]\nlearning_rate = 1.25e-3\n";
        let here = Config::parse(text, Path::new("/here/job.toml")).unwrap();
        let toml = toml::to_string_pretty(&portable(&here)).unwrap();
        let there = Config::parse(&toml, Path::new("/there/moved.toml")).unwrap();
        assert_eq!(there.train, here.train);
        assert_eq!(there.model.from.as_deref(), Some(Path::new("/there/.")));
        assert_eq!(there.job.store, Path::new("/there/checkpoints/job"));
        assert_eq!(there.data.text, ["/here/a/*.txt"]);
        assert_eq!(there.data.cache, Path::new("/there/checkpoints/job/cache"));
    }
}
