//! Which text files a job names, in an order that is the same everywhere.
//!
//! Invariant: what cannot be read is passed over and told, and is an error where the job spells it out.
//! Deliberately not here: the hashes of their contents (text_files).

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use ckptd_core::{Error, Result};
use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::{Access, access};
use walkdir::WalkDir;

/// What a folder is searched for.
const ENDINGS: [&str; 2] = ["txt", "md"];

/// What [`find`] has found.
#[derive(Debug, Default)]
pub(super) struct FoundFiles {
    pub(super) files: Vec<PathBuf>,
    /// What was passed over, and why.
    pub(super) passed_over: Vec<String>,
    /// How many files of which ending were not looked for, of the entry that was searched last.
    others: BTreeMap<String, usize>,
}

/// The files that `entries` (`[data] text`: files, folders and globs) name: the entries in their order, within an
/// entry by path, each file once. Hidden files and folders are passed over unless they are spelled out.
pub(super) fn find(entries: &[String]) -> Result<FoundFiles> {
    let mut all = FoundFiles::default();
    let mut seen = std::collections::HashSet::new();
    for entry in entries {
        all.others.clear();
        let before = all.passed_over.len();
        let mut found = matches(entry, &mut all)?;
        if found.is_empty() {
            return Err(Error::Config(format!("[data] text: {entry} {}", all.why_nothing(before))));
        }
        found.sort();
        all.files.extend(found.into_iter().filter(|path| seen.insert(path.clone())));
    }
    Ok(all)
}

impl FoundFiles {
    /// Why the last entry came to nothing; `before` things were passed over before it.
    fn why_nothing(&self, before: usize) -> String {
        let mut why = "matches no file".to_owned();
        if let Some((ending, _)) = self.others.iter().next() {
            let list: Vec<String> =
                self.others.iter().take(3).map(|(ending, count)| format!("{count} *{ending}")).collect();
            why = format!(
                "matches no file: a folder is searched for *.txt and *.md, and there are {}; name them with a glob \
                 that ends with /**/*{ending}",
                list.join(", ")
            );
        }
        match self.passed_over.get(before) {
            Some(one) => format!("{why}; passed over: {one}"),
            None if self.others.is_empty() => {
                format!("{why}; name a file, a folder (searched for *.txt and *.md) or a glob such as data/**/*.txt")
            }
            None => why,
        }
    }
}

fn matches(entry: &str, all: &mut FoundFiles) -> Result<Vec<PathBuf>> {
    let (base, pattern) = split_glob(Path::new(entry));
    if pattern.as_os_str().is_empty() {
        return match base.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                let is_text = |relative: &Path| {
                    relative.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
                };
                walk(&base, usize::MAX, false, is_text, all)
            }
            Ok(metadata) if metadata.is_file() => Ok(vec![base]),
            Ok(metadata) => {
                let kind = kind(metadata.file_type());
                let why = format!("{entry} is {kind}, and its text could be read once only; write it to a file");
                Err(Error::Config(format!("[data] text: {why}")))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(Error::io("reading", base, e)),
        };
    }
    let pattern = pattern.to_string_lossy().into_owned();
    let matcher = compile(&pattern)?;
    // A glob without ** reaches no deeper than it has parts; braces may hold further ones.
    let is_deep = pattern.contains("**") || pattern.contains('{');
    let depth = if is_deep { usize::MAX } else { pattern.split('/').count() };
    let hidden = pattern.split('/').any(|part| part.starts_with('.'));
    walk(&base, depth, hidden, |relative| matcher.is_match(relative), all)
}

/// What is no file, in words.
fn kind(kind: std::fs::FileType) -> &'static str {
    match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "no plain file",
    }
}

/// The part of `entry` that is meant literally, and the glob that follows it. A part that exists as it is spelled is
/// meant literally, so that a folder may be called `[old]`.
fn split_glob(entry: &Path) -> (PathBuf, PathBuf) {
    let mut base = PathBuf::new();
    let mut parts = entry.components();
    loop {
        let rest = parts.as_path().to_path_buf();
        let Some(part) = parts.next() else { return (base, PathBuf::new()) };
        let next = base.join(part);
        let is_plain = match part {
            Component::Normal(name) => !name.as_bytes().iter().any(|byte| b"*?[]{}".contains(byte)) || next.exists(),
            _ => true,
        };
        if !is_plain {
            return (base, rest);
        }
        base = next;
    }
}

fn compile(pattern: &str) -> Result<GlobMatcher> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    Ok(glob.map_err(|e| Error::Config(format!("[data] text: {pattern} is not a glob: {e}")))?.compile_matcher())
}

