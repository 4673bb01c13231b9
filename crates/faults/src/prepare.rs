//! Pasts that a store may have when a session starts on it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use ckptd_core::store::layout;

use crate::announce::StoreAck;
use crate::drive;

/// A session whose writer was killed in the middle of a save, and whose newest snapshot rotted since. Returns what was
/// announced, the damage included.
pub fn past(store: &Path, seed: u64) -> Result<Vec<StoreAck>> {
    let mut acks = Vec::new();
    drive::session(store, seed, 3, &mut |ack| acks.push(ack));
    let newest = acks.iter().rev().find_map(|ack| match ack {
        StoreAck::Committed { seq, id } => Some((*seq, id.clone())),
        _ => None,
    });
    let (seq, id) = newest.context("nothing was saved")?;
    let path = store.join("snapshots").join(layout::snapshot_file(&id));
    flip(&path, 2000)?;
    let hash = blake3::hash(&std::fs::read(&path)?).to_hex().to_string();
    acks.push(StoreAck::Damaged { seq, id, hash });
    std::fs::write(store.join("staging").join("step-000000000040.4.part"), vec![7; 9000])?;
    std::fs::write(store.join("receipts").join("step-000000000040.json.4194305.new"), b"{")?;
    Ok(acks)
}

/// Turns one bit over.
pub fn flip(path: &Path, bit: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8)?;
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], bit / 8)?;
    Ok(())
}
