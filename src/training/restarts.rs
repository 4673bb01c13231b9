//! When a worker that failed is started again, and when ckptd gives up: a pure policy.
//!
//! Invariant: a training that cannot go on ends with its reason, and one that can is never given up. Three failures in
//! a row at the same step are the step's own fault; so are `max_restarts` in a row that reached no new step. A kill
//! from outside says nothing about the step and counts only towards the latter.
//! Deliberately not here: starting anything, and what is said about it.

use std::fmt;
use std::time::Duration;

use rustix::process::Signal;

/// Failures in a row at the same step after which it is not tried again.
const SAME_STEP: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Why a worker is gone, or had to go.
#[derive(Clone, Debug, PartialEq)]
pub enum FailureCause {
    /// It ended by itself with this exit code, and without a last message.
    Exited(i32),
    /// A signal ended it that ckptd did not send.
    Killed(i32),
    /// The kernel killed it because memory ran out; what to do.
    OutOfMemory(&'static str),
    /// It said nothing for this long.
    Hung(Duration),
    /// It said something that is no message.
    ProtocolError(String),
    /// It said that it cannot go on.
    Failed(String),
    /// Its last snapshot, after the last step, is not there or is not what was written.
    LastSnapshot(String),
}

impl FailureCause {
    /// Whether the step may be at fault: a kill from outside proves nothing about it.
    fn blames_step(&self) -> bool {
        !matches!(self, FailureCause::Killed(signal) if is_outside(*signal))
    }
}

/// SIGHUP, SIGINT, SIGKILL and SIGTERM come from outside; SIGSEGV, SIGABRT and their like from within.
fn is_outside(signal: i32) -> bool {
    [Signal::HUP, Signal::INT, Signal::KILL, Signal::TERM].iter().any(|outside| outside.as_raw() == signal)
}

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureCause::Exited(code) => write!(f, "it exited with code {code}"),
            FailureCause::Killed(signal) => write!(f, "it was killed by {}", signal_name(*signal)),
            FailureCause::OutOfMemory(advice) => write!(f, "the kernel killed it for lack of memory; {advice}"),
            FailureCause::Hung(silence) => write!(f, "it said nothing for {:.0} s", silence.as_secs_f64()),
            FailureCause::ProtocolError(what) => write!(f, "it does not speak the protocol: {what}"),
            FailureCause::Failed(what) => f.write_str(what),
            FailureCause::LastSnapshot(what) => write!(f, "its last snapshot failed: {what}"),
        }
    }
}

/// Signals that end a process from within or from outside.
const SIGNAL_NAMES: [(Signal, &str); 10] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::ILL, "SIGILL"),
    (Signal::ABORT, "SIGABRT"),
    (Signal::BUS, "SIGBUS"),
    (Signal::FPE, "SIGFPE"),
    (Signal::KILL, "SIGKILL"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::TERM, "SIGTERM"),
    (Signal::XFSZ, "SIGXFSZ"),
];

fn signal_name(signal: i32) -> String {
    let known = SIGNAL_NAMES.iter().find(|(known, _)| known.as_raw() == signal);
    known.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}

/// What follows from a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum RestartDecision {
    After(Duration),
    GiveUp(String),
}

/// The failures so far, as far as they matter.
#[derive(Debug, Default)]
pub struct RestartPolicy {
    /// Failures since a step was completed that no earlier worker had reached.
    in_a_row: u32,
    /// Where the last failure was: after this step, or before the worker was ready.
    place: Option<u64>,
    /// Failures in a row in that place that the step may be blamed for.
    same_place: u32,
    furthest: u64,
}

impl RestartPolicy {
    /// A step is completed.
    pub fn completed(&mut self, step: u64) {
        if step > self.furthest {
            self.furthest = step;
            self.in_a_row = 0;
        }
    }

