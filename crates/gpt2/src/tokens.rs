//! Token files: little-endian ids, memory-mapped to read, whole or absent when written. Those of the cache hold u16 or
//! u32 ids and nothing else; those from elsewhere may have a header and wider ids.
//!
//! Invariant: what is known about a file ([`TokenFacts`]) was read from exactly these bytes. It is remembered beside
//! the cache and believed without another look only while the file's [`FileStamp`] is the same. Deliberately not here:
//! where ids come from and what they mean (data).

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ckptd_core::os::publish::{Existing, publish};
use ckptd_core::os::stamp::FileStamp;
use ckptd_core::progress::ProgressSink;
use ckptd_core::token_cache::{TokenFacts, TokenWidth};
use ckptd_core::token_file::TokenLayout;
use ckptd_core::{Error, Result};
use memmap2::Mmap;
use serde::{Serialize, de::DeserializeOwned};
use tempfile::NamedTempFile;

/// Unfinished files in a cache folder begin with it.
const TEMPORARY: &str = ".tmp-";

/// A run of tokens in a memory-mapped file. Clones share the mapping; the operating system keeps of the file in
/// memory what is read often. A file that is shortened while it is mapped ends the process with SIGBUS.
#[derive(Clone, Debug)]
pub struct TokenView {
    map: Arc<Mmap>,
    width: TokenWidth,
    /// Bytes before the file's first id.
    offset: usize,
    start: usize,
    len: usize,
}

/// A token file that is open, and is not yet known to hold anything.
pub struct TokenFile {
    map: Arc<Mmap>,
    /// Of the file that was opened.
    pub stamp: FileStamp,
}

impl TokenFile {
    /// Opens `path`, which must be a plain file.
    pub fn open(path: &Path) -> Result<TokenFile> {
        let file = File::open(path).map_err(|e| Error::io("opening token file", path, e))?;
        TokenFile::of(&file, path)
    }

    /// Maps a file that is open; `path` names it in errors.
    fn of(file: &File, path: &Path) -> Result<TokenFile> {
        let metadata = file.metadata().map_err(|e| Error::io("reading", path, e))?;
        if !metadata.is_file() {
            return Err(Error::Config(format!("[data] tokens: {} is not a plain file", path.display())));
        }
        // SAFETY: the mapping is read only. Bytes that another process changes underneath are read as other ids,
        // which are checked where they matter; a file shortened underneath raises SIGBUS, as documented above.
        let map = unsafe { Mmap::map(file) }.map_err(|e| Error::io("mapping token file", path, e))?;
        Ok(TokenFile { map: Arc::new(map), stamp: FileStamp::from(&metadata) })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The ids of the file, which are where `layout` says that they are.
    pub fn view(&self, layout: &TokenLayout) -> TokenView {
        let (offset, len) = (layout.offset as usize, layout.tokens as usize);
        assert!(offset + len * layout.width.bytes() <= self.map.len(), "{layout:?} of {} bytes", self.map.len());
        TokenView { map: Arc::clone(&self.map), width: layout.width, offset, start: 0, len }
    }
}

impl TokenView {
    /// The whole of `path`, which holds nothing but ids, and the stamp of the file that was opened.
    pub fn open(path: &Path, width: TokenWidth) -> Result<(TokenView, FileStamp)> {
        let file = TokenFile::open(path)?;
        let layout = TokenLayout::plain(width, file.bytes().len() as u64)
            .map_err(|what| Error::Config(format!("[data] tokens: {}: {what}", path.display())))?;
        Ok((file.view(&layout), file.stamp))
    }

    /// All bytes of the file that the view is of.
    pub fn file(&self) -> &[u8] {
        &self.map
    }

    /// Where the ids of that file are.
    pub fn file_layout(&self) -> TokenLayout {
        let (width, offset) = (self.width, self.offset);
        let tokens = (self.map.len() - offset) / width.bytes();
        TokenLayout { width, offset: offset as u64, tokens: tokens as u64 }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tokens in `range`, which lies within [`TokenView::len`].
    pub fn slice(&self, range: Range<usize>) -> TokenView {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} tokens", self.len);
        TokenView { start: self.start + range.start, len: range.len(), ..self.clone() }
    }

    /// The ids in `range`, which lies within [`TokenView::len`]. What is no id ([`TokenView::scan`] refuses it) is
    /// some number.
    pub fn ids(&self, range: Range<usize>) -> impl Iterator<Item = u32> + '_ {
        self.numbers(range).map(|number| number as u32)
    }

