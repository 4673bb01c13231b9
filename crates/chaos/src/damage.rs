//! Damage in a snapshot's file and among files: nothing is accepted that is not what was written.
//!
//! Every bit outside the chunks (head, table, manifest, trailer), so many bits of the chunks, every length that a small
//! file can be cut to, blocks swapped, zeroed and doubled; then whole files: exchanged names, copies, strangers, files
//! of a later format. Invariant: damage is told as damage, never as another error, and never panics.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ckptd_core::Error;
use ckptd_core::os::process::processors;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::format::{HEAD_BYTES, VERSION};
use ckptd_core::store::trailer::{TRAILER_BYTES, Trailer};
use ckptd_core::store::verify::read_back;
use ckptd_core::store::{CommitOptions, Store, StoreLock, commit};

use crate::place;
use crate::row::{CampaignRow, CampaignTally};
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::stepped;

/// Elements of each tensor of the small snapshot, and of the one whose data is flipped.
const SMALL: usize = 16;
const LARGE: usize = 20_000;

pub fn campaign(data_bits: u64, seed: u64) -> Result<CampaignRow> {
    let mut tally = CampaignTally::new("damage", seed);
    let threads = processors() as u64;
    let parts: Vec<Result<CampaignTally>> = std::thread::scope(|scope| {
        let work = |thread| move || part(thread, threads, data_bits, seed);
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(work(thread))).collect();
        parts.into_iter().map(|part| part.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a check panicked")))).collect()
    });
    for part in parts {
        match part {
            Ok(part) => tally.add(part),
            Err(e) => tally.violation(format!("{e:#}")),
        }
    }
    among_files(&mut tally)?;
    Ok(tally.row())
}

/// Every `threads`-th of the damages within a file, from the `thread`-th on.
fn part(thread: u64, threads: u64, data_bits: u64, seed: u64) -> Result<CampaignTally> {
    let mut tally = CampaignTally::new("damage", seed);
    let folder = place::in_memory()?;
    let small = DamageSubject::new(folder.path(), "small", SMALL)?;
    let mine = |n: &u64| n % threads == thread;
    let bits = small.whole.len() as u64 * 8;
    for bit in (0..bits).filter(|bit| !small.in_chunks(bit / 8)).filter(mine) {
        small.flipped(bit, &mut tally)?;
    }
    for length in (0..small.whole.len() as u64).filter(mine) {
        small.altered(("cut", length), &small.whole[..length as usize], &mut tally)?;
    }
    let large = DamageSubject::new(folder.path(), "large", LARGE)?;
    // The same for every thread, each takes its own.
    let mut random = SeededRandom::new(seed);
    for n in 0..data_bits {
        let bit = large.chunks.start * 8 + random.below((large.chunks.end - large.chunks.start) * 8);
        if mine(&n) {
            large.flipped(bit, &mut tally)?;
        }
    }
    for n in (0..data_bits / 40).filter(mine) {
        let mut random = SeededRandom::new(seed ^ (n << 20));
        let (what, bytes) = large.mangled(&mut random);
        if bytes != large.whole {
            large.altered(what, &bytes, &mut tally)?;
        }
    }
    Ok(tally)
}

/// A whole snapshot, and a file to put damaged versions of it into.
struct DamageSubject {
    whole: Vec<u8>,
    chunks: std::ops::Range<u64>,
    path: PathBuf,
    file: File,
}

