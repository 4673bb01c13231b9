//! Appending to a file in large aligned blocks, past the page cache where the file system allows it.
//!
//! Invariant: blocks reach the file in their order, and only as many are held in memory as one thread fills while
//! another one writes. After an error nothing more is written, and the error is what `finish` or the next block
//! returns. Deliberately not here: what the bytes are (commit), fsync and rename (commit, fs).

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use memmap2::MmapMut;

use super::fs::{self, SECTOR, Transfer};
use crate::error::{Error, Result};

/// Bytes of one write. Measured on virtio disks: 8 MiB reaches the device's rate, more gains nothing.
/// The fault campaign tears small files, which should have many of them.
pub const BLOCK_BYTES: usize = if cfg!(feature = "faults") { 8 << 10 } else { 8 << 20 };
/// One is filled, one is written, one waits, so that the device is never idle because of a copy.
const BLOCKS: usize = 3;

/// The end of a file that bytes are appended to.
pub struct BlockWriter {
    path: PathBuf,
    file: File,
    block: MmapMut,
    filled: usize,
    /// Bytes of the blocks that were handed over.
    position: u64,
    flusher: WriteThread,
}

/// The thread that writes, and the ways to it and back.
struct WriteThread {
    /// `None` once it is to end.
    full: Option<Sender<FilledBlock>>,
    free: Receiver<MmapMut>,
    thread: Option<JoinHandle<Result<()>>>,
    /// Writes each block at once, in place of the thread, under the fault campaign: it sees the calls of one thread.
    inline: Option<InlineWriting>,
    starved: Arc<AtomicBool>,
}

struct InlineWriting {
    writing: FileWriting,
    queue: Receiver<FilledBlock>,
    release: Sender<MmapMut>,
}

/// The first `length` bytes of a block, to be written at `offset`.
struct FilledBlock {
    block: MmapMut,
    length: usize,
    offset: u64,
}

impl BlockWriter {
    /// At the beginning of `file`, which `path` names in errors.
    pub fn new(file: &File, path: PathBuf) -> Result<BlockWriter> {
        // Set after the open: an open with the flag may create the file and then fail.
        let direct = fs::set_transfer(file, Transfer::Direct, &path);
        let memory = || fs::transfer_memory(BLOCK_BYTES, &path);
        let same = || file.try_clone().map_err(|e| Error::io("opening again", &path, e));
        let (full, queue) = channel();
        let (release, free) = channel();
        for _ in 1..BLOCKS {
            // The other end is alive: it is on this stack.
            let _ = release.send(memory()?);
        }
        let starved = Arc::new(AtomicBool::new(false));
        let writing = FileWriting { file: same()?, path: path.clone(), direct, begun: false, starved: starved.clone() };
        let (thread, writing) = if cfg!(feature = "faults") {
            (None, Some(InlineWriting { writing, queue, release }))
        } else {
            let run = move || writing.run(&queue, &release);
            let thread = std::thread::Builder::new().name("write".into()).spawn(run);
            (Some(thread.map_err(|e| Error::io("starting a thread to write", &path, e))?), None)
        };
        let flusher = WriteThread { full: Some(full), free, thread, inline: writing, starved };
        Ok(BlockWriter { block: memory()?, file: same()?, path, filled: 0, position: 0, flusher })
    }

    /// Bytes appended so far.
    pub fn position(&self) -> u64 {
        self.position + self.filled as u64
    }

    /// The file's path, as errors name it.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Says whether the device waits for bytes.
    pub fn starvation(&self) -> Starvation {
        Starvation(self.flusher.starved.clone())
    }

    /// Appends bytes; waits while the device is two blocks behind.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(BLOCK_BYTES - self.filled);
            self.block[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled == BLOCK_BYTES {
                self.hand_over()?;
            }
        }
        Ok(())
    }

    /// Gives the block to the writing thread and takes a free one.
    fn hand_over(&mut self) -> Result<()> {
        let Ok(next) = self.flusher.free.recv() else { return Err(self.flusher.failure(&self.path)) };
        let length = self.filled.next_multiple_of(SECTOR);
        self.block[self.filled..length].fill(0);
        let full = FilledBlock { block: std::mem::replace(&mut self.block, next), length, offset: self.position };
        self.position += self.filled as u64;
        self.filled = 0;
        match self.flusher.full.as_ref().map(|queue| queue.send(full)) {
            Some(Ok(())) => self.flusher.inline.as_mut().map_or(Ok(()), InlineWriting::write),
            _ => Err(self.flusher.failure(&self.path)),
        }
    }

    /// Waits until everything is written, and cuts the file to its exact length, which it returns.
    pub fn finish(mut self) -> Result<u64> {
        if self.filled > 0 {
            self.hand_over()?;
        }
        self.flusher.end(&self.path)?;
        fs::truncate(&self.file, self.position, &self.path).map(|()| self.position)
    }
}

