//! The text files of a job, and the hashes of their contents.
//!
//! Invariant: a hash is believed without reading the file only while the file's stamp is the one it had when it was
//! read, and had then settled (see [`FileStamp::is_settled`]). Deliberately not here: what is in the files (text).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ckptd_core::os::stamp::FileStamp;
use ckptd_core::progress::ProgressSink;
use ckptd_core::token_cache::{TextRecord, TokenCache};
use ckptd_core::{Error, Result};

use crate::tokens::{recall, remember};

/// A text file and the BLAKE3 of its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TextFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub hash: blake3::Hash,
}

/// Hashes `paths`, except those that are unchanged since `cache` last saw this list of paths.
pub(super) fn digest(paths: Vec<PathBuf>, cache: &TokenCache, progress: &dyn ProgressSink) -> Result<Vec<TextFile>> {
    let record = cache.texts_record(&paths);
    let before: Vec<TextRecord> =
        recall(&record).filter(|b: &Vec<TextRecord>| b.len() == paths.len()).unwrap_or_default();
    let now = SystemTime::now();
    let (mut known, mut unread_bytes) = (Vec::with_capacity(paths.len()), 0);
    for (i, path) in paths.iter().enumerate() {
        let stamp = FileStamp::from(&path.metadata().map_err(|e| Error::io("reading", path, e))?);
        let same = before.get(i).filter(|before| before.stamp.as_ref() == Some(&stamp));
        let hash = same.and_then(|before| blake3::Hash::from_hex(&before.blake3).ok());
        unread_bytes += if hash.is_none() { stamp.bytes } else { 0 };
        known.push(hash.map(|hash| (stamp, hash)));
    }
    let has_news = known.iter().any(Option::is_none);
    if has_news {
        progress.begin("reading text", unread_bytes);
    }
    let (mut files, mut records) = (Vec::with_capacity(paths.len()), Vec::with_capacity(paths.len()));
    for (path, known) in paths.into_iter().zip(known) {
        let (stamp, hash) = known.map_or_else(|| hash_file(&path, progress), Ok)?;
        files.push(TextFile { path, bytes: stamp.bytes, hash });
        records.push(TextRecord { stamp: stamp.is_settled(now).then_some(stamp), blake3: hash.to_hex().to_string() });
    }
    if has_news {
        remember(&record, &records)?;
    }
    Ok(files)
}

fn hash_file(path: &Path, progress: &dyn ProgressSink) -> Result<(FileStamp, blake3::Hash)> {
    let fail = |e| Error::io("reading", path, e);
    let mut file = File::open(path).map_err(fail)?;
    let stamp = FileStamp::from(&file.metadata().map_err(fail)?);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                progress.advance(n as u64)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
    if FileStamp::from(&file.metadata().map_err(fail)?) != stamp {
        return Err(changed(path));
    }
    Ok((stamp, hasher.finalize()))
}

/// The error of a file that is no longer what was hashed.
pub(super) fn changed(path: &Path) -> Error {
    Error::Other(format!("{} changed while it was being read; start again when it is complete", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct ReadBytes(AtomicU64);

    impl ProgressSink for ReadBytes {
        fn begin(&self, _stage: &str, _total_bytes: u64) {}

        fn advance(&self, bytes: u64) -> Result<()> {
            self.0.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn an_unchanged_file_is_not_read_again_and_a_changed_one_is() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = [folder.path().join("a.txt"), folder.path().join("b.txt")];
        paths.iter().for_each(|path| std::fs::write(path, "a.txt").unwrap());
        // What the cache remembers is made to look settled, which takes two seconds otherwise.
        let settle = || {
            let memory = std::fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
            let mut seen: Vec<TextRecord> = recall(&memory).unwrap();
            for (seen, path) in seen.iter_mut().zip(&paths) {
                seen.stamp = Some(FileStamp::from(&path.metadata().unwrap()));
            }
            remember(&memory, &seen).unwrap();
        };
        let read = || {
            let read_bytes = ReadBytes::default();
            let sources = digest(paths.to_vec(), &TokenCache::new(cache.path()), &read_bytes).unwrap();
            assert_eq!(sources[1].hash, blake3::hash(&std::fs::read(&paths[1]).unwrap()));
            read_bytes.0.into_inner()
        };
        assert!(read() > 0);
        assert!(read() > 0, "a file that changed a moment ago is read again");
        settle();
        assert_eq!(read(), 0);
        // The same size and the same modification time, but other contents.
        let modified = paths[1].metadata().unwrap().modified().unwrap();
        std::fs::write(&paths[1], "c.txt").unwrap();
        File::options().write(true).open(&paths[1]).unwrap().set_modified(modified).unwrap();
        assert!(read() > 0);
        assert!(SystemTime::now() > modified + Duration::ZERO);
    }
}
