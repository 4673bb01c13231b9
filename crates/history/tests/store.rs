//! The history in a store: what was pushed is read, whatever happens to the file in between.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use ckptd_core::store::Store;
use ckptd_history::follow::HistoryFollower;
use ckptd_history::overview::{HistoryOverview, SnapshotFate};
use ckptd_history::reader::{HistoryItem, HistoryPosition, TrainingHistory};
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};
use ckptd_history::writer::HistoryWriter;
use ckptd_testkit::random::SeededRandom;

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path()).unwrap();
        Place { folder, store }
    }

    fn write(&self, batches: &[Vec<HistoryRecord>]) -> Option<u64> {
        let lock = self.store.lock("a test").unwrap();
        let mut writer = HistoryWriter::open(&self.store, &lock).unwrap();
        for batch in batches {
            batch.iter().for_each(|record| writer.push(record.clone()));
            writer.flush(0).unwrap();
        }
        writer.torn()
    }

    fn items(&self) -> Vec<HistoryItem> {
        let (mut items, history) = (Vec::new(), self.history());
        let take = &mut |item| {
            items.push(item);
            Ok(())
        };
        history.each(take, &mut |problem| panic!("{problem}")).unwrap();
        items
    }

    fn history(&self) -> TrainingHistory {
        TrainingHistory::read(&self.store).unwrap()
    }

    fn overview(&self) -> HistoryOverview {
        HistoryOverview::of(&self.history(), 1000).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(self.folder.path().join("history")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn step(step: u64) -> HistoryRecord {
    HistoryRecord::Step(StepRow {
        step,
        at_ms: 1_000 * step as i64,
        loss: 10.0 / step as f32,
        learning_rate: 1e-3,
        grad_norm: step.is_multiple_of(2).then_some(0.5),
        micros: 500_000,
        tokens: 64,
    })
}

fn event(at_ms: i64, event: HistoryEvent) -> HistoryRecord {
    HistoryRecord::Event(TimedEvent { at_ms, event })
}

fn started(run: &str) -> HistoryRecord {
    event(0, HistoryEvent::SessionStarted { run: run.into(), total_steps: 100, version: "1".into() })
}

fn resumed(step: u64) -> HistoryRecord {
    event(0, HistoryEvent::Resumed { step, snapshot: None })
}

fn evaluated(step: u64) -> HistoryRecord {
    event(0, HistoryEvent::Evaluated { step, val_loss: Some(step as f64), best: false })
}

fn kept(items: &[HistoryItem]) -> Vec<u64> {
    let step = |item: &HistoryItem| match &item.record {
        HistoryRecord::Step(row) if !item.is_abandoned => Some(row.step),
        _ => None,
    };
    items.iter().filter_map(step).collect()
}

#[test]
fn what_was_written_is_read_in_its_order_over_packing() {
    let place = Place::new();
    let records: Vec<HistoryRecord> =
        (1..=150_000).flat_map(|n| [Some(step(n)), n.is_multiple_of(1000).then(|| evaluated(n))]).flatten().collect();
    let batches: Vec<Vec<HistoryRecord>> = records.chunks(700).map(<[HistoryRecord]>::to_vec).collect();
    place.write(&batches[..40]);
    place.write(&batches[40..]);
    let names: Vec<String> =
        place.files().iter().map(|path| path.file_name().unwrap().to_str().unwrap().into()).collect();
    assert_eq!(names, ["00000000.packed", "00000001.packed", "00000002.growing"]);
    let read: Vec<HistoryRecord> = place.items().into_iter().map(|item| item.record).collect();
    assert!(read == records, "{} records of {}", read.len(), records.len());
    let overview = place.overview();
    assert_eq!(overview.curve.iter().map(|bucket| bucket.rows).sum::<u64>(), 150_000);
    assert!(overview.curve.len() <= 1000 && overview.curve.is_sorted_by_key(|bucket| bucket.first_step));
    assert_eq!((overview.evaluations.len(), overview.lost_steps()), (150, 0));
}

#[test]
fn a_resume_from_an_earlier_step_cuts_the_curve_and_keeps_what_it_cuts() {
    let place = Place::new();
    let first = (1..=30).map(step).chain([evaluated(20), evaluated(30)]);
    let verified =
        |step, healthy| event(0, HistoryEvent::SnapshotVerified { step, id: "a".into(), healthy, val_loss: None });
    place.write(&[[started("a"), resumed(0)]
        .into_iter()
        .chain(first)
        .chain([verified(20, true), verified(30, true)])
        .collect()]);
    place.write(&[[started("a"), resumed(20)].into_iter().chain((21..=25).map(step)).collect()]);
    // The worker fails and goes on once more, and again.
    place.write(&[[resumed(24)].into_iter().chain((25..=40).map(step)).chain([resumed(22)]).collect()]);
    place.write(&[(23..=50).map(step).collect()]);
    assert_eq!(kept(&place.items()), (1..=50).collect::<Vec<u64>>());
    let overview = place.overview();
    let steps: Vec<(u64, u64)> = overview.lost.iter().filter_map(|branch| branch.steps()).collect();
    assert_eq!(steps, [(21, 30), (23, 25), (25, 40)]);
    assert_eq!(overview.lost_steps(), 10 + 3 + 16);
    assert_eq!(overview.evaluations.iter().map(|point| point.step).collect::<Vec<_>>(), [20]);
    let fates: Vec<_> = overview.snapshots.iter().map(|mark| (mark.step, mark.fate, mark.is_abandoned)).collect();
    assert_eq!(fates, [(20, SnapshotFate::Verified, false), (30, SnapshotFate::Verified, true)]);
    assert_eq!(overview.sessions.iter().map(|session| session.from_step).collect::<Vec<_>>(), [Some(0), Some(20)]);
    // Another training in the same store: nothing of the first one is its own.
    place.write(&[[started("b"), resumed(0)].into_iter().chain((1..=3).map(step)).collect()]);
    assert_eq!(kept(&place.items()), [1, 2, 3]);
    assert_eq!((place.overview().curve.len(), place.overview().evaluations.len()), (3, 0));
}

#[test]
fn cuts_are_the_same_in_packed_parts_in_their_summaries_and_row_by_row() {
    let mut random = SeededRandom::new(7);
    let place = Place::new();
    let (mut at, mut batches) = (0u64, vec![vec![started("a"), resumed(0)]]);
    let mut expected: Vec<u64> = Vec::new();
    for _ in 0..400 {
        let steps = random.below(2000) + 1;
        batches.push((at + 1..=at + steps).map(step).collect());
        expected.extend(at + 1..=at + steps);
        at += steps;
        if random.below(5) == 0 {
            at -= random.below(3 * steps).min(at);
            expected.truncate(expected.partition_point(|step| *step <= at));
            batches.push(vec![resumed(at)]);
        }
    }
    place.write(&batches);
    assert!(place.files().len() > 3);
    assert!(kept(&place.items()) == expected);
    let overview = place.overview();
    assert_eq!(overview.curve.iter().map(|bucket| bucket.rows).sum::<u64>(), expected.len() as u64);
    assert_eq!(overview.lost_steps() + expected.len() as u64, place.history().rows());
    let ends: Vec<(u64, u64)> = overview.curve.iter().map(|bucket| (bucket.first_step, bucket.last_step)).collect();
    assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0) && ends.iter().all(|(first, last)| first <= last));
}

