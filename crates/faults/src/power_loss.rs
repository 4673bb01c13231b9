//! What a power loss may leave of a disk: which of the recorded operations reached it.
//!
//! Two models. *Weak* is what POSIX promises: of what was not synced any part may be there, data and names by
//! themselves, a rename also as two names; nothing is lost that a journal keeps (a name goes only after its new one
//! came). *Ordered* is ext4's journal: names and lengths reach the disk in their order, any sync takes along all that
//! came before it, only data is free. Deliberately not here: the file system's own faults (real ones are replayed).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{DiskChange, DiskNode, DiskState, Inode, ROOT};
use crate::hooks::DiskOp;
use ckptd_testkit::random::SeededRandom;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashModel {
    Weak,
    Ordered,
}

#[derive(Clone, Debug)]
struct DiskAtom {
    /// Index of the operation that it belongs to.
    op: usize,
    change: DiskChange,
    /// After this operation it is on the disk for certain.
    durable: Option<usize>,
    /// The change (index) without which this one does not reach the disk.
    needs: Option<usize>,
}

/// A recording, resolved to what changes in which file.
pub struct DiskHistory {
    base: DiskState,
    atoms: Vec<DiskAtom>,
    ops: usize,
    model: CrashModel,
}

/// One way in which the disk may look, and the number of operations that were made.
pub struct CrashCandidate {
    pub disk: DiskState,
    pub ops: usize,
}

/// Follows the names while the operations are read.
struct NameMoves {
    live: BTreeMap<PathBuf, Inode>,
    next: Inode,
}

impl NameMoves {
    fn place(&self, path: &Path) -> Option<(Inode, String)> {
        let dir = *self.live.get(path.parent()?)?;
        Some((dir, path.file_name()?.to_string_lossy().into_owned()))
    }
}

impl DiskHistory {
    /// Of operations that were recorded under `root`, which held `base`, all of it durable.
    pub fn new(base: DiskState, root: &Path, ops: &[DiskOp], model: CrashModel) -> DiskHistory {
        let mut names = NameMoves { live: BTreeMap::from([(root.to_path_buf(), ROOT)]), next: base.nodes.len() };
        let walked = base.walk(ROOT, root, &mut |path, _| {
            let parent = path.parent().and_then(|p| names.live.get(p)).copied().unwrap_or(ROOT);
            if let (Some(DiskNode::Folder(known)), Some(name)) = (base.nodes.get(&parent), path.file_name()) {
                names.live.extend(known.get(&*name.to_string_lossy()).map(|inode| (path.to_path_buf(), *inode)));
            }
            Ok(())
        });
        debug_assert!(walked.is_ok(), "nothing in there fails");
        let mut history = DiskHistory { base, atoms: Vec::new(), ops: ops.len(), model };
        for (i, op) in ops.iter().enumerate() {
            history.add(i, op, &mut names);
        }
        history
    }

    fn add(&mut self, i: usize, op: &DiskOp, names: &mut NameMoves) {
        match op {
            DiskOp::Ack(_) => {}
            DiskOp::MakeFolder(path) | DiskOp::Create(path) => {
                let Some((dir, name)) = names.place(path).filter(|_| !names.live.contains_key(path)) else { return };
                let (inode, folder) = (names.next, matches!(op, DiskOp::MakeFolder(_)));
                names.next += 1;
                names.live.insert(path.clone(), inode);
                self.push(i, DiskChange::Make { inode, folder, dir, name });
            }
            DiskOp::Write(path, offset, bytes) => {
                let Some(&inode) = names.live.get(path) else { return };
                self.push(i, DiskChange::Write { inode, offset: *offset, bytes: Arc::new(bytes.clone()) });
            }
            DiskOp::Truncate(path, bytes) => {
                let Some(&inode) = names.live.get(path) else { return };
                self.push(i, DiskChange::Cut { inode, bytes: *bytes });
            }
            DiskOp::Remove(path) => {
                let Some((dir, name)) = names.place(path) else { return };
                names.live.remove(path);
                self.push(i, DiskChange::Unlink { dir, name });
            }
            DiskOp::Rename(from, to) => {
                let (Some((old, from_name)), Some((dir, name))) = (names.place(from), names.place(to)) else { return };
                let Some(inode) = names.live.remove(from) else { return };
                names.live.insert(to.clone(), inode);
                if old == dir {
                    return self.push(i, DiskChange::Replace { inode, dir, from: from_name, to: name });
                }
                self.push(i, DiskChange::Link { inode, dir, name });
                let link = self.atoms.len() - 1;
                self.push(i, DiskChange::Unlink { dir: old, name: from_name });
                self.atoms[link + 1].needs = Some(link);
            }
            DiskOp::Sync(path) => {
                if let Some(&inode) = names.live.get(path) {
                    self.sync(i, inode);
                }
            }
        }
    }

    fn push(&mut self, op: usize, change: DiskChange) {
        self.atoms.push(DiskAtom { op, change, durable: None, needs: None });
    }

    fn sync(&mut self, op: usize, inode: Inode) {
        let model = self.model;
        for atom in self.atoms.iter_mut().filter(|a| a.durable.is_none()) {
            let synced = match &atom.change {
                DiskChange::Write { inode: of, .. } => *of == inode,
                _ if model == CrashModel::Ordered => true,
                DiskChange::Cut { inode: of, .. } => *of == inode,
                DiskChange::Make { dir, .. } | DiskChange::Link { dir, .. } => *dir == inode,
                DiskChange::Unlink { dir, .. } | DiskChange::Replace { dir, .. } => *dir == inode,
            };
            if synced {
                atom.durable = Some(op);
            }
        }
    }

