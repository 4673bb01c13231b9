//! The machine alone: a worker's life, its snapshots, and the end of a session.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;

use super::bench::*;
use super::events::{JobAction, JobEvent, SessionOutcome};
use super::machine::HELLO_TIMEOUT;
use crate::daemon::signals::DaemonSignal;
use crate::daemon::verifier::ReadBack;
use crate::session::clock::BootInstant;
use ckptd_core::protocol::{self, AgentCommand, WorkerEvent, WorkerFailure};

#[test]
fn a_worker_that_never_greets_is_killed_and_chosen_for_again() {
    let mut bench = Bench::new("");
    assert!(matches!(bench.on(JobEvent::Chosen(Ok(choice(0)))), [JobAction::Spawn]));
    bench.on(JobEvent::Started { pid: 7, ranks: 1 });
    assert!(is_kill(bench.wake()));
    assert_eq!(bench.elapsed(), HELLO_TIMEOUT);
    assert!(matches!(bench.on(exited(1)), [JobAction::Choose { .. }]));
}

#[test]
fn silence_counts_from_the_last_sign_of_life_of_any_kind() {
    let mut bench = Bench::training("[worker]\nhang_timeout = \"10s\"\n", 0);
    bench.pass(Duration::from_secs(9));
    bench.say(WorkerEvent::Alive { step: 0, micro_batch: 1 });
    bench.pass(Duration::from_secs(9));
    assert!(bench.on(JobEvent::Tick).is_empty());
    assert!(is_kill(bench.wake()));
    assert_eq!(bench.elapsed(), Duration::from_secs(19));
}

#[test]
fn an_agent_that_slept_itself_does_not_take_the_workers_silence_for_a_hang() {
    let mut bench = Bench::training("[worker]\nhang_timeout = \"10s\"\n", 0);
    bench.sleep(Duration::from_secs(3600));
    assert!(!is_kill(bench.on(JobEvent::Tick)));
    bench.say(step(1));
    assert!(is_kill({
        bench.pass(Duration::from_secs(10));
        bench.on(JobEvent::Tick)
    }));
}

#[test]
fn a_killed_worker_that_is_slow_to_go_is_waited_for_without_spinning() {
    let mut bench = Bench::training("[worker]\nhang_timeout = \"10s\"\n", 0);
    assert!(is_kill(bench.wake()));
    for _ in 0..3 {
        let before = bench.now.at;
        assert!(bench.wake().is_empty());
        assert!(bench.now.at - before >= Duration::from_secs(1));
    }
    assert!(matches!(bench.on(exited(1)), [JobAction::Choose { .. }]));
}

#[test]
fn a_worker_that_begins_elsewhere_than_told_is_replaced() {
    let mut bench = Bench::new("");
    bench.on(JobEvent::Chosen(Ok(choice(5))));
    bench.on(JobEvent::Started { pid: 7, ranks: 1 });
    assert!(matches!(bench.say(hello(protocol::VERSION)), [JobAction::Send(AgentCommand::Start(_))]));
    assert!(is_kill(bench.say(ready(0))));
}

#[test]
fn a_snapshot_whose_manifest_says_another_step_costs_the_worker_its_trust() {
    let mut bench = Bench::training("", 0);
    bench.say(step(1));
    assert!(matches!(bench.say(committed(1)), [JobAction::Verify { .. }]));
    let JobEvent::ReadBack { result, .. } = verified(2) else { unreachable!() };
    assert!(is_kill(bench.on(JobEvent::ReadBack { id: "step-1".into(), result })));
}

#[test]
fn snapshots_are_asked_for_at_the_interval_from_the_last_one_on() {
    let mut bench = Bench::training("[snapshot]\nevery = \"60s\"\n[worker]\nhang_timeout = \"1h\"\n", 0);
    for n in 1..=3 {
        assert!(matches!(bench.wake(), [JobAction::Send(AgentCommand::Snapshot { .. })]));
        assert_eq!(bench.elapsed(), Duration::from_secs(60 * n));
    }
    bench.pass(Duration::from_secs(30));
    bench.say(WorkerEvent::SnapshotStarted { step: 0, reason: "signal".into(), capture_ms: 0.1 });
    bench.wake();
    assert_eq!(bench.elapsed(), Duration::from_secs(60 * 3 + 30 + 60));
}

#[test]
fn the_last_snapshot_is_waited_for_until_it_is_read_back() {
    let mut bench = Bench::training("", 0);
    bench.say(step(1));
    assert!(matches!(
        bench.on(JobEvent::Signal(DaemonSignal::Terminate)),
        [JobAction::Send(AgentCommand::Stop { snapshot: true, .. })]
    ));
    bench.say(committed(1));
    bench.say(WorkerEvent::Done { step: 1, finished: false });
    assert!(bench.on(exited(0)).is_empty());
    assert!(matches!(bench.on(verified(1)), [JobAction::End(Ok(SessionOutcome::Resume))]));
}

#[test]
fn a_session_that_saved_nothing_of_what_it_trained_is_an_error() {
    let mut bench = Bench::training("", 0);
    bench.say(step(1));
    bench.on(JobEvent::Signal(DaemonSignal::Terminate));
    bench.pass(Duration::from_secs(2));
    assert!(matches!(bench.on(JobEvent::Signal(DaemonSignal::Terminate)), [JobAction::End(Err(_))]));
}

