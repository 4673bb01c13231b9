//! SIGKILL at random moments to a process that does everything that is done to a store, and nothing else.
//!
//! The victim tells each thing when it is done; it is killed; what it told is held against what is in the store. The
//! next victim goes on in the same store. Invariant: what was told as saved is there, whole and what it must be, until
//! retention may take it; nothing partial is visible; a resume takes the newest. The machine stays up, so that nothing
//! here depends on an fsync.

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ckptd_core::ids::SnapshotId;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::RetentionPolicy;
use ckptd_core::store::layout::{self, Folder};
use ckptd_core::store::{CommitOptions, SnapshotEntry, SnapshotReader, SnapshotState, Store, commit};
use jiff::Timestamp;

use crate::place;
use crate::row::{CampaignRow, CampaignTally};
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::stepped;

/// Elements of a tensor: a few chunks' worth of work, so that a kill often comes in the middle.
const ELEMENTS: usize = 40_000;
/// Victims that live in one store; then a fresh one, or its past would be all that is looked at.
const ROUNDS: u64 = 200;
const LONGEST_LIFE: Duration = Duration::from_millis(90);

fn policy() -> RetentionPolicy {
    RetentionPolicy { keep_last: 2, keep_best: 1, ..RetentionPolicy::default() }
}

/// Saves, verifies, pins, damages, quarantines and rotates until it is killed.
pub fn victim(path: &Path, seed: u64) -> Result<()> {
    let mut random = SeededRandom::new(seed);
    let store = Store::create(path)?;
    let lock = store.lock("victim")?;
    store.clean_staging(&lock)?;
    if store.run_id()?.is_none() {
        store.set_run_id(&lock, stepped::RUN)?;
    }
    let chosen = store.choose_resume(&lock, 1, &mut |_| ())?;
    let mut step = chosen.as_ref().map_or(0, |chosen| chosen.entry.step());
    let mut seq = store.next_seq()?;
    say("resumed", step.to_string());
    loop {
        step += 1;
        let options = CommitOptions { threads: 2, ..CommitOptions::new(stepped::RUN, seq) };
        let saved = commit(&store, &lock, stepped::snapshot(step, ELEMENTS), &options)?;
        seq += 1;
        say("saved", &saved.id);
        let entry = store.find(&saved.id)?;
        if random.one_in(6) {
            say("damaging", &saved.id);
            flip(&entry.path, random.below(entry.bytes))?;
            match store.verify(&entry, 1, &NoProgress) {
                Ok(_) => say("accepted", &saved.id),
                Err(e) => drop(store.quarantine(&lock, &entry, &e.to_string())?),
            }
            continue;
        }
        store.verify(&entry, 1, &NoProgress)?;
        say("verified", &saved.id);
        if random.one_in(10) {
            store.pin(&entry)?;
            say("pinned", &saved.id);
        }
        if random.one_in(10)
            && let Some(pinned) = store.entries()?.iter().find(|e| e.pinned)
        {
            say("unpinning", &pinned.id);
            store.unpin(pinned)?;
        }
        store.prune(&lock, &policy(), Timestamp::now())?;
        say("rotated", &saved.id);
    }
}

/// One write: a line is there as a whole or not at all.
fn say(what: &str, id: impl std::fmt::Display) {
    let _ = std::io::stdout().write_all(format!("{what} {id}\n").as_bytes());
    let _ = std::io::stdout().flush();
}

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}

pub fn campaign(kills: u64, seed: u64) -> Result<CampaignRow> {
    let mut tally = CampaignTally::new("store kills", seed);
    let mut random = SeededRandom::new(seed);
    while tally.points() < kills {
        let folder = place::on_disk()?;
        let mut told = VictimWords::default();
        let path = folder.path().join("store");
        for _ in 0..ROUNDS.min(kills - tally.points()) {
            let lines = one_life(folder.path(), &path, &mut random)?;
            told.hear(&lines, &mut tally);
            let moment = moment(&path, &told);
            tally.tried(moment);
            told.check(&Store::create(&path)?, &mut tally)?;
        }
    }
    Ok(tally.row())
}

/// Starts a victim, kills it, and returns what it told.
fn one_life(folder: &Path, store: &Path, random: &mut SeededRandom) -> Result<String> {
    let said = folder.join("said");
    let out = std::fs::File::create(&said)?;
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["victim".as_ref(), store.as_os_str()])
        .arg(random.next().to_string())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a victim")?;
    std::thread::sleep(random.up_to(LONGEST_LIFE));
    victim.kill()?;
    let output = victim.wait_with_output()?;
    if output.status.code().is_some() {
        bail!("the victim ended by itself: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(std::fs::read_to_string(said)?)
}

/// What tells one moment of a kill from another: what was told last, and what lies about.
fn moment(store: &Path, told: &VictimWords) -> (String, Vec<(usize, u64)>) {
    let folder = |folder: Folder| {
        let files: Vec<u64> = std::fs::read_dir(store.join(folder.name()))
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| file.metadata().map_or(0, |m| m.len()))
            .collect();
        (files.len(), files.iter().sum::<u64>() / 512)
    };
    (told.last.clone(), Folder::ALL.map(folder).to_vec())
}

