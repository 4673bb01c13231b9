//! Wherever a rank is lost, the newest completed step is saved: each call of the seam between ranks fails once.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use ckptd_core::config::Config;
use ckptd_core::protocol::{Start, VERSION};
use ckptd_core::store::Store;
use ckptd_core::{Error, Result};
use ckptd_gpt2::events::EventSender;
use ckptd_gpt2::ranks::{Incoming, Outgoing, RankGroup};
use ckptd_gpt2::setup::TrainingSetup;
use ckptd_gpt2::snapshots::{CommitSettings, SnapshotTaker};
use ckptd_gpt2::train::TrainingLoop;

const JOB: &str = "[job]\nstore = \"store\"\nthreads = 1\n[model]\npreset = \"gpt2-mini\"\n\
    [data]\ntokens = \"tokens.bin\"\n[snapshot]\nevery_steps = 1\n\
    [train]\nsteps = 2\nbatch_size = 1\nsequence_length = 8\ngrad_accumulation = 2\neval_every = 1\neval_batches = 2\n";

/// Rank 0 of two, where rank 1 says what rank 0 says, its gradients are zero, and it is gone after so many calls.
struct LosingGroup {
    calls_left: usize,
}

impl LosingGroup {
    fn call(&mut self) -> Result<()> {
        self.calls_left = self.calls_left.checked_sub(1).ok_or_else(|| Error::Other("rank 1 is gone".into()))?;
        Ok(())
    }
}

impl RankGroup for LosingGroup {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        2
    }

    fn exchange(&mut self, _sends: &[Outgoing<'_>], receives: &mut [Incoming<'_>]) -> Result<()> {
        self.call()?;
        receives.iter_mut().for_each(|receive| receive.values.fill(0.0));
        Ok(())
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.call()?;
        Ok(vec![bytes.to_vec(); 2])
    }
}

/// Trains until rank 1 is lost, after `calls` calls. Returns the completed steps and those of the newest snapshot, or
/// `None` where the training was complete before.
fn train_until_lost(folder: &Path, calls: usize) -> Option<(u64, u64)> {
    let _ = std::fs::remove_dir_all(folder.join("store"));
    let config = Config::load(&folder.join("job.toml")).unwrap();
    let store = Store::create(&config.job.store).unwrap();
    let lock = store.lock("a test").unwrap();
    let session = store.begin_session(&lock, 2, &mut |_| ()).unwrap();
    let (run_id, next_seq) = (session.run_id, session.next_seq);
    let start = Start {
        protocol: VERSION,
        config,
        run_id: run_id.clone(),
        next_seq,
        resume: None,
        accept_changes: false,
        dispute: None,
    };
    let events = EventSender::unheard();
    let setup = TrainingSetup::open(start, &events).unwrap();
    let settings = CommitSettings {
        store: Store::open(&setup.config.job.store).unwrap(),
        lock,
        run_id,
        next_seq,
        resumed: None,
        files: setup.files.clone(),
        provenance: setup.provenance.clone(),
        probe: None,
        moments: None,
    };
    let taker = SnapshotTaker::new(setup.state.capturer(), settings, Arc::default(), events.clone()).unwrap();
    let group = Box::new(LosingGroup { calls_left: calls });
    let outcome = TrainingLoop::new(setup, events, Some(taker.clone()), group).unwrap().run();
    let error = outcome.err()?;
    assert_eq!(error.to_string(), "rank 1 is gone");
    let newest = store.entries().unwrap().into_iter().map(|entry| entry.manifest.unwrap().train.step).max();
    Some((taker.step(), newest.unwrap()))
}

#[test]
fn whichever_call_fails_the_newest_completed_step_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let tokens: Vec<u8> = (0..3_000u16).flat_map(|n| (n % 4096).to_le_bytes()).collect();
    std::fs::write(folder.path().join("tokens.bin"), tokens).unwrap();
    std::fs::write(folder.path().join("job.toml"), JOB).unwrap();
    let mut completed = Vec::new();
    while let Some((step, saved)) = train_until_lost(folder.path(), completed.len()) {
        assert_eq!(saved, step, "after {} calls", completed.len());
        completed.push(step);
    }
    // Before the first step, between the steps, and after the last, where the states are compared.
    completed.dedup();
    assert_eq!(completed, [0, 1, 2]);
}
