//! The lock of a training script: its own process has it, and no child; the store is not taken while it is there.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ckptd_core::Error;
use ckptd_core::store::Store;

const STORE: &str = "CKPTD_TEST_WORKER_LOCK";

/// What the other process of the test below does: takes the lock, starts a child that stays, says so, and waits.
#[test]
fn holder() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let _lock = Store::open(Path::new(&store)).unwrap().lock_as_worker().unwrap();
    let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
    println!("held {}", child.id());
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
    child.kill().unwrap();
    child.wait().unwrap();
}

fn start(store: &Path) -> (Child, u32) {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["holder", "--exact", "--nocapture"])
        .env(STORE, store)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
    let held = lines.filter_map(|line| line.split_once("held ")?.1.trim().parse().ok()).next();
    (holder, held.unwrap())
}

#[test]
fn a_store_is_not_taken_while_a_script_writes_and_is_free_when_its_process_is_gone_whatever_that_has_started() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path()).unwrap();
    drop(store.lock("a session").unwrap());
    let (mut holder, child) = start(folder.path());
    for error in [store.lock("a session").map(drop).unwrap_err(), store.lock_as_worker().map(drop).unwrap_err()] {
        let Error::Locked { pid, alive, .. } = error else { panic!("{error}") };
        assert_eq!((pid, alive), (holder.id(), false));
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The child runs on, and holds nothing.
    assert!(Path::new("/proc").join(child.to_string()).exists());
    let _session = store.lock("a session").unwrap();
    let _worker = store.lock_as_worker().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(child as i32).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
}
