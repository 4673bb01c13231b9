//! The whole history, with what is the training's and what a resume from an earlier step cut off.
//!
//! Invariant: a step counts as the training's where nothing that was recorded after it went on from an earlier one.
//! What cannot be read is named, and the rest is read.

use std::collections::BTreeMap;

use ckptd_core::error::{Error, Result};
use ckptd_core::os::dir::Dir;
use ckptd_core::store::Store;
use ckptd_core::store::layout::{self, Folder};

use crate::batch::PlacedEvent;
use crate::bucket::Bucket;
use crate::part::{self, FileRest, PartReading};
use crate::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};

/// How often the files are looked at again where one has become another meanwhile.
const LOOKS: usize = 5;

/// The history of a store.
#[derive(Debug, Default)]
pub struct TrainingHistory {
    parts: Vec<PartReading>,
    cuts: Vec<PartCuts>,
    /// What could not be read, in sentences.
    pub problems: Vec<String>,
    /// The bytes of a batch at the end that is not whole: a process was killed, or is writing it.
    pub torn_bytes: u64,
}

/// What is cut off of a part.
#[derive(Debug, Default)]
struct PartCuts {
    /// By later parts: steps from this one on.
    after: Option<u64>,
    /// By events of this part and of later ones: `.1` is the first step that is cut off of the rows before `.0`.
    limits: Vec<(u64, u64)>,
    /// Of each event, whether it is about a state that is cut off.
    voids: Vec<bool>,
}

impl PartCuts {
    /// Of a part before others that cut off `after`. `cuts`: the first step that each of its events cuts off.
    fn of(part: &PartReading, after: Option<u64>, cuts: &[Option<u64>]) -> PartCuts {
        let (mut limit, mut limits, mut voids) = (after.unwrap_or(u64::MAX), Vec::new(), Vec::new());
        for (placed, cut) in part.events.iter().zip(cuts).rev() {
            let event = &placed.event.event;
            voids.push(event.is_of_state() && event.step().is_some_and(|step| step >= limit));
            if let Some(cut) = cut {
                limit = limit.min(*cut);
                limits.push((placed.row, limit));
            }
        }
        limits.reverse();
        voids.reverse();
        PartCuts { after, limits, voids }
    }

    /// The first step that is cut off of what came before row `row`.
    fn limit(&self, row: u64) -> u64 {
        let next = self.limits.partition_point(|(at, _)| *at <= row);
        self.limits.get(next).map(|(_, limit)| *limit).or(self.after).unwrap_or(u64::MAX)
    }

    /// What it cuts off of all that was before the part.
    fn before(&self) -> Option<u64> {
        self.limits.first().map(|(_, limit)| *limit).or(self.after)
    }
}

/// A step or an event with what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryItem {
    /// What it is.
    pub record: HistoryRecord,
    /// A resume from an earlier step made it void.
    pub is_abandoned: bool,
}

/// Steps in a row that have the same fate.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketItem {
    /// What they are like.
    pub bucket: Bucket,
    /// A resume from an earlier step made them void.
    pub is_abandoned: bool,
}

/// Up to where a history was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryPosition {
    /// The number of the part.
    pub part: u64,
    /// Steps and events of it.
    pub items: u64,
}

impl TrainingHistory {
    /// Reads what the store has: events and summaries; of the file that grows, all.
    ///
    /// # Errors
    /// Those of reading the folder. A file that is damaged is a problem, not an error.
    pub fn read(store: &Store) -> Result<TrainingHistory> {
        match store.folder(Folder::History) {
            Ok(folder) => TrainingHistory::read_folder(&folder, 0),
            // An earlier release has written none.
            Err(Error::NotFound(_)) => Ok(TrainingHistory::default()),
            Err(error) => Err(error),
        }
    }

    /// Reads the parts from number `from` on.
    ///
    /// # Errors
    /// As [`TrainingHistory::read`].
    pub fn read_folder(folder: &Dir, from: u64) -> Result<TrainingHistory> {
        let mut looks = LOOKS;
        loop {
            looks -= 1;
            if let Some(history) = TrainingHistory::look(folder, from, looks == 0)? {
                return Ok(history);
            }
        }
    }