    fn numbers(&self, range: Range<usize>) -> impl Iterator<Item = i64> + '_ {
        let (size, width) = (self.width.bytes(), self.width);
        self.bytes(range).chunks_exact(size).map(move |id| match *id {
            [a, b] => i64::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] if width == TokenWidth::I32 => i64::from(i32::from_le_bytes([a, b, c, d])),
            [a, b, c, d] => i64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => unreachable!("an id has 2, 4 or 8 bytes"),
        })
    }

    /// Reads every token of the view, and hashes the whole file.
    ///
    /// # Errors
    /// [`Error::Config`], as a clause with its position, for a number that is no id of any vocabulary.
    pub fn scan(&self, progress: &dyn ProgressSink) -> Result<TokenFacts> {
        const CHUNK: usize = 4 << 20;
        progress.begin("checking tokens", (self.len * self.width.bytes()) as u64);
        let mut survey = TokenSurvey::default();
        survey.hasher.update(&self.map[..self.offset]);
        for start in (0..self.len).step_by(CHUNK) {
            let range = start..(start + CHUNK).min(self.len);
            let bytes = self.bytes(range.clone());
            survey.hasher.update(bytes);
            let is_id = |number: &i64| u32::try_from(*number).is_ok();
            if let Some(at) = self.numbers(range.clone()).position(|number| !is_id(&number)) {
                let number = self.numbers(start + at..start + at + 1).next().unwrap_or_default();
                return Err(Error::Config(format!("token id {number} at position {} is no id", start + at)));
            }
            survey.count(self.ids(range));
            progress.advance(bytes.len() as u64)?;
        }
        Ok(survey.facts())
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} tokens", self.len);
        let size = self.width.bytes();
        let from = |at: usize| self.offset + (self.start + at) * size;
        &self.map[from(range.start)..from(range.end)]
    }
}

#[derive(Default)]
struct TokenSurvey {
    hasher: blake3::Hasher,
    tokens: u64,
    max: Option<(u32, u64)>,
}

impl TokenSurvey {
    fn count(&mut self, ids: impl Iterator<Item = u32>) {
        for id in ids {
            if self.max.is_none_or(|(max, _)| id > max) {
                self.max = Some((id, self.tokens));
            }
            self.tokens += 1;
        }
    }

    fn facts(&self) -> TokenFacts {
        let (max_id, max_at) = self.max.unwrap_or_default();
        TokenFacts { blake3: self.hasher.finalize().to_hex().to_string(), tokens: self.tokens, max_id, max_at }
    }
}

/// Writes a token file; nothing stands at its path before [`TokenWriter::finish`].
pub struct TokenWriter {
    file: BufWriter<NamedTempFile>,
    width: TokenWidth,
    survey: TokenSurvey,
    bytes: Vec<u8>,
}

impl TokenWriter {
    /// Starts a file in `folder`.
    pub fn create(folder: &Path, width: TokenWidth) -> Result<TokenWriter> {
        let file = BufWriter::with_capacity(1 << 20, temporary(folder)?);
        Ok(TokenWriter { file, width, survey: TokenSurvey::default(), bytes: Vec::new() })
    }

    /// Appends `ids`, each of which fits the width.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        self.bytes.clear();
        match self.width {
            TokenWidth::U16 => self.bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            TokenWidth::U32 | TokenWidth::I32 => self.bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
            TokenWidth::I64 => self.bytes.extend(ids.iter().flat_map(|&id| i64::from(id).to_le_bytes())),
        }
        debug_assert!(self.width != TokenWidth::U16 || ids.iter().all(|&id| id <= u32::from(u16::MAX)));
        self.survey.hasher.update(&self.bytes);
        self.survey.count(ids.iter().copied());
        self.file.write_all(&self.bytes).map_err(|e| Error::io("writing", self.file.get_ref().path(), e))
    }

    /// Makes the file durable and gives it its name, in the place of any other.
    pub fn finish(self, path: &Path) -> Result<TokenFacts> {
        let facts = self.survey.facts();
        let file = self.file.into_inner().map_err(|e| Error::io("writing", path, e.into_error()))?;
        persist(file, path)?;
        Ok(facts)
    }
}

/// Takes a token file from elsewhere, piece by piece.
pub struct TokenCopy {
    file: CopyPlace,
    hasher: blake3::Hasher,
    bytes: u64,
}

/// Where it goes.
enum CopyPlace {
    /// Into a cache, at this path.
    Cached(NamedTempFile, PathBuf),
    /// No folder for it can be made: into a file without a name.
    Nameless(File),
}