impl DamageSubject {
    fn new(folder: &Path, name: &str, elements: usize) -> Result<DamageSubject> {
        let store = Store::create(&folder.join(name))?;
        let saved = commit(
            &store,
            &StoreLock::inherited(),
            stepped::snapshot(3, elements),
            &CommitOptions::new(stepped::RUN, 1),
        )?;
        let whole = std::fs::read(&saved.path)?;
        let (_, tail) = whole.split_last_chunk::<{ TRAILER_BYTES }>().context("a snapshot without trailer")?;
        let trailer = Trailer::parse(tail, whole.len() as u64, &saved.path)?;
        let path = folder.join(format!("{name}.ckpt"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.write_all_at(&whole, 0)?;
        ensure!(read_back(&path, 1, &NoProgress).is_ok(), "the undamaged snapshot is not accepted");
        Ok(DamageSubject { whole, chunks: HEAD_BYTES as u64..trailer.table.start, path, file })
    }

    fn in_chunks(&self, byte: u64) -> bool {
        self.chunks.contains(&byte)
    }

    /// Flips one bit, looks, and flips it back.
    fn flipped(&self, bit: u64, tally: &mut CampaignTally) -> Result<()> {
        let (place, mask) = (bit / 8, 1u8 << (bit % 8));
        let byte = self.whole[place as usize];
        self.file.write_all_at(&[byte ^ mask], place)?;
        tally.tried((self.whole.len(), bit));
        self.must_be_refused(|| format!("bit {bit} of {} bytes flipped", self.whole.len()), tally);
        self.file.write_all_at(&[byte], place)?;
        Ok(())
    }

    fn altered(&self, what: (&str, u64), bytes: &[u8], tally: &mut CampaignTally) -> Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(bytes, 0)?;
        tally.tried((what, bytes));
        self.must_be_refused(|| format!("{what:?}"), tally);
        self.file.set_len(0)?;
        self.file.write_all_at(&self.whole, 0)?;
        Ok(())
    }

    fn must_be_refused(&self, what: impl Fn() -> String, tally: &mut CampaignTally) {
        match read_back(&self.path, 1, &NoProgress) {
            Ok(_) => tally.violation(format!("{} is accepted", what())),
            Err(Error::Damaged { .. }) => {}
            Err(e) => tally.violation(format!("{} is told as {e}", what())),
        }
    }

    /// What a disk or a copy may do to blocks of a file.
    fn mangled(&self, random: &mut SeededRandom) -> ((&'static str, u64), Vec<u8>) {
        let mut bytes = self.whole.clone();
        let block = 1usize << (4 + random.below(9));
        let blocks = (bytes.len() / block) as u64;
        let a = random.below(blocks) as usize * block;
        let b = random.below(blocks) as usize * block;
        let what = match random.below(6) {
            0 => {
                let kept = bytes[a..a + block].to_vec();
                bytes.copy_within(b..b + block, a);
                bytes[b..b + block].copy_from_slice(&kept);
                "blocks swapped"
            }
            1 => {
                bytes.copy_within(b..b + block, a);
                "a block in another's place"
            }
            2 => {
                bytes[a..a + block].fill(0);
                "a block of zeros"
            }
            3 => {
                bytes.drain(a..a + block);
                "a block lost"
            }
            4 => {
                let doubled = bytes[a..a + block].to_vec();
                bytes.splice(a..a, doubled);
                "a block doubled"
            }
            _ => {
                bytes.extend((0..=random.below(5000)).map(|n| n as u8));
                "something appended"
            }
        };
        ((what, a as u64), bytes)
    }
}

/// Whole files in the wrong place, and files that are none of ours.
fn among_files(tally: &mut CampaignTally) -> Result<()> {
    let folder = place::in_memory()?;
    exchanged_names(&folder.path().join("exchanged"), tally)?;
    copies(&folder.path().join("copies"), tally)?;
    strangers(&folder.path().join("strangers"), tally)?;
    later_format(&folder.path().join("later"), tally)
}

/// A store with verified snapshots of the steps 1 to `count`.
fn store(path: &Path, count: u64) -> Result<(Store, Vec<PathBuf>)> {
    let store = Store::create(path)?;
    store.set_run_id(&StoreLock::inherited(), stepped::RUN)?;
    let mut files = Vec::new();
    for step in 1..=count {
        let saved = commit(
            &store,
            &StoreLock::inherited(),
            stepped::snapshot(step, SMALL),
            &CommitOptions::new(stepped::RUN, step),
        )?;
        store.verify(&store.find(&saved.id)?, 1, &NoProgress)?;
        files.push(saved.path);
    }
    Ok((store, files))
}

fn resumed(store: &Store) -> Result<Option<u64>, Error> {
    Ok(store.choose_resume(&StoreLock::inherited(), 1, &mut |_| ())?.map(|chosen| chosen.entry.step()))
}

fn exchanged_names(path: &Path, tally: &mut CampaignTally) -> Result<()> {
    let (store, files) = store(path, 3)?;
    let aside = path.join("aside");
    std::fs::rename(&files[0], &aside)?;
    std::fs::rename(&files[2], &files[0])?;
    std::fs::rename(&aside, &files[2])?;
    tally.tried("exchanged names");
    let newest = resumed(&store)?;
    tally.require(newest == Some(3), || format!("with names exchanged, {newest:?} is resumed"));
    Ok(())
}

fn copies(path: &Path, tally: &mut CampaignTally) -> Result<()> {
    let (store, files) = store(path, 4)?;
    for (n, file) in files.iter().enumerate() {
        std::fs::copy(file, file.with_file_name(format!("step-{:012}.ckpt", 100 - n)))?;
        tally.tried(("copy", n));
    }
    let newest = resumed(&store)?;
    tally.require(newest == Some(4), || format!("beside copies, {newest:?} is resumed"));
    let policy = ckptd_core::store::RetentionPolicy { keep_last: 2, keep_best: 0, ..Default::default() };
    store.prune(&StoreLock::inherited(), &policy, jiff::Timestamp::now())?;
    let steps: std::collections::BTreeSet<u64> =
        store.entries()?.iter().map(ckptd_core::store::SnapshotEntry::step).collect();
    tally.require(steps.contains(&3) && steps.contains(&4), || format!("copies pushed states out: {steps:?} are left"));
    Ok(())
}

fn strangers(path: &Path, tally: &mut CampaignTally) -> Result<()> {
    let (store, _) = store(path, 3)?;
    let names = ["notes.txt", "step-1.ckpt", "step-000000000001.ckpt.bak", ".hidden", "step-abc.ckpt", "x.reason.txt"];
    let folders = ["snapshots", "quarantine", "receipts", "pins", "."];
    for folder in folders {
        for name in names {
            std::fs::write(path.join(folder).join(name), name)?;
            tally.tried(("stranger", folder, name));
        }
    }
    let newest = resumed(&store)?;
    tally.require(newest == Some(3), || format!("beside strangers, {newest:?} is resumed"));
    store.clean_staging(&StoreLock::inherited())?;
    store.prune(&StoreLock::inherited(), &Default::default(), jiff::Timestamp::now())?;
    for folder in folders {
        for name in names {
            let there = std::fs::read(path.join(folder).join(name)).is_ok_and(|bytes| bytes == name.as_bytes());
            tally.require(there, || format!("{folder}/{name} is not ours, and was touched"));
        }
    }
    Ok(())
}

fn later_format(path: &Path, tally: &mut CampaignTally) -> Result<()> {
    let (store, files) = store(path, 3)?;
    let newest = &files[2];
    let mut bytes = std::fs::read(newest)?;
    of_version(&mut bytes, (VERSION + 1) as u8);
    std::fs::write(newest, &bytes)?;
    tally.tried("a later format");
    match resumed(&store) {
        Err(e @ Error::Newer { .. }) => {
            let text = e.to_string();
            tally.require(text.contains(&format!("format {}", VERSION + 1)) && text.contains("install"), || {
                format!("it says only {text}")
            });
        }
        other => tally.violation(format!("beside a file of a later format, the resume is {other:?}")),
    }
    store.prune(&StoreLock::inherited(), &Default::default(), jiff::Timestamp::now())?;
    let there = std::fs::read(newest).is_ok_and(|now| now == bytes);
    tally.require(there, || "a file of a later format was touched".into());
    std::fs::rename(newest, path.join("elsewhere"))?;
    let before = resumed(&store)?;
    tally.require(before == Some(2), || format!("once it is moved away, {before:?} is resumed"));
    Ok(())
}

/// Makes a snapshot one of another version, as far as every version is defined.
fn of_version(bytes: &mut [u8], version: u8) {
    let trailer = bytes.len() - TRAILER_BYTES;
    bytes[8] = version;
    bytes[trailer + 8] = version;
    let own = blake3::hash(&bytes[trailer..trailer + 112]);
    bytes[trailer + 112..trailer + 144].copy_from_slice(own.as_bytes());
}