#[test]
fn a_signal_that_arrives_twice_at_once_is_one_request_to_stop() {
    let mut bench = Bench::training("", 0);
    bench.say(step(1));
    bench.on(JobEvent::Signal(DaemonSignal::Interrupt));
    assert!(bench.on(JobEvent::Signal(DaemonSignal::Terminate)).is_empty());
}

/// What may happen next; a bench makes sense of it.
#[derive(Clone, Debug)]
enum Happening {
    Wake,
    Pass(u64),
    Step,
    Commit,
    Judge(u8),
    Fail,
    Garbage,
    WorkerExit(i32),
    Signal(u8),
    Done(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => Just(Happening::Wake),
        2 => (0u64..100).prop_map(Happening::Pass),
        6 => Just(Happening::Step),
        4 => Just(Happening::Commit),
        4 => (0u8..4).prop_map(Happening::Judge),
        1 => Just(Happening::Fail),
        1 => Just(Happening::Garbage),
        1 => (0i32..2).prop_map(Happening::WorkerExit),
        1 => (0u8..8).prop_map(Happening::Signal),
        1 => any::<bool>().prop_map(Happening::Done),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// In any order of events: one worker at a time, none before a choice, an end by the time that was
    /// given, success only with the last step verified.
    #[test]
    fn no_order_of_events_breaks_the_invariants(happenings in prop::collection::vec(happening(), 1..120)) {
        let mut bench = Bench::new("[session]\ngrace = \"10s\"\n[worker]\nhang_timeout = \"60s\"\n");
        let (mut alive, mut choosing, mut at, mut saved) = (false, true, 0u64, 0u64);
        let mut unverified: Vec<u64> = Vec::new();
        let mut stop_by: Option<BootInstant> = None;
        for happening in happenings {
            if choosing {
                choosing = false;
                bench.on(JobEvent::Chosen(Ok(choice(saved))));
                if bench.actions.iter().any(|action| matches!(action, JobAction::Spawn)) {
                    prop_assert!(!alive);
                    alive = true;
                    at = saved;
                    bench.greet(saved);
                }
            }
            match happening {
                Happening::Wake if bench.job.wake_at(bench.now).is_some() => drop(bench.wake()),
                Happening::Pass(seconds) => {
                    bench.pass(Duration::from_secs(seconds));
                    bench.on(JobEvent::Tick);
                }
                Happening::Step if alive && at < 20 => {
                    at += 1;
                    bench.say(step(at));
                }
                Happening::Commit if alive => {
                    bench.say(committed(at));
                    if matches!(bench.actions[..], [JobAction::Verify { .. }, ..]) {
                        unverified.push(at);
                    }
                }
                Happening::Judge(n) => {
                    let Some(step) = unverified.pop() else { continue };
                    let event = match n {
                        0 => JobEvent::ReadBack { id: format!("step-{step}").into(), result: ReadBack::Gone },
                        1 => {
                            let result = ReadBack::Quarantined { reason: "flipped".into() };
                            JobEvent::ReadBack { id: format!("step-{step}").into(), result }
                        }
                        _ => {
                            saved = saved.max(step);
                            verified(step)
                        }
                    };
                    bench.on(event);
                }
                Happening::Fail if alive => {
                    bench.say(WorkerEvent::Failed { failure: WorkerFailure::Other, what: "no reason".into() });
                }
                Happening::Garbage if alive => drop(bench.on(JobEvent::ProtocolError("hm".into()))),
                Happening::WorkerExit(code) if alive => {
                    alive = false;
                    bench.on(exited(code));
                }
                Happening::Signal(n) => {
                    use DaemonSignal::{Finish, Hangup, Interrupt, Snapshot};
                    let signal = [Interrupt, Finish, Snapshot, Hangup][usize::from(n) % 4];
                    if matches!(signal, Interrupt | Finish) && stop_by.is_none() {
                        stop_by = Some(bench.now.at + Duration::from_secs(10));
                    }
                    bench.on(JobEvent::Signal(signal));
                }
                Happening::Done(finished) if alive && finished == (at == 20) => {
                    bench.say(WorkerEvent::Done { step: at, finished });
                }
                _ => continue,
            }
            for action in std::mem::take(&mut bench.actions) {
                match action {
                    JobAction::Choose { .. } => {
                        prop_assert!(!alive, "a second worker");
                        prop_assert!(stop_by.is_none(), "a restart after a stop");
                        choosing = true;
                    }
                    JobAction::Spawn => prop_assert!(false, "a worker that was not chosen for"),
                    JobAction::Send(_) => prop_assert!(alive, "a command without a worker"),
                    JobAction::End(outcome) => {
                        if matches!(outcome, Ok(SessionOutcome::Finished)) {
                            prop_assert_eq!(saved, 20);
                        }
                        return Ok(());
                    }
                    JobAction::Reload => {}
                    JobAction::Record(_) | JobAction::RecordReplication(_) | JobAction::Mark(_) => {}
                    JobAction::Remember(_) | JobAction::SetLogLevel(_) | JobAction::Keep(_) | JobAction::Tell(_) => {}
                    JobAction::Kill | JobAction::SetAside { .. } => {}
                    JobAction::Verify { .. } | JobAction::Replicate { .. } => {}
                    JobAction::LookAtStore | JobAction::AskSources | JobAction::StandStill => {}
                }
            }
            if let Some(by) = stop_by {
                prop_assert!(bench.job.wake_at(bench.now).is_some_and(|at| at <= by), "it sleeps past its end");
            }
        }
    }
}
