//! Damage at rest: flipped bits, cuts, swapped files, receipts of other files.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use ckptd_core::error::Error;
use ckptd_core::ids::SnapshotId;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{SnapshotReader, SnapshotState, Store, layout};

use crate::announce::StoreAck;
use crate::campaign::{CampaignScratch, FaultRow, add, each, guarded};
use crate::states;
use crate::{drive, prepare};
use ckptd_testkit::random::SeededRandom;

/// A store with verified snapshots.
struct SavedStore {
    store: PathBuf,
    /// Ids of what is there, oldest first.
    ids: Vec<SnapshotId>,
}

fn saved(scratch: &CampaignScratch, seed: u64) -> Result<SavedStore> {
    let store = scratch.empty()?.join("store");
    let mut ids = Vec::new();
    drive::session(&store, seed, 2, &mut |ack| {
        if let StoreAck::Committed { id, .. } = ack {
            ids.push(id);
        }
    });
    Ok(SavedStore { store, ids })
}

impl SavedStore {
    fn path(&self, id: &SnapshotId) -> PathBuf {
        self.store.join("snapshots").join(layout::snapshot_file(id))
    }
}

pub fn run(below: &Path, seed: u64, short: bool) -> Result<Vec<FaultRow>> {
    Ok(vec![flips(below, seed, short)?, cuts(below, seed, short)?, receipts(below, seed)?])
}

/// Every bit of the head, the table, the manifest and the trailer, and some of the chunks. No flip may be overlooked,
/// and nothing but the bytes that were saved may ever be handed out.
fn flips(below: &Path, seed: u64, short: bool) -> Result<FaultRow> {
    let scratch = CampaignScratch::new(below);
    let saved = saved(&scratch, seed)?;
    let good = std::fs::read(saved.path(saved.ids.last().context("nothing was saved")?))?;
    let bits = good.len() as u64 * 8;
    let mut random = SeededRandom::of(&[seed, 77]);
    let table_at = u64::from_le_bytes(good[good.len() - 128..][..8].try_into()?);
    let mut chosen: Vec<u64> = (0..128).chain(table_at * 8..bits).collect();
    chosen.extend((0..4000).map(|_| random.below(table_at * 8)));
    if short {
        chosen = (0..600).map(|_| chosen[random.below(chosen.len() as u64) as usize]).collect();
    }
    let row = Mutex::new(FaultRow::new("bit flips in a snapshot, by the reader", seed));
    each(chosen.len() as u64, |i| {
        let bit = chosen[i as usize];
        let scratch = CampaignScratch::new(below);
        let broken = guarded(|| one_flip(&scratch, &good, bit, seed).unwrap_or_else(|e| vec![format!("{e:#}")]));
        add(&row, || format!("bit {bit} of {bits}"), broken);
    });
    Ok(row.into_inner().unwrap_or_else(|e| e.into_inner()))
}

fn one_flip(scratch: &CampaignScratch, good: &[u8], bit: u64, seed: u64) -> Result<Vec<String>> {
    let path = scratch.empty()?.join("step-000000000020.ckpt");
    let mut bytes = good.to_vec();
    bytes[bit as usize / 8] ^= 1 << (bit % 8);
    std::fs::write(&path, bytes)?;
    let read = SnapshotReader::open(&path).and_then(|reader| {
        let seq = reader.manifest().seq;
        Ok((seq, reader.read_snapshot()?))
    });
    Ok(match read {
        Err(Error::Damaged { .. }) => Vec::new(),
        Err(e) => vec![format!("is not called damaged: {e}")],
        Ok((seq, read)) if !states::equal(&read, &states::snapshot(seed, seq)) => vec!["hands out other bytes".into()],
        Ok(_) => vec!["was overlooked".into()],
    })
}

/// Files that end early or go on, at every length near a border and some others.
fn cuts(below: &Path, seed: u64, short: bool) -> Result<FaultRow> {
    let scratch = CampaignScratch::new(below);
    let saved = saved(&scratch, seed)?;
    let path = saved.path(saved.ids.last().context("nothing was saved")?);
    let good = std::fs::read(&path)?;
    let mut row = FaultRow::new("cut, longer and swapped files", seed);
    let mut random = SeededRandom::of(&[seed, 78]);
    let mut lengths: Vec<usize> =
        (0..if short { 40 } else { 400 }).map(|_| random.below(good.len() as u64) as usize).collect();
    lengths.extend([0, 1, 15, 16, good.len() - 152, good.len() - 1]);
    for length in lengths {
        std::fs::write(&path, &good[..length])?;
        row.point(|| format!("cut to {length} bytes"), refused(&path));
    }
    for extra in [1, 511, 4096] {
        std::fs::write(&path, [&good[..], &vec![0; extra]].concat())?;
        row.point(|| format!("{extra} bytes longer"), refused(&path));
    }
    std::fs::write(&path, &good)?;
    // Another snapshot's bytes under this one's name are whole, but a receipt must not vouch for them.
    std::fs::copy(saved.path(&saved.ids[0]), &path)?;
    row.point(|| "another snapshot under its name".into(), vouched(&saved.store, 1)?);
    Ok(row)
}

fn refused(path: &Path) -> Vec<String> {
    match SnapshotReader::open(path).and_then(|reader| reader.check_all(1, &NoProgress)) {
        Err(Error::Damaged { .. }) => Vec::new(),
        Err(e) => vec![format!("is not called damaged: {e}")],
        Ok(()) => vec!["was overlooked".into()],
    }
}

/// What is broken where more than `most` snapshots count as verified.
fn vouched(store: &Path, most: usize) -> Result<Vec<String>> {
    let entries = Store::open(store)?.entries()?;
    let verified = entries.iter().filter(|e| e.state == SnapshotState::Verified).count();
    Ok(if verified > most { vec![format!("{verified} count as verified")] } else { Vec::new() })
}

/// A verified file that changes in place is verified no longer, whatever was changed: content, times, inode.
fn receipts(below: &Path, seed: u64) -> Result<FaultRow> {
    let mut row = FaultRow::new("receipts of files that changed", seed);
    let scratch = CampaignScratch::new(below);
    for (name, change) in CHANGES {
        let saved = saved(&scratch, seed)?;
        let path = saved.path(saved.ids.last().context("nothing was saved")?);
        change(&path)?;
        let mut broken = vouched(&saved.store, 1)?;
        if *name == "a flipped bit, the old times" {
            let chosen = drive::recover(&saved.store, seed)?;
            if chosen != Some(1) {
                broken.push(format!("resume chose {chosen:?}"));
            }
        }
        row.point(|| (*name).into(), broken);
    }
    Ok(row)
}

type FileChange = fn(&Path) -> Result<()>;

const CHANGES: &[(&str, FileChange)] = &[
    ("a flipped bit", |path| prepare::flip(path, 3000)),
    ("a flipped bit, the old times", |path| {
        let times = std::fs::metadata(path)?;
        prepare::flip(path, 3000)?;
        let times = std::fs::FileTimes::new().set_modified(times.modified()?).set_accessed(times.accessed()?);
        Ok(std::fs::OpenOptions::new().write(true).open(path)?.set_times(times)?)
    }),
    ("the same bytes in another file", |path| {
        let bytes = std::fs::read(path)?;
        std::fs::remove_file(path)?;
        Ok(std::fs::write(path, bytes)?)
    }),
];