/// The plain files under `base` whose path relative to it is wanted. What cannot be read is passed over.
fn walk(
    base: &Path,
    depth: usize,
    hidden: bool,
    wanted: impl Fn(&Path) -> bool,
    all: &mut FoundFiles,
) -> Result<Vec<PathBuf>> {
    let is_hidden = |name: &std::ffi::OsStr| name.as_bytes().starts_with(b".");
    let entries = WalkDir::new(base).min_depth(1).max_depth(depth).follow_links(true).into_iter();
    let mut files = Vec::new();
    for entry in entries.filter_entry(|entry| hidden || entry.depth() == 0 || !is_hidden(entry.file_name())) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                pass_over(&e, base, all)?;
                continue;
            }
        };
        // Every entry lies under the base.
        let relative = entry.path().strip_prefix(base).unwrap_or(entry.path());
        let name = entry.path().display();
        if entry.file_type().is_dir() {
        } else if !wanted(relative) {
            let ending = relative.extension().map(|ending| format!(".{}", ending.to_string_lossy()));
            *all.others.entry(ending.unwrap_or_default()).or_default() += usize::from(entry.file_type().is_file());
        } else if !entry.file_type().is_file() {
            all.passed_over.push(format!("{name} is {}", kind(entry.file_type())));
        } else if access(entry.path(), Access::READ_OK).is_err() {
            all.passed_over.push(format!("{name} may not be read (chmod a+r)"));
        } else {
            files.push(entry.into_path());
        }
    }
    all.others.retain(|ending, count| !ending.is_empty() && *count > 0);
    Ok(files)
}

/// Notes a folder that cannot be searched.
fn pass_over(e: &walkdir::Error, base: &Path, all: &mut FoundFiles) -> Result<()> {
    let path = e.path().unwrap_or(base);
    if let Some(ancestor) = e.loop_ancestor() {
        let (link, to) = (path.display(), ancestor.display());
        all.passed_over.push(format!("{link} is a link back to {to}, which was searched already"));
        return Ok(());
    }
    match e.io_error().map(std::io::Error::kind) {
        // A link to nothing, or a base that is not there: no file of this name.
        Some(std::io::ErrorKind::NotFound) => Ok(()),
        Some(std::io::ErrorKind::PermissionDenied) => {
            all.passed_over.push(format!("{} may not be read (chmod a+rx)", path.display()));
            Ok(())
        }
        _ => {
            let error = e.io_error().and_then(std::io::Error::raw_os_error).map(std::io::Error::from_raw_os_error);
            let error = error.unwrap_or_else(|| std::io::Error::other("it cannot be searched"));
            Err(Error::io("searching", path, error))
        }
    }
}

