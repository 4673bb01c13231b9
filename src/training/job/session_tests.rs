//! What ends a session, and what is remembered of it: the machine alone, its clocks turned by the test.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::bench::*;
use super::events::{JobAction, JobEvent, SessionOutcome};
use crate::daemon::signals::DaemonSignal;
use crate::session::notice::{NoticeKind, SessionNotice};
use crate::training::progress::KeptSnapshot;
use ckptd_core::protocol::{AgentCommand, WorkerEvent};
use ckptd_remote::job::replicator::ReplicaNews;

fn notice(kind: NoticeKind) -> JobEvent {
    JobEvent::Notice(SessionNotice { source: "Slurm".into(), kind })
}

fn is_stop(actions: &[JobAction]) -> bool {
    matches!(actions, [JobAction::Send(AgentCommand::Stop { snapshot: true, .. })])
}

/// Passes ten minutes of steps, and turns the clock on the wall by `hours` meanwhile.
fn ten_minutes(bench: &mut Bench, hours: i64) -> Option<Duration> {
    for n in 1..=600 {
        if n == 100 {
            bench.now.wall = bench.now.wall.checked_add(jiff::SignedDuration::from_hours(hours)).unwrap();
        }
        bench.pass(Duration::from_secs(1));
        if is_stop(bench.on(JobEvent::Tick)) {
            return Some(bench.elapsed());
        }
    }
    None
}

#[test]
fn a_wall_clock_that_jumps_by_an_hour_neither_ends_nor_prolongs_a_budget() {
    let budget = "[session]\nbudget = \"5m\"\n[worker]\nhang_timeout = \"1h\"\n[snapshot]\nevery = \"1h\"\n";
    let straight = ten_minutes(&mut Bench::training(budget, 0), 0);
    assert!(straight.unwrap() < Duration::from_secs(300));
    for hours in [-1, 1] {
        assert_eq!(ten_minutes(&mut Bench::training(budget, 0), hours), straight);
        let none = "[worker]\nhang_timeout = \"1h\"\n[snapshot]\nevery = \"2h\"\n";
        assert_eq!(ten_minutes(&mut Bench::training(none, 0), hours), None);
    }
}

#[test]
fn a_deadline_is_a_time_of_day_and_stays_one_when_the_clock_is_set() {
    let mut bench = Bench::training("[worker]\nhang_timeout = \"1d\"\n[snapshot]\nevery = \"1d\"\n", 0);
    let deadline = bench.now.wall.checked_add(jiff::SignedDuration::from_hours(2)).unwrap();
    let mut config = bench.job.config().clone();
    config.session.deadline = Some(ckptd_core::text::TextValue(deadline));
    bench.on(JobEvent::Config(Ok(Box::new(config))));
    let left = |bench: &Bench| bench.job.report(bench.now).session.seconds_left.unwrap();
    assert_eq!(left(&bench), 7200.0);
    bench.now.wall = bench.now.wall.checked_add(jiff::SignedDuration::from_hours(1)).unwrap();
    assert_eq!(left(&bench), 3600.0);
    bench.pass(Duration::from_secs(3599));
    assert!(is_stop(bench.on(JobEvent::Tick)));
}

#[test]
fn the_earliest_notice_ends_the_session_unless_it_is_withdrawn() {
    let mut bench = Bench::training("[worker]\nhang_timeout = \"1h\"\n[snapshot]\nevery = \"1h\"\n", 0);
    let ends = bench.now.at + Duration::from_secs(600);
    bench.on(notice(NoticeKind::EndsAt(ends)));
    assert_eq!(bench.job.report(bench.now).session.source.as_deref(), Some("Slurm ends the session"));
    bench.on(notice(NoticeKind::Withdrawn));
    assert_eq!(bench.job.report(bench.now).session.deadline, None);
    bench.on(notice(NoticeKind::EndsAt(ends)));
    while !is_stop(bench.wake()) {
        bench.say(step(1));
        assert!(bench.now.at < ends, "it slept past its end");
    }
    bench.say(committed(1));
    bench.say(WorkerEvent::Done { step: 1, finished: false });
    bench.on(exited(0));
    assert!(matches!(bench.on(verified(1)), [JobAction::End(Ok(SessionOutcome::Resume))]));
    assert!(bench.now.at < ends);
}