    /// `None`: a part was packed meanwhile.
    fn look(folder: &Dir, from: u64, is_last: bool) -> Result<Option<TrainingHistory>> {
        let mut numbers = BTreeMap::new();
        for part in folder.files()?.iter().filter_map(|name| layout::parse_history_file(name)) {
            *numbers.entry(part.number).or_insert(false) |= part.is_packed;
        }
        let mut history = TrainingHistory::default();
        let newest = numbers.keys().next_back().copied();
        for (number, is_packed) in numbers.range(from..) {
            let is_newest = Some(*number) == newest;
            let read = if *is_packed {
                history.take_packed(folder, *number)?
            } else {
                history.take_growing(folder, *number, is_newest)?
            };
            if !read && !is_last {
                return Ok(None);
            }
        }
        history.cut();
        Ok(Some(history))
    }

    /// Whether it was there.
    fn take_packed(&mut self, folder: &Dir, number: u64) -> Result<bool> {
        match PartReading::packed(folder, number) {
            Ok(Some(part)) => self.parts.push(part),
            Ok(None) => return Ok(false),
            Err(error @ Error::Damaged { .. }) => self.problems.push(error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn take_growing(&mut self, folder: &Dir, number: u64, is_newest: bool) -> Result<bool> {
        let Some(file) = part::read_growing(folder, number)? else { return Ok(false) };
        let name = layout::history_file(layout::HistoryPart { number, is_packed: false });
        match file.rest {
            FileRest::Nothing => {}
            FileRest::Torn(bytes) if is_newest => self.torn_bytes = bytes,
            FileRest::Torn(bytes) => {
                self.problems
                    .push(format!("{}: its last {bytes} bytes are half a batch", folder.join(&name).display()));
            }
            FileRest::Damaged(what) => {
                let path = folder.join(&name);
                self.problems.push(format!("{}: {what}; what follows in it is not shown", path.display()));
            }
        }
        self.parts.push(PartReading::growing(number, file.batch));
        Ok(true)
    }

    /// Finds out what was cut off: from the end back, since what comes later decides.
    fn cut(&mut self) {
        let mut run: Option<&str> = None;
        let cut_by = |event: &PlacedEvent| match &event.event.event {
            HistoryEvent::Resumed { step, .. } => Some(step.saturating_add(1)),
            _ => None,
        };
        let mut cuts: Vec<Vec<Option<u64>>> = Vec::new();
        for part in &self.parts {
            let mut of_part: Vec<Option<u64>> = part.events.iter().map(cut_by).collect();
            for (placed, cut) in part.events.iter().zip(&mut of_part) {
                if let HistoryEvent::SessionStarted { run: new, .. } = &placed.event.event {
                    // Nothing of another training is this one's.
                    *cut = run.filter(|run| run != new).map(|_| 0);
                    run = Some(new);
                }
            }
            cuts.push(of_part);
        }
        let mut after = None;
        for (part, cuts) in self.parts.iter().zip(&cuts).rev() {
            let of_part = PartCuts::of(part, after, cuts);
            after = of_part.before();
            self.cuts.push(of_part);
        }
        self.cuts.reverse();
    }

    /// What was read, part by part.
    pub fn parts(&self) -> &[PartReading] {
        &self.parts
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.rows == 0 && part.events.is_empty())
    }

    /// How many steps were recorded, abandoned ones included.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Up to where it was read.
    pub fn end(&self) -> HistoryPosition {
        let last = self.parts.last();
        last.map_or_else(HistoryPosition::default, |part| HistoryPosition {
            part: part.number,
            items: part.rows + part.events.len() as u64,
        })
    }

    /// The number of the first part that was read.
    pub fn first_part(&self) -> Option<u64> {
        self.parts.first().map(|part| part.number)
    }

    /// The events in order, each with whether it is about a state that a resume made void.
    pub fn events(&self) -> impl Iterator<Item = (&TimedEvent, bool)> {
        self.parts.iter().zip(&self.cuts).flat_map(|(part, cuts)| {
            part.events.iter().zip(&cuts.voids).map(|(placed, is_void)| (&placed.event, *is_void))
        })
    }

    /// Hands everything out in order.
    ///
    /// # Errors
    /// Those of reading, and of `take`. A block that is damaged is passed over and told to `problem`.
    pub fn each(&self, take: &mut dyn FnMut(HistoryItem) -> Result<()>, problem: &mut dyn FnMut(String)) -> Result<()> {
        for (part, cuts) in self.parts.iter().zip(&self.cuts) {
            let (mut row, mut event) = (0u64, 0usize);
            let mut events_to = |row: u64, take: &mut dyn FnMut(HistoryItem) -> Result<()>| {
                while let Some(placed) = part.events.get(event).filter(|placed| placed.row <= row) {
                    let is_abandoned = cuts.voids.get(event).copied().unwrap_or(false);
                    event += 1;
                    take(HistoryItem { record: HistoryRecord::Event(placed.event.clone()), is_abandoned })?;
                }
                Ok(())
            };
            let mut taken = Ok(());
            let read = part.each_block(&mut |rows| {
                for step in rows {
                    taken = events_to(row, take).and_then(|()| {
                        take(HistoryItem {
                            record: HistoryRecord::Step(*step),
                            is_abandoned: step.step >= cuts.limit(row),
                        })
                    });
                    if taken.is_err() {
                        return Err(Error::Abandoned);
                    }
                    row += 1;
                }
                Ok(())
            });
            taken?;
            match read {
                Err(error @ Error::Damaged { .. }) => problem(format!("{error}; its other steps are not shown")),
                other => other?,
            }
            events_to(u64::MAX, take)?;
        }
        Ok(())
    }

    /// Hands the steps out in buckets, whose rows all have the same fate.
    ///
    /// # Errors
    /// Those of reading. What is damaged is told to `problem`.
    pub fn each_bucket(&self, take: &mut dyn FnMut(BucketItem), problem: &mut dyn FnMut(String)) -> Result<()> {
        for (part, cuts) in self.parts.iter().zip(&self.cuts) {
            let least = part.buckets.iter().map(|bucket| bucket.first_step).min().unwrap_or(0);
            let greatest = part.buckets.iter().map(|bucket| bucket.last_step).max().unwrap_or(0);
            let limit = cuts.limit(0);
            let is_whole = cuts.limits.iter().all(|(row, limit)| *row == 0 || *limit > greatest);
            if is_whole && (limit > greatest || limit <= least) {
                let is_abandoned = limit <= least;
                let item = |bucket: &Bucket| BucketItem { bucket: bucket.clone(), is_abandoned };
                part.buckets.iter().map(item).for_each(&mut *take);
                continue;
            }
            let mut row = 0u64;
            let read = part.each_block(&mut |rows| {
                buckets_of(rows, &mut row, cuts, take);
                Ok(())
            });
            match read {
                Err(error @ Error::Damaged { .. }) => problem(format!("{error}; its other steps are not shown")),
                other => other?,
            }
        }
        Ok(())
    }
}

/// Buckets of a block of a part whose rows have not all the same fate.
const BLOCK_BUCKETS: usize = 1024;

fn buckets_of(rows: &[StepRow], row: &mut u64, cuts: &PartCuts, take: &mut dyn FnMut(BucketItem)) {
    let size = rows.len().div_ceil(BLOCK_BUCKETS) as u64;
    let mut item = BucketItem { bucket: Bucket::default(), is_abandoned: false };
    for step in rows {
        let is_abandoned = step.step >= cuts.limit(*row);
        let is_cut = cuts.limits.binary_search_by_key(row, |(at, _)| *at).is_ok();
        let goes_on = item.is_abandoned == is_abandoned && item.bucket.rows < size && !is_cut;
        if !goes_on && item.bucket.rows > 0 {
            take(std::mem::replace(&mut item, BucketItem { bucket: Bucket::default(), is_abandoned }));
        }
        item.is_abandoned = is_abandoned;
        item.bucket.add(step);
        *row += 1;
    }
    if item.bucket.rows > 0 {
        take(item);
    }
}
