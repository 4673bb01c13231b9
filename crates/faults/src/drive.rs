//! What ckptd does with a store, without a training: start, resume, save, verify, pin, quarantine, rotate.
//!
//! Invariant: nothing is announced before the store said that it is done, and nothing that takes a promise back begins
//! before it was announced.

use std::path::Path;

use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::RetentionPolicy;
use ckptd_core::store::{CommitOptions, SnapshotEntry, SnapshotState, Store, StoreLock, commit, layout};
use ckptd_history::record::HistoryRecord;
use ckptd_history::writer::HistoryWriter;
use jiff::Timestamp;

use crate::announce::StoreAck;
use crate::states;

/// A driven store, its lock held.
pub struct StoreSession {
    store: Store,
    lock: StoreLock,
    run: RunId,
    seed: u64,
    next_seq: u64,
    /// `None`: it could not be opened.
    history: Option<HistoryWriter>,
}

pub fn policy() -> RetentionPolicy {
    RetentionPolicy { keep_last: 2, keep_best: 1, ..RetentionPolicy::default() }
}

impl StoreSession {
    /// What `ckptd run` does before it trains.
    pub fn start(path: &Path, seed: u64, say: &mut dyn FnMut(StoreAck)) -> Result<StoreSession> {
        let store = Store::create(path)?;
        let lock = store.lock("the exerciser")?;
        let run = store.begin_run(&lock, || Ok(RunId::from(format!("run-{seed}"))))?;
        say(StoreAck::Started { run: run.clone() });
        let mut told = Vec::new();
        let chosen = store.choose_resume(&lock, 1, &mut |line| told.push(line))?;
        // What the system does not hand out now may be passed over, as long as that is said.
        for line in told.iter().filter(|line| line.contains(" cannot be ")) {
            let step = line.split(' ').next().and_then(|id| layout::step_of(&id.into()));
            step.into_iter().for_each(|step| say(StoreAck::PassedOver { seq: step / states::step_of(1) }));
        }
        say(StoreAck::Resumed { seq: chosen.map(|chosen| chosen.entry.seq()) });
        let next_seq = store.next_seq()?;
        let history = HistoryWriter::open(&store, &lock).map_err(|e| say(failed("opening the history", None, &e))).ok();
        Ok(StoreSession { store, lock, run, seed, next_seq, history })
    }

    /// One snapshot and what follows it. A failure ends the part that it hit, is announced, and nothing else.
    pub fn round(&mut self, say: &mut dyn FnMut(StoreAck)) {
        let seq = self.next_seq;
        say(StoreAck::Saving { seq });
        let options = CommitOptions::new(&self.run, seq);
        match commit(&self.store, &self.lock, states::snapshot(self.seed, seq), &options) {
            Ok(committed) => say(StoreAck::Committed { seq, id: committed.id }),
            Err(e) => return say(failed("saving", Some(seq), &e)),
        }
        self.next_seq += 1;
        self.keep(seq, say);
        // Every third snapshot is read back only with the next one, as if the keeper were behind.
        if !seq.is_multiple_of(3) {
            self.attempt("verifying", say, StoreSession::verify_all);
        }
        if seq % 6 == 1 {
            self.attempt("pinning", say, |session, say| session.pin(seq, say));
        }
        if seq % 6 == 5 {
            self.attempt("unpinning", say, StoreSession::unpin_all);
        }
        if seq % 7 == 6 {
            self.attempt("quarantining", say, StoreSession::discard);
        }
        self.attempt("rotating", say, StoreSession::rotate);
    }

    /// Writes a row of the history.
    fn keep(&mut self, seq: u64, say: &mut dyn FnMut(StoreAck)) {
        let Some(history) = &mut self.history else { return };
        history.push(HistoryRecord::Step(states::row(self.seed, seq)));
        match history.flush(0) {
            Ok(()) => say(StoreAck::Kept { seq }),
            Err(e) => say(failed("keeping the history", None, &e)),
        }
    }