/// What was passed over, as one note.
pub(super) fn summary(passed_over: &[String]) -> Option<String> {
    let first = passed_over.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("; ");
    let rest = passed_over.len().saturating_sub(3);
    match passed_over.len() {
        0 => None,
        1..=3 => Some(format!("[data] text: passed over: {first}")),
        _ => Some(format!("[data] text: passed over: {first}; and {rest} more")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ckptd_core::progress::NoProgress;
    use ckptd_core::token_cache::TokenCache;

    use super::*;
    use crate::data::text_files::digest;

    fn tree(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        folder
    }

    fn found(folder: &Path, entries: &[&str]) -> Vec<String> {
        let entries: Vec<String> = entries.iter().map(|e| folder.join(e).to_string_lossy().into_owned()).collect();
        let files = find(&entries).unwrap().files;
        files.iter().map(|path| path.strip_prefix(folder).unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn files_folders_and_globs_name_files_in_one_order_each_once() {
        let folder = tree(&["a/2.txt", "a/10.txt", "a/b/c/3.md", "a/b/4.rs", "a/.hidden/5.txt", "[x]/6.txt", "7.txt"]);
        let found = |entries: &[&str]| found(folder.path(), entries);
        assert_eq!(found(&["a"]), ["a/10.txt", "a/2.txt", "a/b/c/3.md"]);
        assert_eq!(found(&["7.txt", "a/*.txt", "a"]), ["7.txt", "a/10.txt", "a/2.txt", "a/b/c/3.md"]);
        assert_eq!(found(&["**/*.txt"]), ["7.txt", "[x]/6.txt", "a/10.txt", "a/2.txt"]);
        assert_eq!(found(&["a/b/**"]), ["a/b/4.rs", "a/b/c/3.md"]);
        assert_eq!(found(&["[x]/*.txt"]), ["[x]/6.txt"]);
        assert_eq!(found(&["a/[0-2].{txt,md}"]), ["a/2.txt"]);
        assert_eq!(found(&["a/.hidden/*"]), ["a/.hidden/5.txt"]);
        assert_eq!(found(&["a/*/../../7.txt", "7.txt"].map(|e| e.trim_start_matches("a/*/../../"))), ["7.txt"]);
    }

    #[test]
    fn an_entry_that_matches_nothing_is_an_error_that_names_it() {
        let folder = tree(&["a/b.rs"]);
        for entry in ["a", "a/*.txt", "missing.txt", "missing/**/*.txt"] {
            let entry = folder.path().join(entry).to_string_lossy().into_owned();
            let error = find(std::slice::from_ref(&entry)).unwrap_err();
            assert_eq!(error.exit_code(), 78);
            assert!(error.to_string().contains(&format!("{entry} matches no file")), "{error}");
        }
        assert!(find(&["/x/[".into()]).unwrap_err().to_string().contains("is not a glob"));
    }

    #[test]
    fn what_cannot_be_read_is_passed_over_and_told() {
        let folder = tree(&["a/1.txt", "a/b/2.txt"]);
        let fifo = folder.path().join("a/c.txt");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        std::os::unix::fs::symlink(folder.path().join("a"), folder.path().join("a/b/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("a/dangling.txt")).unwrap();
        let entry = |name: &str| vec![folder.path().join(name).to_string_lossy().into_owned()];
        for name in ["a", "a/**/*.txt"] {
            let found = find(&entry(name)).unwrap();
            assert_eq!(found.files.len(), 2, "{found:?}");
            let told = summary(&found.passed_over).unwrap();
            assert!(told.contains("c.txt is a FIFO") && told.contains("loop is a link back to"), "{told}");
        }
        let error = find(&entry("a/c.txt")).unwrap_err().to_string();
        assert!(error.contains("c.txt is a FIFO") && error.contains("write it to a file"), "{error}");
    }

    /// What `work` comes to for a user who is not root.
    fn as_somebody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let somebody = scope.spawn(|| {
                if rustix::process::geteuid().is_root() {
                    // Of this thread alone.
                    let id = rustix::thread::Uid::from_raw(65534);
                    rustix::thread::set_thread_res_uid(id, id, id).unwrap();
                }
                work()
            });
            somebody.join().unwrap()
        })
    }

    #[test]
    fn closed_files_and_folders_are_passed_over_and_told_and_refused_where_they_are_named() {
        let folder = tree(&["open.txt", "closed.txt", "locked/1.txt"]);
        let mode = |name: &str, mode: u32| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(folder.path().join(name), permissions).unwrap();
        };
        for (name, bits) in [("", 0o755), ("closed.txt", 0), ("locked", 0)] {
            mode(name, bits);
        }
        let find = |name: &str| {
            let entry = vec![folder.path().join(name).to_string_lossy().into_owned()];
            as_somebody(|| find(&entry))
        };
        for name in ["", "**/*.txt"] {
            let found = find(name).unwrap();
            assert_eq!(found.files, [folder.path().join("open.txt")]);
            let told = summary(&found.passed_over).unwrap();
            assert!(told.contains("/closed.txt may not be read (chmod a+r)"), "{told}");
            assert!(told.contains("/locked may not be read (chmod a+rx)"), "{told}");
        }
        let named = vec![folder.path().join("closed.txt")];
        let cache = TokenCache::new(folder.path());
        let error = as_somebody(|| digest(named, &cache, &NoProgress)).unwrap_err().to_string();
        assert!(error.contains("closed.txt") && error.to_lowercase().contains("permission"), "{error}");
        let error = find("locked").unwrap_err().to_string();
        assert!(error.contains("locked matches no file; passed over: "), "{error}");
        mode("locked", 0o755);
    }

    #[test]
    fn a_folder_of_other_endings_says_what_it_looked_for_and_what_is_there() {
        let folder = tree(&["a/1.TXT", "a/2.TXT", "a/3.jsonl", "a/none"]);
        let error = find(&[folder.path().join("a").to_string_lossy().into_owned()]).unwrap_err().to_string();
        assert!(error.contains("searched for *.txt and *.md, and there are 2 *.TXT, 1 *.jsonl"), "{error}");
        let named = format!("{}/**/*.TXT", folder.path().join("a").display());
        assert!(error.contains("/**/*.TXT"), "{error}");
        assert_eq!(find(&[named]).unwrap().files.len(), 2);
    }
}