    /// The disks that a power loss may leave, `each` is told them one after the other, for every moment between two
    /// operations. `random` subsets a moment come on top of the systematic ones.
    pub fn candidates(&self, random: u64, seed: u64, each: &mut dyn FnMut(CrashCandidate)) {
        let mut durable = self.base.clone();
        let mut applied = vec![false; self.atoms.len()];
        for ops in 0..=self.ops {
            for (atom, applied) in self.atoms.iter().zip(&mut applied) {
                if !*applied && atom.op < ops && atom.durable.is_some_and(|at| at < ops) {
                    durable.apply(&atom.change);
                    *applied = true;
                }
            }
            let free: Vec<usize> = (0..self.atoms.len()).filter(|&i| self.atoms[i].op < ops && !applied[i]).collect();
            let mut draw = SeededRandom::of(&[seed, ops as u64, self.model as u64]);
            for (keep, torn) in self.choices(&free, random, &mut draw) {
                each(CrashCandidate { disk: self.build(&durable, &keep, torn, &mut draw), ops });
            }
        }
    }

    /// Which of the free changes reach the disk, and which write among them how badly.
    fn choices(&self, free: &[usize], random: u64, draw: &mut SeededRandom) -> Vec<CrashChoice> {
        let is_data = |i: &usize| matches!(self.atoms[*i].change, DiskChange::Write { .. });
        let mut keeps: Vec<Vec<usize>> = vec![free.to_vec(), Vec::new()];
        match self.model {
            CrashModel::Weak => {
                keeps.extend(free.iter().map(|drop| free.iter().copied().filter(|i| i != drop).collect()));
                keeps.extend(free.iter().map(|only| vec![*only]));
                keeps.extend((0..random).map(|_| free.iter().copied().filter(|_| draw.below(2) == 0).collect()));
            }
            CrashModel::Ordered => {
                // A prefix of the journal, with all, none and some of the data.
                let mut ends: Vec<usize> = free.iter().filter(|i| !is_data(i)).map(|i| self.atoms[*i].op + 1).collect();
                ends.push(0);
                ends.dedup();
                for end in ends {
                    let journal = |i: &usize| !is_data(i) && self.atoms[*i].op < end;
                    keeps.push(free.iter().copied().filter(|i| is_data(i) || journal(i)).collect());
                    keeps.push(free.iter().copied().filter(journal).collect());
                    keeps.extend((0..random.div_ceil(2)).map(|_| {
                        let some = |i: &usize| journal(i) || (is_data(i) && draw.below(2) == 0);
                        free.iter().copied().filter(some).collect()
                    }));
                }
            }
        }
        let mut choices: Vec<_> = keeps.into_iter().map(|keep| (self.legal(keep, free), None)).collect();
        for &write in free.iter().filter(|i| is_data(i)) {
            choices.extend(TornWrite::ALL.map(|tear| (free.to_vec(), Some((write, tear)))));
        }
        choices
    }

    /// Without the changes of `keep` that need one which is free and not kept.
    fn legal(&self, keep: Vec<usize>, free: &[usize]) -> Vec<usize> {
        let stands = |i: &usize| self.atoms[*i].needs.is_none_or(|link| keep.contains(&link) || !free.contains(&link));
        keep.iter().copied().filter(stands).collect()
    }

    /// The first rename that is not on the disk for certain after `ops` operations.
    pub fn pending_rename(&self, ops: usize) -> Option<&str> {
        let pending = |a: &&DiskAtom| a.op < ops && a.durable.is_none_or(|at| at >= ops);
        self.atoms.iter().filter(pending).find_map(|atom| match &atom.change {
            DiskChange::Replace { to, .. } => Some(to.as_str()),
            DiskChange::Link { name, .. } => Some(name.as_str()),
            DiskChange::Unlink { name, .. } if atom.needs.is_some() => Some(name.as_str()),
            _ => None,
        })
    }

    fn build(
        &self,
        durable: &DiskState,
        keep: &[usize],
        torn: Option<(usize, TornWrite)>,
        draw: &mut SeededRandom,
    ) -> DiskState {
        let mut disk = durable.clone();
        for &i in keep {
            match (&self.atoms[i].change, torn) {
                (DiskChange::Write { inode, offset, bytes }, Some((write, tear))) if write == i => {
                    let (at, bytes) = tear.apply(bytes, draw);
                    disk.write(*inode, offset + at, &bytes);
                }
                (change, _) => disk.apply(change),
            }
        }
        disk
    }
}

/// The changes that reach the disk, and which write among them is torn, and how.
type CrashChoice = (Vec<usize>, Option<(usize, TornWrite)>);

/// How a write that was not synced may end.
#[derive(Clone, Copy, Debug)]
enum TornWrite {
    FirstHalf,
    SecondHalf,
    Zeros,
    Junk,
    Sectors,
}

impl TornWrite {
    const ALL: [TornWrite; 5] =
        [TornWrite::FirstHalf, TornWrite::SecondHalf, TornWrite::Zeros, TornWrite::Junk, TornWrite::Sectors];

    /// Where the torn write begins, and its bytes.
    fn apply(self, bytes: &[u8], draw: &mut SeededRandom) -> (u64, Vec<u8>) {
        let half = bytes.len() / 2;
        match self {
            TornWrite::FirstHalf => (0, bytes[..half].to_vec()),
            TornWrite::SecondHalf => (half as u64, bytes[half..].to_vec()),
            TornWrite::Zeros => (0, vec![0; bytes.len()]),
            TornWrite::Junk => (0, vec![0xa5; bytes.len()]),
            TornWrite::Sectors => {
                let mut torn = bytes.to_vec();
                for sector in torn.chunks_mut(512).filter(|_| draw.below(2) == 0) {
                    sector.fill(0);
                }
                (0, torn)
            }
        }
    }
}
