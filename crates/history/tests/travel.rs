//! A history that travels: what another machine recorded is added once, in order, and replaces nothing.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use ckptd_core::store::Store;
use ckptd_history::reader::{HistoryItem, TrainingHistory};
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};
use ckptd_history::travel::{self, HistoryIntake, TakenHistory};
use ckptd_history::writer::HistoryWriter;

struct Machine {
    folder: tempfile::TempDir,
    store: Store,
}

impl Machine {
    fn new() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&folder.path().join("store")).unwrap();
        Machine { folder, store }
    }

    fn records(&self, records: impl IntoIterator<Item = HistoryRecord>) {
        let lock = self.store.lock("a test").unwrap();
        let mut writer = HistoryWriter::open(&self.store, &lock).unwrap();
        for (at, record) in records.into_iter().enumerate() {
            writer.push(record);
            if at % 1000 == 999 {
                writer.flush(0).unwrap();
            }
        }
        writer.flush(0).unwrap();
    }

    /// A session that goes on after `from`, without an end.
    fn session(&self, began_ms: i64, from: u64, to: u64) {
        self.records(session(began_ms, from, to));
    }

    fn items(&self) -> Vec<HistoryItem> {
        let (mut items, history) = (Vec::new(), TrainingHistory::read(&self.store).unwrap());
        assert!(history.problems.is_empty(), "{:?}", history.problems);
        let take = &mut |item| {
            items.push(item);
            Ok(())
        };
        history.each(take, &mut |problem| panic!("{problem}")).unwrap();
        items
    }

    fn curve(&self) -> Vec<u64> {
        steps(&self.items(), false)
    }

    fn packed_for_a_bundle(&self) -> PathBuf {
        let path = self.folder.path().join("history.bin");
        let mut bytes = Vec::new();
        assert!(travel::write_file(&self.store, &mut bytes).unwrap().is_empty());
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn take(&self, from: &Machine) -> TakenHistory {
        let lock = self.store.lock("a test").unwrap();
        travel::take_file(&from.packed_for_a_bundle(), (&self.store, &lock), 1).unwrap()
    }
}

fn steps(items: &[HistoryItem], is_abandoned: bool) -> Vec<u64> {
    let of_kind = items.iter().filter(|item| item.is_abandoned == is_abandoned);
    let step = |item: &HistoryItem| match &item.record {
        HistoryRecord::Step(row) => Some(row.step),
        HistoryRecord::Event(_) => None,
    };
    of_kind.filter_map(step).collect()
}

fn event(at_ms: i64, event: HistoryEvent) -> HistoryRecord {
    HistoryRecord::Event(TimedEvent { at_ms, event })
}