#[test]
fn a_history_cut_at_any_byte_is_read_to_its_last_whole_batch_and_gone_on_with() {
    let place = Place::new();
    let batch = |n: u64| (n * 10 + 1..=n * 10 + 10).map(step).collect::<Vec<_>>();
    let mut ends = Vec::new();
    for n in 0..3 {
        place.write(&[batch(n)]);
        ends.push(std::fs::metadata(&place.files()[0]).unwrap().len() as usize);
    }
    let whole = std::fs::read(&place.files()[0]).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&place.files()[0], &whole[..cut]).unwrap();
        let batches = ends.iter().filter(|end| **end <= cut).count() as u64;
        assert_eq!(kept(&place.items()), (1..=batches * 10).collect::<Vec<u64>>(), "{cut}");
        let is_torn = cut != 0 && !ends.contains(&cut) && cut != 8;
        assert_eq!(place.history().torn_bytes > 0, is_torn, "{cut}");
        assert_eq!(place.write(&[batch(batches)]).is_some(), is_torn, "{cut}");
        assert_eq!(kept(&place.items()), (1..=batches * 10 + 10).collect::<Vec<u64>>(), "{cut}");
        assert_eq!((place.history().torn_bytes, place.files().len()), (0, 1));
    }
}

#[test]
fn a_damaged_batch_is_named_and_nothing_behind_it_is_overwritten() {
    let place = Place::new();
    place.write(&[(1..=10).map(step).collect(), (11..=20).map(step).collect(), (21..=30).map(step).collect()]);
    let mut bytes = std::fs::read(&place.files()[0]).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&place.files()[0], &bytes).unwrap();
    assert_eq!(kept(&place.items()), (1..=10).collect::<Vec<u64>>());
    assert!(place.history().problems[0].contains("00000000.growing: a batch is not what was written"));
    assert_eq!(place.write(&[(31..=40).map(step).collect()]), None);
    assert_eq!((std::fs::read(&place.files()[0]).unwrap(), place.files().len()), (bytes, 2));
    assert_eq!(kept(&place.items()), (1..=10).chain(31..=40).collect::<Vec<u64>>());
}