/// Whether the device waits for bytes; any thread may ask.
pub struct Starvation(Arc<AtomicBool>);

impl Starvation {
    /// Whether it waits at this moment.
    pub fn is_now(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl InlineWriting {
    /// Writes the block that was handed over.
    fn write(&mut self) -> Result<()> {
        for full in self.queue.try_iter() {
            self.writing.write(&full)?;
            let _ = self.release.send(full.block);
        }
        Ok(())
    }
}

impl WriteThread {
    /// Lets the thread write what it has.
    fn end(&mut self, path: &std::path::Path) -> Result<()> {
        self.full = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            None if self.inline.is_some() => Ok(()),
            _ => Err(Error::Other(format!("writing {}: the thread died", path.display()))),
        }
    }

    /// Why the thread is gone.
    fn failure(&mut self, path: &std::path::Path) -> Error {
        self.end(path).err().unwrap_or_else(|| Error::Other(format!("writing {}: the thread is gone", path.display())))
    }
}

impl Drop for WriteThread {
    fn drop(&mut self) {
        // A file that its owner has given up is not written to any more.
        self.full = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The writing thread's side.
struct FileWriting {
    file: File,
    path: PathBuf,
    direct: bool,
    /// A block was written.
    begun: bool,
    starved: Arc<AtomicBool>,
}

impl FileWriting {
    fn run(mut self, queue: &Receiver<FilledBlock>, release: &Sender<MmapMut>) -> Result<()> {
        loop {
            let next = queue.try_recv().or_else(|_| {
                // The thread always waits for the first block; later ones are there already where the encoders keep up.
                self.starved.store(self.begun, Ordering::Relaxed);
                let next = queue.recv();
                self.starved.store(false, Ordering::Relaxed);
                next
            });
            let Ok(full) = next else { return Ok(()) };
            self.write(&full)?;
            self.begun = true;
            // After the last block the receiver is gone.
            let _ = release.send(full.block);
        }
    }

    fn write(&mut self, full: &FilledBlock) -> Result<()> {
        let bytes = &full.block[..full.length];
        let result = fs::write_all_at(&self.file, bytes, full.offset, &self.path);
        if !self.direct
            || !matches!(&result, Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL))
        {
            return result;
        }
        // The file system took the flag but not the write: go on through the page cache.
        self.direct = !fs::set_transfer(&self.file, Transfer::Cached, &self.path);
        fs::write_all_at(&self.file, bytes, full.offset, &self.path)
    }
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR));

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_in_any_pieces_is_the_file_to_its_exact_length() {
        let folder = tempfile::tempdir().unwrap();
        let pattern: Vec<u8> = (0..251u8).cycle().take(3 * BLOCK_BYTES + 12_345).collect();
        for (name, length) in
            [("empty", 0), ("short", 1), ("sector", SECTOR), ("block", BLOCK_BYTES), ("long", pattern.len())]
        {
            let path = folder.path().join(name);
            let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
            let mut out = BlockWriter::new(&file, path.clone()).unwrap();
            let (mut rest, mut piece) = (&pattern[..length], 1);
            while !rest.is_empty() {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                out.append(now).unwrap();
                assert_eq!(out.position() as usize, length - later.len());
                (rest, piece) = (later, piece * 7 % (2 * BLOCK_BYTES) + 1);
            }
            out.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == pattern[..length], "{name}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_fails_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("read-only");
        std::fs::write(&path, b"").unwrap();
        let mut out = BlockWriter::new(&File::open(&path).unwrap(), path.clone()).unwrap();
        let block = vec![1; BLOCK_BYTES];
        let outcome = (0..2 * BLOCKS).try_for_each(|_| out.append(&block)).and_then(|()| out.finish().map(drop));
        assert!(outcome.unwrap_err().to_string().contains("read-only"));
    }
}