/// Everything that the victims of one store have told.
#[derive(Default)]
struct VictimWords {
    /// Ids sort as their steps do.
    saved: BTreeSet<SnapshotId>,
    damaged: HashSet<SnapshotId>,
    pinned: HashSet<SnapshotId>,
    last: String,
    /// The newest good step at the last look, which the next victim has to resume from.
    newest: Option<u64>,
}

impl VictimWords {
    fn hear(&mut self, lines: &str, tally: &mut CampaignTally) {
        for (what, id) in lines.lines().filter_map(|line| line.split_once(' ')) {
            self.last = what.to_owned();
            let id = SnapshotId::from(id);
            match what {
                "resumed" => {
                    // A victim that was killed between announcing damage and doing it did none.
                    let step = id.as_str().parse().unwrap_or(0);
                    if self.damaged.remove(&layout::snapshot_id(step, None)) && Some(step) > self.newest {
                        self.newest = Some(step);
                    }
                    let expected = self.newest.unwrap_or(0).to_string();
                    tally.require(id == expected.as_str(), || format!("resumed from step {id}, not from {expected}"));
                }
                "saved" => {
                    // A step that was damaged and taken again has its name again.
                    self.damaged.remove(&id);
                    self.saved.insert(id);
                }
                "damaging" => drop(self.damaged.insert(id)),
                "accepted" => tally.violation(format!("{id} was damaged, and verified all the same")),
                "pinned" => drop(self.pinned.insert(id)),
                "unpinning" => drop(self.pinned.remove(&id)),
                _ => {}
            }
        }
    }

    fn check(&mut self, store: &Store, tally: &mut CampaignTally) -> Result<()> {
        let entries = store.entries()?;
        for entry in &entries {
            self.check_whole(entry, tally);
        }
        let good: Vec<&SnapshotEntry> =
            entries.iter().filter(|e| e.healthy() && !self.damaged.contains(&e.id)).collect();
        let verified: Vec<&&SnapshotEntry> = good.iter().filter(|e| e.state == SnapshotState::Verified).collect();
        for id in self.saved.iter().filter(|id| !self.damaged.contains(*id)) {
            if good.iter().any(|e| e.id == *id) {
                continue;
            }
            let step = layout::step_of(id).unwrap_or(0);
            let newer = verified.iter().filter(|e| e.step() > step).count();
            let better = stepped::val_loss(step)
                .is_none_or(|loss| verified.iter().any(|e| e.val_loss().is_some_and(|other| other <= loss)));
            tally.require(newer >= 2, || format!("{id} was saved and is gone, with {newer} newer verified ones there"));
            tally.require(better, || format!("{id} was the best and is gone"));
            tally.require(!self.pinned.contains(id), || format!("{id} was pinned and is gone"));
        }
        self.check_newest(&good, tally);
        Ok(())
    }

    /// Nothing partial is visible, and everything that is there is what was to be written.
    fn check_whole(&self, entry: &SnapshotEntry, tally: &mut CampaignTally) {
        if self.damaged.contains(&entry.id) {
            return;
        }
        match SnapshotReader::open(&entry.path).and_then(|reader| reader.check_all(1, &NoProgress).map(|()| reader)) {
            Ok(reader) => {
                let manifest = reader.manifest();
                let expected = stepped::root(manifest.train.step, ELEMENTS);
                tally.require(manifest.root == expected, || format!("{} is not the state of its step", entry.id));
            }
            Err(e) => tally.violation(format!("visible and not whole: {e}")),
        }
    }

    /// The newest that was told is there, and the order agrees on which it is.
    fn check_newest(&mut self, good: &[&SnapshotEntry], tally: &mut CampaignTally) {
        let told = self.saved.iter().rfind(|id| !self.damaged.contains(*id)).and_then(layout::step_of);
        let newest = good.iter().map(|e| e.step()).max();
        tally.require(newest >= told, || format!("step {told:?} was told, and {newest:?} is the newest"));
        self.newest = newest;
        let newest_by_order = good.first().map(|e| e.step());
        tally.require(newest_by_order == newest, || format!("the order gives {newest_by_order:?}, not {newest:?}"));
    }
}