#[test]
fn a_notice_of_risk_takes_a_snapshot_and_one_to_finish_ends_the_session() {
    let mut bench = Bench::training("", 0);
    bench.say(step(1));
    assert!(matches!(bench.on(notice(NoticeKind::Snapshot)), [JobAction::Send(AgentCommand::Snapshot { .. })]));
    assert!(is_stop(bench.on(notice(NoticeKind::Finish))));
}

#[test]
fn a_stop_says_how_much_time_is_left_of_a_deadline_within_the_grace() {
    let mut bench = Bench::training("[session]\ngrace = \"30s\"\n", 0);
    bench.on(notice(NoticeKind::EndsAt(bench.now.at + Duration::from_secs(50))));
    bench.pass(Duration::from_secs(40));
    let actions = bench.on(JobEvent::Signal(DaemonSignal::Terminate));
    let [JobAction::Send(AgentCommand::Stop { within_ms: Some(within_ms), .. })] = actions else {
        panic!("{actions:?}")
    };
    assert!((9_000..10_000).contains(within_ms), "{within_ms}");
}

/// A snapshot after `step` has got to the job's remote.
fn replicated(step: u64, took: Duration) -> JobEvent {
    let marker = serde_json::json!({
        "version": 1, "nonce": "n", "run_id": "run", "epoch": 1, "seq": step, "step": step, "root": "root",
        "file_hash": "ab".repeat(32), "bytes": 4, "raw_bytes": 4, "created_at": "2026-01-01T00:00:00Z",
        "healthy": true, "val_loss": null, "checked": "whole",
    });
    let marker = Box::new(serde_json::from_value(marker).unwrap());
    JobEvent::Remote(ReplicaNews::Committed { marker, took })
}

#[test]
fn the_last_snapshot_begins_so_early_that_its_upload_fits_too() {
    let stops_after = |remote: &str, took: u64| {
        let session = "[session]\nbudget = \"5m\"\n[worker]\nhang_timeout = \"1h\"\n[snapshot]\nevery = \"1h\"\n";
        let mut bench = Bench::training(&format!("{session}{remote}"), 0);
        bench.say(step(1));
        bench.say(committed(1));
        bench.drive(verified(1));
        bench.on(replicated(1, Duration::from_secs(took)));
        ten_minutes(&mut bench, 0).unwrap().as_secs()
    };
    let remote = "[remote]\nurl = \"s3://bucket/job\"\n";
    let without = stops_after("", 40);
    // 40 s, by half more since they were measured once, times the margin.
    assert_eq!(without - stops_after(remote, 40), 90);
    // Never more than half of the session.
    assert_eq!(stops_after(remote, 4000), 150);
}

#[test]
fn what_a_final_snapshot_takes_is_learned_for_the_next_session() {
    let mut bench = Bench::training("", 0);
    bench.say(step(1));
    bench.on(JobEvent::Signal(DaemonSignal::Terminate));
    bench.pass(Duration::from_millis(700));
    bench.say(committed(1));
    bench.say(WorkerEvent::Done { step: 1, finished: false });
    bench.on(exited(0));
    bench.pass(Duration::from_millis(100));
    let actions = bench.drive(verified(1));
    let records = actions.iter().find_map(|action| match action {
        JobAction::Record(records) => Some(records),
        _ => None,
    });
    let records = records.unwrap();
    assert_eq!(records.costs.finals_ms.median(), Some(Duration::from_millis(800)));
    let session = records.sessions.last().unwrap();
    assert_eq!((session.cause.as_str(), session.saved_step, session.lost_steps), ("SIGTERM", 1, 0));
}

fn records_of(actions: &[JobAction]) -> Box<crate::session::records::SessionRecords> {
    let records = |action: &'_ JobAction| match action {
        JobAction::Record(records) => Some(records.clone()),
        _ => None,
    };
    actions.iter().rev().find_map(records).unwrap()
}

#[test]
fn a_session_ends_with_what_the_store_holds_then_and_not_with_what_was_read_back_before() {
    for (kept, expected) in [
        (Ok(None), "nothing of it is left: step 5 was saved, and it is not in the store any more"),
        (Err(ckptd_core::Error::NotFound("the store is gone".into())), "step 5 was saved, and the store is gone"),
    ] {
        let mut bench = Bench::training("", 0);
        bench.say(step(5));
        bench.say(committed(5));
        bench.on(verified(5));
        bench.on(JobEvent::Signal(DaemonSignal::Terminate));
        bench.say(WorkerEvent::Done { step: 5, finished: false });
        assert!(matches!(bench.job.on(exited(0), bench.now)[..], [JobAction::LookAtStore]));
        let actions = bench.job.on(JobEvent::Kept(kept), bench.now);
        let Some(JobAction::End(Err(error))) = actions.last() else { panic!("{actions:?}") };
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(records_of(&actions).sessions.last().unwrap().saved_step, 0);
    }
}

