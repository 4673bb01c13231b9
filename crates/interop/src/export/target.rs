//! The folder that an export fills, with the names and the known hashes of what is in it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::output;
use crate::safetensors::WrittenFile;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::format::FileRecord;

pub(super) struct ExportFolder<'a> {
    dir: &'a Path,
    names: Vec<String>,
    /// Of the files that were hashed while they were written.
    hashed: Vec<FileRecord>,
}

impl<'a> ExportFolder<'a> {
    /// Over the folder `dir`, which is there and empty.
    pub(super) fn new(dir: &'a Path) -> ExportFolder<'a> {
        ExportFolder { dir, names: Vec::new(), hashed: Vec::new() }
    }

    /// Where a file of this name lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The files so far, in the order in which they were written.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// The record of the file `name`, where it was hashed while it was written.
    pub(super) fn known(&self, name: &str) -> Option<&FileRecord> {
        self.hashed.iter().find(|known| known.name == name)
    }

    /// Writes a file with this content.
    pub(super) fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.part(name, |file| file.write_all(content).map_err(|e| Error::io("writing", name, e)))
    }

    /// Writes a file through `fill`.
    pub(super) fn part<T>(&mut self, name: &str, fill: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
        let result = output::part(self.dir, name, fill)?;
        self.names.push(name.to_owned());
        Ok(result)
    }

    /// Remembers what writing the file `name` has found of it.
    pub(super) fn set_hash(&mut self, name: &str, written: &WrittenFile) {
        let (bytes, hash) = (written.bytes, written.hash.to_hex().to_string());
        self.hashed.push(FileRecord { name: name.to_owned(), bytes, hash });
    }

    /// Bytes of all files so far.
    pub(super) fn bytes(&self) -> Result<u64> {
        let size = |name: &String| {
            let path = self.path(name);
            std::fs::metadata(&path).map(|found| found.len()).map_err(|e| Error::io("looking at", path, e))
        };
        self.names.iter().map(size).sum()
    }
}