#[test]
fn a_damaged_packed_part_costs_its_own_steps_alone() {
    let place = Place::new();
    let batches: Vec<Vec<HistoryRecord>> =
        (0..200).map(|n| (n * 700 + 1..=n * 700 + 700).map(step).collect()).collect();
    place.write(&batches);
    let path = place.files().remove(0);
    let whole = std::fs::read(&path).unwrap();
    let mut random = SeededRandom::new(3);
    for _ in 0..60 {
        let mut bytes = whole.clone();
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        std::fs::write(&path, &bytes).unwrap();
        let (history, mut problems, mut steps) = (place.history(), Vec::new(), Vec::new());
        let mut take = |item: HistoryItem| {
            if let HistoryRecord::Step(row) = item.record {
                steps.push(row.step);
            }
            Ok(())
        };
        history.each(&mut take, &mut |problem| problems.push(problem)).unwrap();
        problems.extend(history.problems.iter().cloned());
        assert!(problems.len() == 1 && problems[0].contains("00000000.packed"), "byte {at}: {problems:?}");
        assert!(steps.is_sorted() && steps.last() == Some(&140_000), "byte {at}");
    }
}

#[test]
fn a_part_that_was_packed_and_not_removed_counts_once() {
    let place = Place::new();
    let rows: Vec<HistoryRecord> = (1..=70_000).map(step).collect();
    place.write(&[rows[..1000].to_vec()]);
    let growing = std::fs::read(&place.files()[0]).unwrap();
    let path = place.files().remove(0);
    place.write(&rows[1000..].chunks(1000).map(<[HistoryRecord]>::to_vec).collect::<Vec<_>>());
    assert!(place.files()[0].ends_with("00000000.packed"));
    std::fs::write(&path, growing).unwrap();
    assert_eq!(place.items().len(), 70_000);
    place.write(&[vec![step(70_001)]]);
    assert_eq!((place.items().len(), path.exists()), (70_001, false));
}

#[test]
fn a_follower_gets_everything_once_also_when_a_part_is_packed_meanwhile() {
    let place = Place::new();
    let lock = place.store.lock("a test").unwrap();
    let mut writer = HistoryWriter::open(&place.store, &lock).unwrap();
    let mut follower = HistoryFollower::from(HistoryPosition::default());
    let (mut random, mut written, mut read) = (SeededRandom::new(1), Vec::new(), Vec::new());
    for n in 0..300u64 {
        for i in 0..random.below(900) {
            written.push(if i % 50 == 7 { evaluated(i) } else { step(n * 1000 + i + 1) });
            writer.push(written.last().unwrap().clone());
        }
        writer.flush(0).unwrap();
        if random.below(3) == 0 {
            read.extend(follower.next(&place.store).unwrap());
        }
    }
    read.extend(follower.next(&place.store).unwrap());
    assert!(place.files().len() > 1 && read == written, "{} of {}", read.len(), written.len());
    assert_eq!(follower.next(&place.store).unwrap(), []);
    // From the end of what was read otherwise.
    let mut follower = HistoryFollower::from(place.history().end());
    assert_eq!(follower.next(&place.store).unwrap(), []);
    writer.push(step(999));
    writer.flush(0).unwrap();
    assert_eq!(follower.next(&place.store).unwrap(), [step(999)]);
}

#[test]
fn what_a_disk_does_not_take_is_bounded_counted_and_told() {
    let place = Place::new();
    let lock = place.store.lock("a test").unwrap();
    let mut writer = HistoryWriter::open(&place.store, &lock).unwrap();
    (1..=100_000).for_each(|n| writer.push(step(n)));
    writer.count_lost(5, 2);
    writer.flush(77).unwrap();
    let items = place.items();
    let gap = HistoryEvent::Gap { steps: 100_000 - (64 << 10) + 5, events: 2 };
    assert_eq!((items.len(), &items.last().unwrap().record), ((64 << 10) + 1, &event(77, gap)));
    writer.push(step(100_001));
    writer.flush(78).unwrap();
    assert_eq!(place.items().len(), (64 << 10) + 2);
}

#[test]
fn a_store_without_a_history_has_an_empty_one() {
    let place = Place::new();
    std::fs::remove_dir(place.folder.path().join("history")).unwrap();
    assert!(place.history().is_empty() && place.overview().curve.is_empty());
}