impl TokenCopy {
    /// Starts one that is to lie at `path`; in the folder for temporary files, where that one's cannot be written.
    pub fn begin(path: &Path) -> Result<TokenCopy> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = match prepare_cache(folder).and_then(|()| temporary(folder)) {
            Ok(file) => CopyPlace::Cached(file, path.to_path_buf()),
            Err(_) => {
                let nameless = tempfile::tempfile();
                CopyPlace::Nameless(nameless.map_err(|e| Error::io("creating a file in", std::env::temp_dir(), e))?)
            }
        };
        Ok(TokenCopy { file, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: &[u8]) -> Result<()> {
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
        match &mut self.file {
            CopyPlace::Cached(file, path) => file.write_all(piece).map_err(|e| Error::io("writing", path, e)),
            CopyPlace::Nameless(file) => {
                file.write_all(piece).map_err(|e| Error::io("writing a file in", std::env::temp_dir(), e))
            }
        }
    }

    /// Opens what has arrived, where it has this BLAKE3.
    ///
    /// # Errors
    /// [`Error::Other`] where it has not.
    pub fn finish(self, blake3: &str) -> Result<TokenFile> {
        if self.hasher.finalize().to_hex().as_str() != blake3 {
            return Err(Error::Other(format!("{} bytes of tokens arrived, and not those that were sent", self.bytes)));
        }
        match self.file {
            CopyPlace::Cached(file, path) => {
                persist(file, &path)?;
                TokenFile::open(&path)
            }
            CopyPlace::Nameless(file) => TokenFile::of(&file, &std::env::temp_dir()),
        }
    }
}

/// The JSON document at `path`, or `None` where there is none that can be read: what is remembered is worth nothing
/// but time.
pub fn recall<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes `value` as a JSON document to `path`.
pub fn remember<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let json = serde_json::to_vec(value).map_err(|e| Error::Other(format!("writing {}: {e}", path.display())))?;
    write_whole(path, &json)
}

/// Writes `bytes` to `path`, whole or not at all, also when two processes do it at once.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes).map_err(|e| Error::io("writing", path, e))?;
    persist(file, path)
}

/// Makes the cache folder, and clears it of what killed processes left unfinished.
pub fn prepare_cache(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating cache folder", folder, e))?;
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("reading cache folder", folder, e))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY)) {
        // The writer of a temporary file holds a lock on it. A young one may not be locked yet.
        let is_young = entry.metadata().ok().and_then(|m| m.modified().ok()).is_none_or(|modified| {
            SystemTime::now().duration_since(modified).is_ok_and(|age| age < Duration::from_secs(60))
        });
        let is_free = || File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if !is_young && is_free() {
            // Another process may have been quicker.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// A locked temporary file in `folder`, removed when dropped.
fn temporary(folder: &Path) -> Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        // As any new file, less the umask: a cache may be shared.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(|e| Error::io("creating a file in", folder, e))?;
    // A file system without locks only loses the clearing of left-overs.
    let _ = file.as_file().try_lock();
    Ok(file)
}

fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    let published = publish(file.as_file(), file.path(), path, Existing::Replace);
    if published.is_ok() {
        // Its name is the target's now; there is nothing left to remove.
        let _ = file.keep();
    }
    published
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ckptd_core::progress::NoProgress;

    use super::*;

    fn write(folder: &Path, width: TokenWidth, ids: &[u32]) -> (std::path::PathBuf, TokenFacts) {
        let path = folder.join("tokens.bin");
        let mut writer = TokenWriter::create(folder, width).unwrap();
        for part in ids.chunks(3) {
            writer.push(part).unwrap();
        }
        assert!(!path.exists(), "a half file has no name");
        let facts = writer.finish(&path).unwrap();
        (path, facts)
    }

    #[test]
    fn ids_come_back_as_written_and_the_facts_are_those_of_the_file() {
        for (width, ids) in
            [(TokenWidth::U16, vec![3, 65535, 0, 65535, 9]), (TokenWidth::U32, vec![70_000, 1, u32::MAX, 2])]
        {
            let folder = tempfile::tempdir().unwrap();
            let (path, facts) = write(folder.path(), width, &ids);
            let (view, stamp) = TokenView::open(&path, width).unwrap();
            assert_eq!(stamp.bytes as usize, ids.len() * width.bytes());
            assert_eq!(view.ids(0..view.len()).collect::<Vec<_>>(), ids);
            assert_eq!(view.slice(1..4).slice(1..2).ids(0..1).collect::<Vec<_>>(), ids[2..3]);
            assert_eq!(view.scan(&NoProgress).unwrap(), facts);
            assert_eq!(facts.blake3, blake3::hash(&std::fs::read(&path).unwrap()).to_hex().as_str());
            assert_eq!(facts.max_at, if width == TokenWidth::U16 { 1 } else { 2 });
        }
    }

    #[test]
    fn a_file_of_odd_length_is_refused_and_an_empty_one_has_no_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.bin");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        let error = TokenView::open(&path, TokenWidth::U16).unwrap_err();
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("3 bytes are no whole number of 2-byte ids"), "{error}");
        std::fs::write(&path, []).unwrap();
        assert!(TokenView::open(&path, TokenWidth::U16).unwrap().0.is_empty());
    }

    #[test]
    fn a_cache_is_cleared_of_old_left_overs_but_not_of_files_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let writing = temporary(folder.path()).unwrap();
        let (left, young) = (folder.path().join(".tmp-left"), folder.path().join(".tmp-young"));
        for path in [&left, &young] {
            std::fs::write(path, "x").unwrap();
        }
        let old = SystemTime::now() - Duration::from_secs(120);
        File::options().write(true).open(&left).unwrap().set_modified(old).unwrap();
        writing.as_file().set_modified(old).unwrap();
        prepare_cache(folder.path()).unwrap();
        assert!(!left.exists() && young.exists() && writing.path().exists());
    }
}
