//! Links, soft and hard, planted at every name of a store: whatever ckptd then does, nothing outside may change.
//!
//! Invariant: a refusal is fine, an error is fine; a byte, a name or a mode that differs outside is not.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::layout::Folder;
use ckptd_core::store::{CommitOptions, Store, StoreLock, commit};

use crate::place;
use crate::row::{CampaignRow, CampaignTally};
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::stepped;

const ELEMENTS: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PlantedLink {
    Soft,
    Hard,
    /// To a folder outside.
    Folder,
    /// To something that is not there: following it would make it.
    Dangling,
}

pub fn campaign(rounds: u64, seed: u64) -> Result<CampaignRow> {
    let mut tally = CampaignTally::new("links", seed);
    for name in names() {
        for link in [PlantedLink::Soft, PlantedLink::Hard, PlantedLink::Folder, PlantedLink::Dangling] {
            round(&[(name.clone(), link)], &mut tally)?;
        }
    }
    let mut random = SeededRandom::new(seed);
    for _ in 0..rounds {
        let all = names();
        let some: Vec<(String, PlantedLink)> = (0..2 + random.below(6))
            .map(|_| {
                let link = [PlantedLink::Soft, PlantedLink::Hard, PlantedLink::Folder, PlantedLink::Dangling]
                    [random.below(4) as usize];
                (all[random.below(all.len() as u64) as usize].clone(), link)
            })
            .collect();
        round(&some, &mut tally)?;
    }
    Ok(tally.row())
}

/// Every name that ckptd writes, replaces or removes while it works on step 3, and the folders themselves.
fn names() -> Vec<String> {
    let id = "step-000000000003";
    let pid = std::process::id();
    let mut names: Vec<String> = Folder::ALL.iter().map(|folder| folder.name().to_owned()).collect();
    names.extend(["ckptd.lock", "run.json", "job.json", "status.sock", "cache"].map(str::to_owned));
    names.extend([format!("run.json.{pid}.new"), format!("job.json.{pid}.new")]);
    names.extend([format!("snapshots/{id}.ckpt"), format!("snapshots/{id}.3.ckpt"), format!("staging/{id}.3.part")]);
    names.extend([format!("receipts/{id}.json"), format!("receipts/{id}.json.{pid}.new")]);
    names.extend([format!("pins/{id}"), format!("pins/{id}.{pid}.new")]);
    for name in [format!("{id}.ckpt"), format!("{id}.ckpt.1")] {
        names.push(format!("quarantine/{name}"));
        names.push(format!("quarantine/{name}.reason.txt"));
        names.push(format!("quarantine/{name}.reason.txt.{pid}.new"));
    }
    names
}

fn round(links: &[(String, PlantedLink)], tally: &mut CampaignTally) -> Result<()> {
    let folder = place::in_memory()?;
    let (outside, path) = (folder.path().join("outside"), folder.path().join("store"));
    std::fs::create_dir_all(outside.join("folder"))?;
    for name in ["file", "folder/step-000000000003.ckpt", "folder/precious"] {
        std::fs::write(outside.join(name), format!("precious {name}"))?;
    }
    let store = Store::create(&path)?;
    for (n, (name, link)) in links.iter().enumerate() {
        plant(&path.join(name), *link, &outside, n)?;
    }
    drop(store);
    let before = look(&outside)?;
    let done = everything(&path).err().map(|e| e.to_string());
    tally.tried(links);
    let after = look(&outside)?;
    tally.require(before == after, || format!("{links:?} led outside ({done:?}):\n{before:#?}\nbecame\n{after:#?}"));
    Ok(())
}

fn plant(place: &Path, link: PlantedLink, outside: &Path, n: usize) -> Result<()> {
    if place.is_dir() {
        std::fs::remove_dir_all(place)?;
    } else if place.symlink_metadata().is_ok() {
        std::fs::remove_file(place)?;
    }
    // The folder that it was to lie in may be a link by now.
    let planted = match link {
        PlantedLink::Soft => symlink(outside.join("file"), place),
        PlantedLink::Folder => symlink(outside.join("folder"), place),
        PlantedLink::Dangling => symlink(outside.join(format!("made-{n}")), place),
        PlantedLink::Hard => std::fs::hard_link(outside.join("file"), place),
    };
    // Through a link to a folder, the plant itself would change what is outside.
    if planted.is_ok() && place.parent().is_some_and(|parent| parent.symlink_metadata().is_ok_and(|m| m.is_symlink())) {
        std::fs::remove_file(place)?;
    }
    Ok(())
}

/// All that is done to a store. What is refused ends only that part.
fn everything(path: &Path) -> Result<()> {
    let store = Store::create(path)?;
    // Also where a link in the place of the lock keeps it from being taken.
    let (taken, lock) = (store.lock("links"), StoreLock::inherited());
    let _ = store.clean_staging(&lock);
    let _ = store.set_run_id(&lock, stepped::RUN);
    for seq in 3..6 {
        let _ = commit(&store, &lock, stepped::snapshot(3, ELEMENTS), &CommitOptions::new(stepped::RUN, seq));
    }
    for entry in store.entries()? {
        let _ = store.verify(&entry, 1, &NoProgress);
        let _ = store.pin(&entry);
        let _ = store.unpin(&entry);
    }
    for entry in store.entries()?.iter().skip(1) {
        let _ = store.quarantine(&lock, entry, "a campaign says so");
    }
    let _ = store.choose_resume(&lock, 1, &mut |_| ());
    let _ = store.prune(&lock, &Default::default(), jiff::Timestamp::now());
    drop(taken?);
    Ok(())
}

/// Names, modes and contents of all that is outside. The number of a file's names may change: a hard link in the store
/// is the store's to remove.
fn look(folder: &Path) -> Result<Vec<(PathBuf, u32, Vec<u8>)>> {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let meta = path.symlink_metadata()?;
        if meta.is_dir() {
            seen.push((path.clone(), meta.mode(), Vec::new()));
            seen.extend(look(&path)?);
        } else {
            seen.push((path.clone(), meta.mode(), std::fs::read(&path)?));
        }
    }
    seen.sort();
    Ok(seen)
}
