//! A bundle into a folder, and what is refused. Its promise is that of the parent.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::kind::{BundleKind, kind_of};
use crate::export_record::{self, ExportRecord};
use crate::limits::ReadLimits;
use crate::mapped::MappedFile;
use crate::output::{self, OverwriteRule};
use crate::{archive, names};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::format::plain_name;

const PIECE_BYTES: usize = 1 << 20;

/// What unpacking came to.
#[derive(Clone, Debug, Serialize)]
pub struct UnpackReport {
    pub path: PathBuf,
    pub files: usize,
    /// Bytes of the files (S_raw) and of the bundle (S_packed).
    pub raw_bytes: u64,
    pub bytes: u64,
    /// `bytes / raw_bytes`.
    pub r: f64,
    /// Every file matched the hash that the bundle gives for it.
    pub verified: bool,
    /// Entries that macOS adds to archives, which were left packed.
    pub passed_over: Vec<String>,
    pub seconds: f64,
}

/// Unpacks the bundle at `bundle` into the new folder `target`.
pub fn unpack(
    bundle: &Path,
    target: &Path,
    overwrite: OverwriteRule,
    limits: &ReadLimits,
    progress: &dyn ProgressSink,
) -> Result<UnpackReport> {
    let began = Instant::now();
    let UnpackedFiles { names, raw_bytes, verified, passed_over } = output::folder(target, overwrite, |dir| {
        let files = unpack_into(bundle, dir, limits, progress)?;
        output::sync(dir, &files.names)?;
        Ok(files)
    })?;
    let bytes = MappedFile::open(bundle)?.len();
    Ok(UnpackReport {
        path: std::path::absolute(target).unwrap_or_else(|_| target.to_path_buf()),
        files: names.len(),
        raw_bytes,
        bytes,
        r: bytes as f64 / raw_bytes.max(1) as f64,
        verified,
        passed_over,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// What was unpacked into a folder.
pub struct UnpackedFiles {
    /// The files' plain names.
    pub names: Vec<String>,
    /// Bytes of all of them.
    pub raw_bytes: u64,
    /// Their hashes were known and matched.
    pub verified: bool,
    /// Entries that macOS adds to archives, which were left packed.
    pub passed_over: Vec<String>,
}

/// What is said of entries that were passed over, if there are any.
pub fn passed_over_note(entries: &[String]) -> Option<String> {
    let (first, more) = entries.split_first()?;
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    Some(format!("passed over what macOS adds to archives: {first}{more}"))
}

/// Whether `name` is one that macOS adds: resource forks and views of folders, no content.
fn is_of_macos(name: &str) -> bool {
    let relative = name.strip_prefix("./").unwrap_or(name);
    let plain = relative.rsplit('/').next().unwrap_or(relative);
    relative.starts_with("__MACOSX/") || plain.starts_with("._") || plain == ".DS_Store"
}

/// Unpacks into the empty folder `dir`. Nothing is made durable.
///
/// # Errors
/// [`Error::Malformed`] for a bundle that is damaged, lies about itself, or would write elsewhere.
pub fn unpack_into(
    bundle: &Path,
    dir: &Path,
    limits: &ReadLimits,
    progress: &dyn ProgressSink,
) -> Result<UnpackedFiles> {
    let mapped = MappedFile::open(bundle)?;
    let left = allowance(&mapped, dir, limits)?;
    let mut into =
        Unpacking { bundle, dir, limits, left, names: BundleNames::default(), passed_over: Vec::new(), progress };
    match kind_of(mapped.bytes()) {
        Some(BundleKind::Zip) => into.zip(&mapped)?,
        Some(BundleKind::TarZst) => into.tar(&mapped)?,
        None => return Err(Error::malformed(bundle, "neither a zip nor a tar.zst bundle")),
    }
    let mut raw_bytes = 0;
    for name in &into.names.seen {
        let path = dir.join(name);
        raw_bytes += std::fs::metadata(&path).map_err(|e| Error::io("looking at", path, e))?.len();
    }
    let verified = check_files(bundle, dir, &into.names.seen, progress)?;
    let (names, passed_over) = (into.names.seen.into_iter().collect(), into.passed_over);
    Ok(UnpackedFiles { names, raw_bytes, verified, passed_over })
}

/// How many bytes the bundle may unpack to.
fn allowance(mapped: &MappedFile, dir: &Path, limits: &ReadLimits) -> Result<u64> {
    let disk = rustix::fs::statvfs(dir).map_err(|e| Error::io("looking at", dir, e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(free.min(limits.expanded(mapped.len())))
}

/// Holds what was unpacked against what the bundle says of itself; false where it says nothing.
fn check_files(bundle: &Path, dir: &Path, names: &HashSet<String>, progress: &dyn ProgressSink) -> Result<bool> {
    let Some(state) = ExportRecord::read(dir)? else { return Ok(false) };
    let refuse = |what: String| Err(Error::malformed(bundle, what));
    let mut expected = HashSet::from([names::RECORD]);
    for record in &state.files {
        if !names.contains(&record.name) {
            return refuse(format!("{} is missing", record.name));
        }
        progress.advance(0)?;
        if export_record::file_record(dir, &record.name)? != *record {
            return refuse(format!("{} is not what was packed: its hash differs", record.name));
        }
        expected.insert(&record.name);
    }
    match names.iter().find(|name| !expected.contains(name.as_str())) {
        Some(extra) => refuse(format!("{extra:?} was not packed by ckptd")),
        None => Ok(true),
    }
}

/// The names of a bundle: plain ones, all in the same folder or all in none.
#[derive(Default)]
struct BundleNames {
    folder: Option<String>,
    seen: HashSet<String>,
}

impl BundleNames {
    /// The plain name of a file, or why it is refused.
    fn file(&mut self, name: &str, limits: &ReadLimits) -> Result<String, String> {
        let relative = name.strip_prefix("./").unwrap_or(name);
        let (folder, plain) = relative.rsplit_once('/').unwrap_or(("", relative));
        if !plain_name(plain) || !(folder.is_empty() || plain_name(folder)) || plain.chars().any(char::is_control) {
            return Err(format!("the name {name:?} could leave the folder, or lies deeper than a bundle's files do"));
        }
        if *self.folder.get_or_insert_with(|| folder.to_owned()) != folder {
            return Err(format!("{name:?} lies in another folder than the files before it"));
        }
        if self.seen.len() >= limits.bundle_files {
            return Err(format!("more than {} files", limits.bundle_files));
        }
        if self.seen.insert(plain.to_owned()) {
            Ok(plain.to_owned())
        } else {
            Err(format!("the name {name:?} occurs twice"))
        }
    }
}

/// An unpacking in progress.
struct Unpacking<'a> {
    bundle: &'a Path,
    dir: &'a Path,
    limits: &'a ReadLimits,
    /// Bytes that may still be written.
    left: u64,
    names: BundleNames,
    passed_over: Vec<String>,
    progress: &'a dyn ProgressSink,
}

impl Unpacking<'_> {
    fn refuse(&self, reason: impl std::fmt::Display) -> Error {
        Error::malformed(self.bundle, format!("{reason}; nothing was unpacked"))
    }

    fn zip(&mut self, mapped: &Arc<MappedFile>) -> Result<()> {
        let entries = archive::entries(mapped, self.limits)?;
        // All announced before anything is written.
        let total = entries.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.bytes));
        self.allow(total)?;
        let mut plan = Vec::new();
        for entry in entries.into_iter().filter(|entry| !entry.folder) {
            if !entry.regular {
                return Err(self.refuse(format!("{:?} is a link or a device", entry.name)));
            }
            if is_of_macos(&entry.name) {
                self.passed_over.push(entry.name);
                continue;
            }
            let name = self.names.file(&entry.name, self.limits).map_err(|what| self.refuse(what))?;
            plan.push((name, entry));
        }
        self.progress.begin("unpacking", total);
        let mut zip = archive::open(mapped)?;
        for (name, entry) in plan {
            let mut content = zip.by_index(entry.index).map_err(|e| self.refuse(format!("{name}: {e}")))?;
            self.write(&name, &mut content, entry.bytes)?;
        }
        Ok(())
    }

    fn tar(&mut self, mapped: &Arc<MappedFile>) -> Result<()> {
        let broken =
            |e: io::Error| Error::malformed(self.bundle, format!("not a readable tar.zst: {e}; nothing was unpacked"));
        let mut decoder = zstd::Decoder::new(mapped.bytes()).map_err(broken)?;
        decoder.window_log_max(self.limits.zstd_window_log).map_err(broken)?;
        self.progress.begin("unpacking", 0);
        let mut archive = tar::Archive::new(&mut decoder);
        // Raw: the crate would read long names and attributes whole into memory; a bundle has none.
        for entry in archive.entries().map_err(broken)?.raw(true) {
            let mut entry = entry.map_err(|e| self.refuse(format!("not a readable tar.zst: {e}")))?;
            let name = String::from_utf8(entry.path_bytes().into_owned())
                .map_err(|_| self.refuse("a name that is not UTF-8"))?;
            match entry.header().entry_type() {
                tar::EntryType::Directory if entry.size() == 0 => continue,
                tar::EntryType::Regular => {}
                other => {
                    return Err(self.refuse(format!(
                        "{name:?} is of the kind {other:?}; a bundle has plain files only (pack with tar \
                         --format=ustar)"
                    )));
                }
            }
            if is_of_macos(&name) {
                if self.passed_over.len() >= self.limits.bundle_files {
                    return Err(self.refuse(format!("more than {} files", self.limits.bundle_files)));
                }
                self.passed_over.push(name);
                continue;
            }
            let bytes = entry.header().entry_size().map_err(|e| self.refuse(format!("{name:?}: {e}")))?;
            let plain = self.names.file(&name, self.limits).map_err(|what| self.refuse(what))?;
            self.allow(bytes)?;
            self.write(&plain, &mut entry, bytes)?;
        }
        self.read_out(decoder)
    }

    /// Reads the stream to its end, where its checksum stands; behind the files there may be padding only.
    fn read_out(&self, stream: impl Read) -> Result<()> {
        let mut rest = stream.take(1 << 20);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match rest.read(&mut buffer).map_err(|e| self.refuse(e))? {
                0 if rest.limit() == 0 => return Err(self.refuse("more follows behind the last file")),
                0 => return Ok(()),
                n if buffer[..n].iter().any(|&b| b != 0) => {
                    return Err(self.refuse("more follows behind the last file"));
                }
                _ => {}
            }
        }
    }

    fn allow(&mut self, bytes: u64) -> Result<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.refuse(format!(
                "it would unpack to at least {bytes} bytes, of which only {} are justified by its size and the free \
                 disk",
                self.left
            ))),
        }
    }

    /// Exactly `bytes` bytes of `content`; one more is a lie, and so is one less.
    fn write(&self, name: &str, content: &mut impl Read, bytes: u64) -> Result<()> {
        output::part(self.dir, name, |file| {
            let mut buffer = vec![0; PIECE_BYTES];
            let mut written = 0u64;
            loop {
                let n = content.read(&mut buffer).map_err(|e| self.refuse(format!("{name}: {e}")))?;
                written += n as u64;
                if written > bytes || (n == 0 && written < bytes) {
                    return Err(self.refuse(format!("{name} does not have the {bytes} bytes that it announces")));
                }
                if n == 0 {
                    return Ok(());
                }
                file.write_all(&buffer[..n]).map_err(|e| Error::io("writing", self.dir.join(name), e))?;
                self.progress.advance(n as u64)?;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_macos_adds_to_archives_is_known_by_its_name() {
        for name in ["__MACOSX/model/._config.json", "model/._config.json", "./._a", "model/.DS_Store", ".DS_Store"] {
            assert!(is_of_macos(name), "{name}");
        }
        for name in ["model/config.json", "__MACOSX", "model/__MACOSX.json", "a._b"] {
            assert!(!is_of_macos(name), "{name}");
        }
    }

    #[test]
    fn only_plain_names_in_one_folder_are_unpacked() {
        let plain = |name: &str| BundleNames::default().file(name, &ReadLimits::default());
        assert_eq!(plain("a").as_deref(), Ok("a"));
        assert_eq!(plain("./a").as_deref(), Ok("a"));
        assert_eq!(plain("model/a").as_deref(), Ok("a"));
        // Nothing is left of the root: the file lies in the new folder like the others.
        assert_eq!(plain("/a").as_deref(), Ok("a"));
        for name in ["", ".", "..", "a/../b", "a/b/c", "a\\b", "a\0b", "a\tb", "a/"] {
            assert!(plain(name).is_err(), "{name:?}");
        }
    }
}
