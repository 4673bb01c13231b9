//! Sessions that race for one store: one at a time gets in, and the others are told who is there.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};

use anyhow::Result;
use ckptd_core::error::Error;

use crate::announce::StoreAck;
use crate::campaign::{CampaignScratch, FaultRow, guarded};
use crate::drive::StoreSession;
use crate::judge::{AfterCheck, FailedSaves};
use crate::promises::Promises;

const CONTENDERS: usize = 8;

pub fn run(below: &Path, seed: u64, short: bool) -> Result<Vec<FaultRow>> {
    let mut row = FaultRow::new("contenders for one lock, in one process", seed);
    let scratch = CampaignScratch::new(below);
    for round in 0..if short { 10 } else { 100 } {
        let store = scratch.empty()?.join("store");
        let broken = guarded(|| one(&store, seed));
        row.point(|| format!("round {round}"), broken);
    }
    Ok(vec![row])
}

fn one(store: &Path, seed: u64) -> Vec<String> {
    let inside = AtomicBool::new(false);
    let entered = AtomicU64::new(0);
    let promises = Mutex::new(Promises::new(seed));
    let broken = Mutex::new(Vec::new());
    let broke = |what: String| broken.lock().unwrap_or_else(|e| e.into_inner()).push(what);
    let start = Barrier::new(CONTENDERS);
    std::thread::scope(|scope| {
        for _ in 0..CONTENDERS {
            scope.spawn(|| {
                start.wait();
                let mut note = |ack: StoreAck| promises.lock().unwrap_or_else(|e| e.into_inner()).note(&ack);
                match StoreSession::start(store, seed, &mut note) {
                    Ok(mut session) => {
                        entered.fetch_add(1, Ordering::Relaxed);
                        if inside.swap(true, Ordering::AcqRel) {
                            broke("two are in the store at once".into());
                        }
                        session.round(&mut note);
                        inside.store(false, Ordering::Release);
                    }
                    Err(Error::Locked { .. }) => {}
                    Err(e) => broke(format!("neither in nor told who is: {e}")),
                }
            });
        }
    });
    let mut broken = broken.into_inner().unwrap_or_else(|e| e.into_inner());
    if entered.load(Ordering::Relaxed) == 0 {
        broken.push("nobody got in".into());
    }
    broken.extend(promises.into_inner().unwrap_or_else(|e| e.into_inner()).check(
        store,
        FailedSaves::MustBeAbsent,
        AfterCheck::SaveOnceMore,
    ));
    broken
}