    /// A worker failed for `cause` after `place` completed steps (`None`: before it was ready to train).
    pub fn failed(&mut self, cause: &FailureCause, place: Option<u64>, max_restarts: u32) -> RestartDecision {
        if cause.blames_step() {
            self.same_place = if self.same_place > 0 && self.place == place { self.same_place + 1 } else { 1 };
            self.place = place;
        }
        self.in_a_row += 1;
        if self.same_place >= SAME_STEP {
            let place = match place {
                _ if matches!(cause, FailureCause::LastSnapshot(_)) => "after the last step".to_owned(),
                Some(step) => format!("in step {}", step + 1),
                None => "before its first step".to_owned(),
            };
            return RestartDecision::GiveUp(format!("the worker failed {SAME_STEP} times in a row {place}: {cause}"));
        }
        if self.in_a_row > max_restarts {
            return RestartDecision::GiveUp(format!(
                "the worker was restarted {max_restarts} times in a row without a new step \
                 ([worker] max_restarts): {cause}"
            ));
        }
        RestartDecision::After(match self.in_a_row {
            1 => Duration::ZERO,
            n => FIRST_WAIT.saturating_mul(1 << (n - 2).min(16)).min(LONGEST_WAIT),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn crash() -> FailureCause {
        FailureCause::Exited(1)
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_next_ones_wait_longer() {
        let mut restarts = RestartPolicy::default();
        let waits: Vec<u128> = (0..12)
            .map(|_| match restarts.failed(&FailureCause::Killed(Signal::KILL.as_raw()), Some(5), 100) {
                RestartDecision::After(wait) => wait.as_millis(),
                RestartDecision::GiveUp(reason) => panic!("{reason}"),
            })
            .collect();
        assert_eq!(waits, [0, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000]);
        restarts.completed(6);
        assert_eq!(
            restarts.failed(&FailureCause::Killed(Signal::KILL.as_raw()), Some(6), 100),
            RestartDecision::After(Duration::ZERO)
        );
    }

    #[test]
    fn three_failures_in_a_row_in_the_same_step_end_the_run_with_step_and_cause() {
        let mut restarts = RestartPolicy::default();
        for place in [7, 7, 8, 7, 7] {
            assert!(matches!(restarts.failed(&crash(), Some(place), 10), RestartDecision::After(_)), "{place}");
        }
        let RestartDecision::GiveUp(reason) = restarts.failed(&crash(), Some(7), 10) else { panic!("it goes on") };
        assert_eq!(reason, "the worker failed 3 times in a row in step 8: it exited with code 1");
        let mut restarts = RestartPolicy::default();
        restarts.failed(&crash(), None, 10);
        restarts.failed(&crash(), None, 10);
        let RestartDecision::GiveUp(reason) = restarts.failed(&crash(), None, 10) else { panic!("it goes on") };
        assert!(reason.contains("before its first step"), "{reason}");
    }

    #[test]
    fn kills_from_outside_do_not_blame_the_step_and_out_of_memory_does() {
        let mut restarts = RestartPolicy::default();
        for _ in 0..10 {
            assert!(matches!(
                restarts.failed(&FailureCause::Killed(Signal::KILL.as_raw()), Some(3), 10),
                RestartDecision::After(_)
            ));
        }
        assert!(matches!(
            restarts.failed(&FailureCause::Killed(Signal::KILL.as_raw()), Some(3), 10),
            RestartDecision::GiveUp(_)
        ));
        let mut restarts = RestartPolicy::default();
        restarts.failed(&FailureCause::OutOfMemory("advice"), Some(3), 10);
        restarts.failed(&FailureCause::OutOfMemory("advice"), Some(3), 10);
        assert!(matches!(
            restarts.failed(&FailureCause::OutOfMemory("advice"), Some(3), 10),
            RestartDecision::GiveUp(_)
        ));
    }

    #[test]
    fn a_training_that_falls_back_further_than_it_gets_is_given_up() {
        let mut restarts = RestartPolicy::default();
        restarts.completed(100);
        for place in 0..4 {
            restarts.completed(90 + place);
            assert!(matches!(restarts.failed(&crash(), Some(90 + place), 4), RestartDecision::After(_)));
        }
        let RestartDecision::GiveUp(reason) = restarts.failed(&crash(), Some(95), 4) else { panic!("it goes on") };
        assert!(reason.contains("4 times in a row without a new step"), "{reason}");
    }
}