fn session(began_ms: i64, from: u64, to: u64) -> impl Iterator<Item = HistoryRecord> {
    let step = move |step: u64| {
        HistoryRecord::Step(StepRow {
            step,
            at_ms: began_ms + step as i64,
            loss: 1.0 / step as f32,
            learning_rate: 1e-3,
            grad_norm: None,
            micros: 500,
            tokens: 64,
        })
    };
    let began = HistoryEvent::SessionStarted { run: "run".into(), total_steps: 100, version: "1".into() };
    let resumed = HistoryEvent::Resumed { step: from, snapshot: None };
    [event(began_ms, began), event(began_ms + 1, resumed)].into_iter().chain((from + 1..=to).map(step))
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

#[test]
fn a_new_store_gets_the_whole_history_and_goes_on_with_it() {
    let (one, two) = (Machine::new(), Machine::new());
    // Of packed parts and one that grows.
    one.session(1000, 0, 150_000);
    one.session(2_000_000, 150_000, 150_100);
    let numbers = travel::part_numbers(&one.store).unwrap();
    assert!(numbers.len() > 2, "{numbers:?}");
    assert_eq!(two.take(&one), TakenHistory { steps: 150_100, ..TakenHistory::default() });
    assert_eq!(two.items(), one.items());
    two.session(3_000_000, 150_050, 150_200);
    assert_eq!(two.curve(), range(1, 150_200));
    assert_eq!(steps(&two.items(), true), range(150_051, 150_100));
}

#[test]
fn what_is_known_is_not_written_again_and_an_older_history_replaces_nothing() {
    let (one, two) = (Machine::new(), Machine::new());
    one.session(1000, 0, 20);
    two.take(&one);
    two.session(2000, 20, 30);
    let before = two.items();
    assert_eq!(two.take(&one).steps, 0);
    assert_eq!(two.items(), before);
    // The same session has gone on meanwhile.
    let three = Machine::new();
    three.session(1000, 0, 12);
    assert_eq!(three.take(&one).steps, 8);
    assert_eq!(three.items(), one.items());
}

#[test]
fn what_two_machines_did_apart_is_one_curve_with_the_lost_branch_marked() {
    let (one, two) = (Machine::new(), Machine::new());
    one.session(1000, 0, 20);
    two.take(&one);
    // The first one trains on, is cut off, and the second one goes on from its snapshot after step 20.
    one.records(session(1000, 0, 33).skip(22));
    assert_eq!(one.curve(), range(1, 33));
    two.session(5000, 20, 60);
    // And the job comes back.
    assert_eq!(one.take(&two), TakenHistory { steps: 40, ..TakenHistory::default() });
    assert_eq!((one.curve(), steps(&one.items(), true)), (range(1, 60), range(21, 33)));
    one.session(9000, 60, 70);
    // The second one hears of the third session, and of the first one's lost steps not in the middle of its own.
    assert_eq!(two.take(&one).steps, 10);
    assert_eq!(two.curve(), range(1, 70));
    assert!([&one, &two].iter().all(|machine| machine.take(&two).steps == 0));
}

#[test]
fn a_torn_end_is_told_of_once_and_does_not_shift_what_is_known() {
    let (one, two) = (Machine::new(), Machine::new());
    one.session(1000, 0, 20);
    two.take(&one);
    two.session(2000, 20, 30);
    let grows = one.store.path().join("history/00000000.growing");
    let mut bytes = std::fs::read(&grows).unwrap();
    bytes.extend([7; 5]);
    std::fs::write(&grows, &bytes).unwrap();
    // What is torn does not travel.
    let three = Machine::new();
    assert_eq!(three.take(&one).steps, 20);
    for _ in 0..2 {
        one.take(&two);
        assert_eq!(one.curve(), range(1, 30));
        let is_torn = |event: &TimedEvent| event.event == HistoryEvent::Torn { bytes: 5 };
        let torn = |item: &&HistoryItem| matches!(&item.record, HistoryRecord::Event(event) if is_torn(event));
        assert_eq!(one.items().iter().filter(torn).count(), 1);
    }
}

#[test]
fn what_is_damaged_on_the_way_is_refused_or_told_of_and_no_wrong_step_is_taken() {
    let one = Machine::new();
    one.session(1000, 0, 66_000);
    let path = one.packed_for_a_bundle();
    let (whole, mut refused) = (std::fs::read(&path).unwrap(), 0);
    let right = one.items();
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let two = Machine::new();
        let lock = two.store.lock("a test").unwrap();
        refused += u32::from(travel::take_file(&path, (&two.store, &lock), 1).is_err());
        let items = two.items();
        assert_eq!(items, right[..items.len()]);
    }
    assert!(refused >= 60, "{refused}");
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let two = Machine::new();
    let lock = two.store.lock("a test").unwrap();
    let error = travel::take_file(&path, (&two.store, &lock), 1).unwrap_err().to_string();
    assert!(error.contains("history.bin") && error.contains("it ends within a part"), "{error}");
}

#[test]
fn a_part_that_would_become_far_more_than_a_part_is_not_taken() {
    let content = vec![0; 40 << 20];
    let frame = ckptd_history::frame::encode(ckptd_history::frame::BATCH, &content, 1).unwrap();
    let bytes = [ckptd_history::frame::FILE_HEAD.to_vec(), frame.clone(), frame].concat();
    let two = Machine::new();
    let lock = two.store.lock("a test").unwrap();
    let mut intake = HistoryIntake::begin(&two.store, &lock, 1).unwrap();
    intake.take(&travel::TravellingPart { is_packed: false, bytes }, &"elsewhere").unwrap();
    let taken = intake.finish();
    assert!(taken.steps == 0 && taken.problems[0].contains("more than a part can"), "{taken:?}");
    assert!(travel::part_numbers(&two.store).unwrap().is_empty());
}