#[test]
fn a_training_whose_last_snapshot_has_gone_is_not_finished() {
    let mut bench = Bench::training("", 10);
    bench.say(step(20));
    bench.say(committed(20));
    bench.on(verified(20));
    bench.say(WorkerEvent::Done { step: 20, finished: true });
    bench.job.on(exited(0), bench.now);
    let older = KeptSnapshot { id: "step-10".into(), step: 10, is_verified: true, created_at: bench.now.wall };
    let actions = bench.job.on(JobEvent::Kept(Ok(Some(older))), bench.now);
    assert!(matches!(actions.last(), Some(JobAction::Choose { .. })), "{actions:?}");
}

#[test]
fn a_store_that_does_not_answer_does_not_hold_up_the_end() {
    let mut bench = Bench::training("", 0);
    bench.say(step(5));
    bench.say(committed(5));
    bench.on(verified(5));
    bench.on(JobEvent::Signal(DaemonSignal::Terminate));
    bench.say(WorkerEvent::Done { step: 5, finished: false });
    bench.job.on(exited(0), bench.now);
    assert!(matches!(bench.wake(), [JobAction::End(Ok(SessionOutcome::Resume))]));
    assert!(bench.elapsed() < Duration::from_secs(31), "{:?}", bench.elapsed());
}

#[test]
fn signals_are_counted_by_kind_and_slurm_sends_sigterm_twice_by_itself() {
    use DaemonSignal::{Finish, Interrupt, Terminate};
    // What comes when, in milliseconds; whether a second one of its kind ends the session at once.
    type Signals = [(u64, DaemonSignal)];
    let cases: [(&Signals, bool, bool); 8] = [
        (&[(0, Finish), (600, Terminate)], false, false),
        (&[(0, Finish), (5000, Terminate)], false, false),
        (&[(0, Terminate), (500, Terminate)], false, false),
        (&[(0, Terminate), (1000, Terminate)], false, true),
        (&[(0, Terminate), (5000, Terminate)], true, false),
        (&[(0, Terminate), (1500, Interrupt)], false, false),
        (&[(0, Terminate), (1500, Interrupt), (2600, Interrupt)], true, true),
        (&[(0, Finish), (2000, Finish)], false, false),
    ];
    for (signals, under_slurm, ends) in cases {
        let mut bench = Bench::training("", 5);
        bench.job.surroundings.slurm = under_slurm;
        bench.say(step(6));
        let (mut at, mut ended) = (0, false);
        for &(ms, signal) in signals {
            bench.pass(Duration::from_millis(ms - at));
            at = ms;
            ended = bench.on(JobEvent::Signal(signal)).iter().any(|action| matches!(action, JobAction::End(_)));
        }
        assert_eq!(ended, ends, "{signals:?}");
    }
}

#[test]
fn after_a_sleep_past_the_end_the_source_is_asked_and_a_later_end_counts() {
    let mut bench = Bench::training("[worker]\nhang_timeout = \"1h\"\n[snapshot]\nevery = \"1h\"\n", 0);
    bench.say(step(1));
    bench.on(notice(NoticeKind::EndsAt(bench.now.at + Duration::from_secs(60))));
    bench.sleep(Duration::from_secs(90));
    let asked = |actions: &[JobAction]| actions.iter().any(|action| matches!(action, JobAction::AskSources));
    let saves = |action: &JobAction| matches!(action, JobAction::Send(AgentCommand::Snapshot { .. }));
    let actions = bench.on(JobEvent::Tick);
    assert!(asked(actions) && actions.iter().any(saves) && !actions.iter().any(|a| is_stop(std::slice::from_ref(a))));
    // It is waited for, without spinning.
    assert!(bench.job.wake_at(bench.now).unwrap() > bench.now.at);
    bench.on(notice(NoticeKind::EndsAt(bench.now.at + Duration::from_secs(60))));
    bench.pass(Duration::from_secs(10));
    assert!(!is_stop(bench.on(JobEvent::Tick)));
    while !is_stop(bench.wake()) {
        bench.say(step(2));
    }
}

