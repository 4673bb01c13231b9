//! What ends a session, and what is remembered of it: the machine alone, its clocks turned by the test.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::events::{JobAction, JobEvent, SessionOutcome};
use super::tests::*;
use crate::daemon::signals::DaemonSignal;
use crate::session::notice::{NoticeKind, SessionNotice};
use ckptd_core::protocol::{AgentCommand, WorkerEvent};

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
    let actions = bench.job.on(verified(1), bench.now);
    let records = actions.iter().find_map(|action| match action {
        JobAction::Record(records) => Some(records),
        _ => None,
    });
    let records = records.unwrap();
    assert_eq!(records.costs.finals_ms.median(), Some(Duration::from_millis(800)));
    let session = records.sessions.last().unwrap();
    assert_eq!((session.cause.as_str(), session.saved_step, session.lost_steps), ("SIGTERM", 1, 0));
}