    fn attempt(
        &mut self,
        doing: &'static str,
        say: &mut dyn FnMut(StoreAck),
        work: impl FnOnce(&mut StoreSession, &mut dyn FnMut(StoreAck)) -> Result<()>,
    ) {
        if let Err(e) = work(self, say) {
            say(failed(doing, None, &e));
        }
    }

    fn verify_all(&mut self, say: &mut dyn FnMut(StoreAck)) -> Result<()> {
        for entry in self.store.entries()?.iter().filter(|e| e.own && e.state == SnapshotState::Committed) {
            say(StoreAck::Verifying { seq: entry.seq() });
            match self.store.verify(entry, 1, &NoProgress) {
                Ok(_) => say(StoreAck::Verified { seq: entry.seq() }),
                Err(Error::Damaged { reason, .. }) => {
                    self.store.quarantine(&self.lock, entry, &reason)?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn pin(&mut self, seq: u64, say: &mut dyn FnMut(StoreAck)) -> Result<()> {
        let entry = self.own(|e| e.seq() == seq)?;
        if let Some(entry) = entry {
            self.store.pin(&entry)?;
            say(StoreAck::Pinned { seq, id: entry.id });
        }
        Ok(())
    }

    fn unpin_all(&mut self, say: &mut dyn FnMut(StoreAck)) -> Result<()> {
        while let Some(entry) = self.own(|e| e.pinned)? {
            say(StoreAck::Unpinning { seq: entry.seq() });
            self.store.unpin(&entry)?;
        }
        Ok(())
    }

    /// Sets the newest but one aside, as if a worker could not load it.
    fn discard(&mut self, say: &mut dyn FnMut(StoreAck)) -> Result<()> {
        let newest = self.own(|e| e.state == SnapshotState::Verified)?.map(|e| e.seq());
        if let Some(entry) = self.own(|e| e.state == SnapshotState::Verified && Some(e.seq()) != newest)? {
            let (seq, id) = (entry.seq(), entry.id.clone());
            say(StoreAck::Discarding { seq });
            self.store.quarantine(&self.lock, &entry, "a drill")?;
            say(StoreAck::Discarded { seq, id });
        }
        Ok(())
    }

    fn rotate(&mut self, say: &mut dyn FnMut(StoreAck)) -> Result<()> {
        let plan = self.store.plan(&policy(), Timestamp::now())?;
        let deleted = plan.verdicts().iter().filter(|v| !v.keeps()).filter_map(|v| layout::step_of(&v.id));
        say(StoreAck::Rotating { seqs: deleted.map(|step| step / states::step_of(1)).collect() });
        self.store.apply(&self.lock, plan)?;
        say(StoreAck::Rotated);
        Ok(())
    }

    /// The newest snapshot of the run that `wanted` says yes to.
    fn own(&self, wanted: impl Fn(&SnapshotEntry) -> bool) -> Result<Option<SnapshotEntry>> {
        Ok(self.store.entries()?.into_iter().find(|e| e.own && e.manifest.is_some() && wanted(e)))
    }
}

/// A whole session; what ended it is announced.
pub fn session(path: &Path, seed: u64, rounds: u32, say: &mut dyn FnMut(StoreAck)) {
    match StoreSession::start(path, seed, say) {
        Ok(mut session) => {
            (0..rounds).for_each(|_| session.round(say));
            say(StoreAck::Ended);
        }
        Err(e) => say(failed("starting", None, &e)),
    }
}

fn failed(doing: &str, seq: Option<u64>, error: &Error) -> StoreAck {
    StoreAck::Failed { doing: doing.into(), seq, error: error.to_string() }
}

/// What a start finds in a store; ends before anything new is saved.
pub fn recover(path: &Path, seed: u64) -> Result<Option<u64>> {
    let mut resumed = None;
    StoreSession::start(path, seed, &mut |ack| {
        if let StoreAck::Resumed { seq } = ack {
            resumed = seq;
        }
    })?;
    Ok(resumed)
}
