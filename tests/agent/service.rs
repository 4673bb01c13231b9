//! What a service manager hears: up, how it goes, that it lives, that it ends.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{AgentJob, RunningAgent, signal, worker_of};

/// The service manager's end.
struct Manager {
    _folder: tempfile::TempDir,
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Manager { path: path.to_string_lossy().into_owned(), _folder: folder, socket }
    }

    fn start(&self, job: &AgentJob, watchdog: &str) -> RunningAgent {
        job.start_with(&[("NOTIFY_SOCKET", &self.path), ("WATCHDOG_USEC", watchdog)])
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    fn hear_until(&self, wanted: &str) -> String {
        loop {
            let message = self.hear();
            if message.contains(wanted) {
                return message;
            }
        }
    }

    /// Everything that was said and not heard yet.
    fn rest(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let mut rest = Vec::new();
        while let Ok(length) = self.socket.recv(&mut buffer) {
            rest.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        rest
    }
}

#[test]
fn the_manager_hears_that_it_is_up_how_it_goes_and_that_it_ends() {
    let (manager, job) = (Manager::new(), AgentJob::new(100_000, ""));
    let run = manager.start(&job, "4000000");
    manager.hear_until("READY=1");
    manager.hear_until("WATCHDOG=1");
    let status = manager.hear_until("saved and verified");
    assert!(status.starts_with("STATUS=step ") && status.contains("loss "), "{status}");
    run.signal(Signal::HUP);
    assert!(manager.hear_until("RELOADING=1").contains("MONOTONIC_USEC="));
    manager.hear_until("READY=1");
    run.signal(Signal::TERM);
    let stopping = manager.hear_until("STOPPING=1");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC="), "{stopping}");
    manager.hear_until("to be resumed");
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn a_training_that_is_finished_is_up_before_it_ends() {
    let job = AgentJob::new(10, "");
    assert_eq!(job.run().code, Some(0));
    let manager = Manager::new();
    let ended = manager.start(&job, "4000000").wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let said = manager.rest();
    assert!(said.iter().any(|message| message.contains("READY=1")), "{said:?}");
    assert!(said.last().unwrap().contains("STATUS=finished after 10 steps"), "{said:?}");
}

#[test]
fn a_worker_that_stands_still_starves_the_watchdog() {
    let (manager, job) = (Manager::new(), AgentJob::new(100_000, ""));
    let run = manager.start(&job, "400000");
    manager.hear_until("saved and verified");
    let worker = worker_of(&job);
    signal(worker, Signal::STOP);
    // What it said before is still on its way, and then there is nothing to pass on for ten pings' time.
    manager.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 4096];
    while manager.socket.recv(&mut buffer).is_ok() {}
    signal(worker, Signal::CONT);
    manager.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    manager.hear_until("WATCHDOG=1");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}
