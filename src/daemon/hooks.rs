//! The hooks: one thread that runs the user's programs, one after the other, each with a JSON object on its stdin.
//!
//! Invariant: nobody waits for a program but the end of a session, in the time that is left then. None is started while
//! the last snapshot of a session is on its way. No program takes the time of the word on the session.
//! A program that runs for too long is ended, with all that it started.
//! What fails is told, and changes nothing. Deliberately not here: when a program is told (training/job).

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tracing::{debug, warn};

use ckptd_core::config::HookMoment;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::lower_priority;

/// Programs that wait to be run; of more the oldest are dropped, and the last words of a session never.
const QUEUE: usize = 16;
const LOOK: Duration = Duration::from_millis(20);
/// What is told of a program's own complaint, in bytes.
const LONGEST_WORD: usize = 400;
/// Others have the processor first.
const NICE: i32 = 10;

/// A program that is to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct HookCall {
    pub moment: HookMoment,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What it is told.
    pub document: serde_json::Value,
}

/// A handle to the thread.
pub struct HookRunner {
    shared: Arc<HookQueue>,
    /// Closed by the thread's end.
    end: Receiver<()>,
}

#[derive(Default)]
struct HookQueue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    calls: VecDeque<HookCall>,
    /// The last snapshot of the session is on its way.
    is_held: bool,
    /// No more will come.
    end: Option<EndOfSession>,
}

/// When programs have to be over, once no more will come.
#[derive(Clone, Copy)]
struct EndOfSession {
    /// Any of them.
    all: Instant,
    /// One that runs while the word on the session waits for it.
    others: Instant,
}

impl HookQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next program; `None`: no more will come.
    fn next(&self) -> Option<HookCall> {
        let mut state = self.lock();
        loop {
            if state.end.is_some_and(|end| Instant::now() >= end.all) {
                return None;
            }
            if !state.is_held || state.end.is_some() {
                // What says how the session ended goes before what happened in it.
                let last = state.calls.iter().position(|call| call.moment.is_last());
                let next = last.and_then(|at| state.calls.remove(at)).or_else(|| state.calls.pop_front());
                if next.is_some() || state.end.is_some() {
                    return next;
                }
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// When the session's end wants the program that runs to be over; `None`: it has not come.
    fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let last_waits = state.calls.iter().any(|call| call.moment.is_last());
        state.end.map(|end| if last_waits { end.others } else { end.all })
    }
}

impl HookRunner {
    /// Starts the thread; each program may run for `timeout`.
    pub fn start(timeout: Duration) -> Result<HookRunner> {
        let (ends, end) = channel();
        let shared = Arc::new(HookQueue::default());
        let there = shared.clone();
        std::thread::Builder::new()
            .name("hooks".into())
            .spawn(move || {
                // What it starts inherits this.
                lower_priority(NICE);
                while let Some(call) = there.next() {
                    tell(&call, timeout, &there);
                }
                drop(ends);
            })
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(HookRunner { shared, end })
    }

    /// Has a program run soon.
    pub fn give(&self, call: HookCall) {
        let mut state = self.shared.lock();
        state.calls.push_back(call);
        if state.calls.len() > QUEUE {
            let dropped = state.calls.iter().position(|call| !call.moment.is_last());
            let dropped = dropped.and_then(|at| state.calls.remove(at));
            debug!("a hook was left out, since those before it take so long: {dropped:?}");
        }
        self.shared.wake.notify_all();
    }

    /// Starts no program for now, or again.
    pub fn hold(&self, is_held: bool) {
        let mut state = self.shared.lock();
        if state.is_held != is_held {
            state.is_held = is_held;
            self.shared.wake.notify_all();
        }
    }

    /// Runs what is left, for at most `limit`. A program that runs already has half of it, where the word on the
    /// session waits.
    pub fn finish(&self, limit: Duration) {
        let now = Instant::now();
        self.shared.lock().end = Some(EndOfSession { all: now + limit, others: now + limit / 2 });
        self.shared.wake.notify_all();
        // A program that is ended takes a moment.
        let _ = self.end.recv_timeout(limit + LOOK * 5);
    }
}

fn tell(call: &HookCall, timeout: Duration, queue: &HookQueue) {
    let began = Instant::now();
    match run(call, timeout, queue) {
        Ok(()) => debug!("told {} on {} in {:?}", call.command[0], call.moment, began.elapsed()),
        Err(why) => warn!("[hooks] {}: {} {why}; the job goes on", call.moment, call.command[0]),
    }
}

/// Why it failed, as a clause.
fn run(call: &HookCall, timeout: Duration, queue: &HookQueue) -> std::result::Result<(), String> {
    let (program, arguments) = call.command.split_first().ok_or("names no program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|e| format!("cannot be started: {e}"))?;
    let stdin = child.stdin.take();
    let words = last_words(&mut child);
    if let Some(mut stdin) = stdin {
        // It fits into a pipe, and a program need not read it.
        let _ = stdin.write_all(format!("{}\n", call.document).as_bytes());
    }
    let ended = wait(&mut child, Instant::now() + timeout, || queue.deadline());
    // What it has started ends with it, and whoever still holds its stderr.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let Some(status) = ended else {
        let _ = child.wait();
        return Err("took too long, and was ended".into());
    };
    if status.success() {
        return Ok(());
    }
    let words = words.recv_timeout(LOOK * 10).unwrap_or_default();
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
    };
    Err(if words.is_empty() { how } else { format!("{how}: {words}") })
}

/// How it ended; `None`: it is not over by `longest`, or `sooner`, which may come meanwhile.
fn wait(child: &mut Child, longest: Instant, sooner: impl Fn() -> Option<Instant>) -> Option<std::process::ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= sooner().map_or(longest, |sooner| sooner.min(longest)) {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

/// The end of what it says on stderr, once it is over.
fn last_words(child: &mut Child) -> Receiver<String> {
    let (said, words) = channel();
    let Some(mut stderr) = child.stderr.take() else { return words };
    let read = move || {
        let (mut kept, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = stderr.read(&mut bytes) {
            kept.extend_from_slice(&bytes[..count]);
            let surplus = kept.len().saturating_sub(LONGEST_WORD);
            kept.drain(..surplus);
        }
        let text = String::from_utf8_lossy(&kept);
        let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = said.send(text);
    };
    // Without the thread its words are not known.
    let _ = std::thread::Builder::new().name("hook's words".into()).spawn(read);
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(moment: HookMoment, script: String) -> HookCall {
        HookCall { moment, command: vec!["sh".into(), "-c".into(), script], document: json!({}) }
    }

    /// However long the one before it may run, and would.
    #[test]
    fn the_word_on_the_session_has_its_time_while_another_program_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let (hangs, told) = (folder.path().join("hangs"), folder.path().join("told"));
        let runner = HookRunner::start(Duration::from_secs(60)).unwrap();
        runner.give(call(HookMoment::Verified, format!("touch {}; sleep 60", hangs.display())));
        while !hangs.exists() {
            std::thread::sleep(LOOK);
        }
        runner.give(call(HookMoment::SessionOver, format!("touch {}", told.display())));
        runner.finish(Duration::from_secs(8));
        assert!(told.exists());
    }
}
