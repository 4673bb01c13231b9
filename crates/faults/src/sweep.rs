//! Every call meets every fault: once, from then on, as a full disk, as a short write, as SIGKILL.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result};
use ckptd_core::os::faults::set_hook;
use rustix::io::Errno;

use crate::announce::StoreAck;
use crate::campaign::{CampaignScratch, FaultRow, add, each, guarded, violated};
use crate::hooks::{CallFault, FaultInjector};
use crate::judge::{AfterCheck, FailedSaves};
use crate::promises::Promises;
use crate::{drive, prepare};

/// How much of it is tried.
pub struct SweepEffort {
    pub rounds: u32,
    /// Every so many-th call.
    pub stride: u64,
    /// Ends after the first violation.
    pub first: bool,
}

const FAULTS: [(&str, CallFault); 7] = [
    ("EIO", CallFault::Once(Errno::IO)),
    ("ENOSPC", CallFault::Once(Errno::NOSPC)),
    ("EDQUOT", CallFault::Once(Errno::DQUOT)),
    ("EINTR", CallFault::Once(Errno::INTR)),
    ("a short write", CallFault::Short),
    ("EIO from then on", CallFault::FromThen(Errno::IO)),
    ("a full disk from then on", CallFault::Full(Errno::NOSPC)),
];

/// A store before its session.
fn lay(store: &Path, seed: u64, past: bool) -> Result<Vec<StoreAck>> {
    if past { prepare::past(store, seed) } else { Ok(Vec::new()) }
}

/// Calls that a session makes.
fn count(below: &Path, seed: u64, past: bool, rounds: u32) -> Result<u64> {
    let scratch = CampaignScratch::new(below);
    let store = scratch.empty()?.join("store");
    lay(&store, seed, past)?;
    let seen = FaultInjector::install(0, None);
    drive::session(&store, seed, rounds, &mut |_| ());
    set_hook(None);
    let calls = seen.lock().unwrap_or_else(|e| e.into_inner()).calls;
    Ok(calls)
}

/// Errors, in this process.
pub fn errors(below: &Path, seed: u64, effort: &SweepEffort) -> Result<Vec<FaultRow>> {
    let mut rows = Vec::new();
    for (name, fault) in FAULTS {
        let row = Mutex::new(FaultRow::new(&format!("every call: {name}"), seed));
        for past in [false, true] {
            let calls = count(below, seed, past, effort.rounds)?;
            each(calls.div_ceil(effort.stride), |i| {
                if effort.first && violated(&row) {
                    return;
                }
                let at = (i * effort.stride + seed % effort.stride).min(calls - 1);
                let scratch = CampaignScratch::new(below);
                let mut hit = None;
                let broken = guarded(|| {
                    one_error(&scratch, seed, past, effort.rounds, at, fault, &mut hit)
                        .unwrap_or_else(|e| vec![format!("{e:#}")])
                });
                if let Some(hit) = hit {
                    add(&row, || format!("call {at} ({hit}){}", if past { " after a crash" } else { "" }), broken);
                }
            });
        }
        rows.push(row.into_inner().unwrap_or_else(|e| e.into_inner()));
        if effort.first && rows.iter().any(|row| row.violations > 0) {
            break;
        }
    }
    Ok(rows)
}

fn one_error(
    scratch: &CampaignScratch,
    seed: u64,
    past: bool,
    rounds: u32,
    at: u64,
    fault: CallFault,
    hit: &mut Option<String>,
) -> Result<Vec<String>> {
    let store = scratch.empty()?.join("store");
    let mut promises = Promises::of(seed, &lay(&store, seed, past)?);
    let seen = FaultInjector::install(at, Some(fault));
    let mut ended = false;
    drive::session(&store, seed, rounds, &mut |ack| {
        ended |= ack == StoreAck::Ended;
        promises.note(&ack);
    });
    set_hook(None);
    *hit = seen.lock().unwrap_or_else(|e| e.into_inner()).hit.take();
    let once = matches!(fault, CallFault::Once(_) | CallFault::Short);
    let failed = if once { FailedSaves::MustBeAbsent } else { FailedSaves::MayBeThere };
    let mut broken = promises.check(&store, failed, AfterCheck::SaveOnceMore);
    let harmless = matches!(fault, CallFault::Once(Errno::INTR) | CallFault::Short);
    if harmless && !promises.errors.is_empty() {
        broken.push(format!("it was not taken in stride: {}", promises.errors[0]));
    }
    if !harmless && promises.errors.is_empty() && hit.as_deref().is_some_and(|call| must_be_told(call, fault)) {
        broken.push("nobody was told".into());
    }
    if !ended && promises.errors.is_empty() {
        broken.push("the session ended without a word".into());
    }
    let text = scratch.path().to_string_lossy();
    broken.extend(
        promises.errors.iter().filter(|e| !e.contains(&*text)).map(|e| format!("an error without a path: {e}")),
    );
    Ok(broken)
}