#[test]
fn an_end_that_stays_past_leaves_the_last_snapshot_its_grace() {
    let grace = "[session]\ngrace = \"30s\"\n[worker]\nhang_timeout = \"1h\"\n[snapshot]\nevery = \"1h\"\n";
    // The source says the same again, or says nothing at all.
    for answers in [true, false] {
        let mut bench = Bench::training(grace, 0);
        bench.say(step(1));
        let end = bench.now.at + Duration::from_secs(60);
        bench.on(notice(NoticeKind::EndsAt(end)));
        bench.sleep(Duration::from_secs(90));
        bench.on(JobEvent::Tick);
        let actions = if answers { bench.on(notice(NoticeKind::EndsAt(end))) } else { bench.wake() };
        let [JobAction::Send(AgentCommand::Stop { within_ms: Some(within), .. })] = actions else {
            panic!("{actions:?}")
        };
        assert!((29_000..=30_000).contains(within), "{within}");
    }
    // A budget is nobody's to be asked, and one that is shortened below what has passed is as much past.
    let mut asleep = Bench::training(grace, 0);
    let mut config = asleep.job.config().clone();
    config.session.budget = Some(ckptd_core::text::TextValue(Duration::from_secs(40)));
    asleep.say(step(1));
    asleep.on(JobEvent::Config(Ok(Box::new(config.clone()))));
    let mut shortened = Bench::training(grace, 0);
    shortened.pass(Duration::from_secs(90));
    shortened.say(step(1));
    asleep.sleep(Duration::from_secs(90));
    for (bench, event) in [(&mut asleep, JobEvent::Tick), (&mut shortened, JobEvent::Config(Ok(Box::new(config))))] {
        let actions = bench.on(event);
        let within = actions.iter().find_map(|action| match action {
            JobAction::Send(AgentCommand::Stop { within_ms, .. }) => *within_ms,
            _ => None,
        });
        assert!(within.is_some_and(|within| (29_000..=30_000).contains(&within)), "{actions:?}");
    }
}

#[test]
fn a_sleep_in_the_middle_of_the_last_snapshot_does_not_end_it() {
    let mut bench = Bench::training("[session]\ngrace = \"10s\"\n", 0);
    bench.say(step(1));
    bench.on(JobEvent::Signal(DaemonSignal::Terminate));
    bench.sleep(Duration::from_secs(60));
    assert!(!bench.on(JobEvent::Tick).iter().any(|action| matches!(action, JobAction::End(_))));
    bench.say(committed(1));
    bench.on(verified(1));
    bench.say(WorkerEvent::Done { step: 1, finished: false });
    assert!(matches!(bench.on(exited(0)), [JobAction::End(Ok(SessionOutcome::Resume))]));
}

#[test]
fn only_a_budget_says_that_the_next_session_may_begin_at_once() {
    let over = |bench: &mut Bench| {
        bench.say(committed(1));
        bench.say(WorkerEvent::Done { step: 1, finished: false });
        bench.on(exited(0));
        match bench.on(verified(1)) {
            [JobAction::End(Ok(outcome))] => *outcome,
            other => panic!("{other:?}"),
        }
    };
    let budget = "[session]\nbudget = \"60s\"\n[worker]\nhang_timeout = \"1h\"\n[snapshot]\nevery = \"1h\"\n";
    let begin = |step_made: bool| {
        let mut bench = Bench::training(budget, 0);
        if step_made {
            bench.say(step(1));
        }
        bench
    };
    let mut by_budget = begin(true);
    while !is_stop(by_budget.wake()) {}
    assert_eq!(over(&mut by_budget), SessionOutcome::BudgetOver);
    let mut by_signal = begin(true);
    by_signal.on(JobEvent::Signal(DaemonSignal::Interrupt));
    assert_eq!(over(&mut by_signal), SessionOutcome::Resume);
    let mut both = begin(true);
    while !is_stop(both.wake()) {}
    both.on(JobEvent::Signal(DaemonSignal::Terminate));
    assert_eq!(over(&mut both), SessionOutcome::Resume);
    let mut by_slurm = begin(true);
    by_slurm.on(notice(NoticeKind::EndsAt(by_slurm.now.at + Duration::from_secs(20))));
    while !is_stop(by_slurm.wake()) {}
    assert_eq!(over(&mut by_slurm), SessionOutcome::Resume);
}
