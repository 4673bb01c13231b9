//! A file mapped into memory for reading, from which tensors take their bytes without a copy.
//!
//! Invariant: only regular files are mapped, so that a pipe or a device under the expected name cannot hang or
//! surprise the reader; a range is handed out only where it lies within the mapping.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::TensorBytes;

pub struct MappedFile {
    path: PathBuf,
    map: Arc<Mmap>,
    /// The bytes of `map` that this is about: all of them, or those of a file within the file.
    window: Range<usize>,
}

impl MappedFile {
    /// Maps the regular file at `path` (links are followed: a Hugging Face cache is made of them).
    pub fn open(path: &Path) -> Result<Arc<MappedFile>> {
        require_file(path)?;
        let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
        // SAFETY: the mapping is read-only. As with every reader of mapped weights, the file must not be cut short
        // while it is in use; ckptd itself never changes a file in place, it renames new ones over old ones.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("mapping", path, e))?;
        let window = 0..map.len();
        Ok(Arc::new(MappedFile { path: path.to_path_buf(), map: Arc::new(map), window }))
    }

    /// The file that lies at `range` within this one; `None` where that leaves it.
    pub fn part(&self, range: Range<u64>) -> Option<Arc<MappedFile>> {
        let window = self.within(range)?;
        Some(Arc::new(MappedFile { path: self.path.clone(), map: Arc::clone(&self.map), window }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> &[u8] {
        // `open` and `part` have checked the window, and a mapping does not change its length.
        self.map.get(self.window.clone()).unwrap_or_default()
    }

    pub fn len(&self) -> u64 {
        self.window.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// The bytes of `range`, which keep the mapping alive; `None` where it leaves the file.
    pub fn region(&self, range: Range<u64>) -> Option<TensorBytes> {
        let range = self.within(range)?;
        Some(Arc::new(MappedRegion { map: Arc::clone(&self.map), range }))
    }

    /// A range of this file as one of the mapping; `None` where it leaves the file.
    fn within(&self, range: Range<u64>) -> Option<Range<usize>> {
        let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
        self.bytes().get(range.clone())?;
        Some(self.window.start + range.start..self.window.start + range.end)
    }
}

struct MappedRegion {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl AsRef<[u8]> for MappedRegion {
    fn as_ref(&self) -> &[u8] {
        // `region` has checked the range, and a mapping does not change its length.
        self.map.get(self.range.clone()).unwrap_or_default()
    }
}

/// Reads the small regular file at `path` whole; one over `max_bytes` is refused before it is read.
pub fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let bytes = require_file(path)?;
    if bytes > max_bytes {
        return Err(Error::malformed(path, format!("{bytes} bytes; at most {max_bytes} are read from such a file")));
    }
    std::fs::read(path).map_err(|e| Error::io("reading", path, e))
}

/// The size of the regular file at `path`, or why there is none.
fn require_file(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("opening", path, e))?;
    if metadata.is_file() { Ok(metadata.len()) } else { Err(Error::malformed(path, "not a regular file")) }
}