/// Calls whose failure leaves something undone that the caller asked for. The lock's text, a receipt on a full disk and
/// a quarantined file's reason on one are what the store may do without.
fn must_be_told(call: &str, fault: CallFault) -> bool {
    let changes = ["Create ", "Write ", "Truncate ", "Sync ", "SyncFolder ", "Rename ", "MakeFolder "];
    let full = matches!(fault, CallFault::Once(Errno::NOSPC | Errno::DQUOT) | CallFault::Full(_));
    let luxury = ["receipts", "reason.txt", "SyncFolder store/quarantine"].iter().any(|what| call.contains(what));
    changes.iter().any(|change| call.starts_with(change)) && !call.contains("ckptd.lock") && !(full && luxury)
}

/// SIGKILL before and after every call, on processes.
pub fn kills(below: &Path, seed: u64, effort: &SweepEffort) -> Result<Vec<FaultRow>> {
    let row = Mutex::new(FaultRow::new("every call: SIGKILL", seed));
    for past in [false, true] {
        let calls = count(below, seed, past, effort.rounds)?;
        each(calls.div_ceil(effort.stride) * 2, |i| {
            let at = (i / 2 * effort.stride + seed % effort.stride).min(calls - 1);
            let when = if i % 2 == 0 { "--kill-before" } else { "--kill-after" };
            let scratch = CampaignScratch::new(below);
            let broken = guarded(|| {
                one_kill(&scratch, seed, past, effort.rounds, at, when).unwrap_or_else(|e| vec![format!("{e:#}")])
            });
            add(&row, || format!("{when} {at}{}", if past { " after a crash" } else { "" }), broken);
        });
    }
    Ok(vec![row.into_inner().unwrap_or_else(|e| e.into_inner())])
}

fn one_kill(scratch: &CampaignScratch, seed: u64, past: bool, rounds: u32, at: u64, when: &str) -> Result<Vec<String>> {
    let store = scratch.empty()?.join("store");
    let mut lines = String::new();
    if past {
        // Every lock is taken by a process of its own: an open one would be inherited by the next child.
        let made =
            Command::new(std::env::current_exe()?).arg("past").arg(&store).args(["--seed", &seed.to_string()]).output();
        lines += &String::from_utf8(made?.stdout)?;
    }
    let mut child = Command::new(std::env::current_exe()?)
        .arg("session")
        .arg(&store)
        .args(["--seed", &seed.to_string(), "--rounds", &rounds.to_string(), when, &at.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdout.take().context("no stdout")?.read_to_string(&mut lines)?;
    let status = child.wait()?;
    let announced = store.with_file_name("announced");
    std::fs::write(&announced, lines)?;
    let check = Command::new(std::env::current_exe()?)
        .arg("check")
        .args([&store, &announced])
        .args(["--seed", &seed.to_string(), "--go-on"])
        .output()?;
    let mut broken: Vec<String> = String::from_utf8_lossy(&check.stdout).lines().map(String::from).collect();
    if !check.status.success() && broken.is_empty() {
        broken.push(format!("the check ended with {}: {}", check.status, String::from_utf8_lossy(&check.stderr)));
    }
    if status.signal() != Some(9) {
        broken.push(format!("it was not killed: {status}"));
    }
    Ok(broken)
}
