//! A session of many ranks: how they come together, and what ranks other than 0 do in it.
//!
//! Rank 0 prepares the training, then says to the others what it is; they prepare the same from the same store, and all
//! compare what they have before the first step. Invariant: ranks other than 0 read no standard input, write no
//! standard output and no snapshot, and leave with rank 0. Deliberately not here: rank 0's own course (`main`).

use std::path::Path;

use ckptd_core::config::Config;
use ckptd_core::os::process::processors;
use ckptd_core::protocol::{MessageLevel, Start};
use ckptd_core::{Error, Result};

use crate::events::EventSender;
use crate::ranks::{
    Alone, Follower, Leader, RankFacts, RankGroup, RankPlace, RankVoice, RanksEnd, libtorch_kind, processor_kind,
};
use crate::setup::TrainingSetup;
use crate::torch;
use crate::train::TrainingLoop;

/// Rank 0, before the training is ready.
pub struct RankZero(Option<Leader>);

impl RankZero {
    /// Waits for the other ranks: those that a launcher has started, where there is a `place` among them; else those
    /// that `[ranks] count` asks for, which it starts.
    ///
    /// # Errors
    /// Those of [`Leader`].
    pub fn open(place: Option<&RankPlace>, start: &mut Start, events: &EventSender) -> Result<RankZero> {
        let (hang_timeout, count) = (start.config.worker.hang_timeout.0, start.config.ranks.count);
        let leader = match place {
            Some(place) => Leader::listen(place, hang_timeout, events)?,
            None if count < 2 => return Ok(RankZero(None)),
            None => {
                let job = &mut start.config.job;
                if job.threads == 0 && start.resume.is_none() {
                    job.threads = (processors() / count).max(1);
                }
                Leader::launch(count, hang_timeout, events)?
            }
        };
        events.log(MessageLevel::Info, format!("{} ranks compute this training together", leader.size()));
        Ok(RankZero(Some(leader)))
    }

    /// What tells the others that it is over.
    pub fn end(&self) -> RanksEnd {
        self.0.as_ref().map_or_else(RanksEnd::alone, Leader::end)
    }

    /// Lets the others prepare what rank 0 has prepared from `start`, and compares all of them.
    ///
    /// # Errors
    /// That a rank is lost, or computes something else; it is named.
    pub fn begin(self, mut start: Start, setup: &TrainingSetup) -> Result<Box<dyn RankGroup>> {
        let Some(mut leader) = self.0 else { return Ok(Box::new(Alone)) };
        // Settled here, once: what a launcher leaves to another rank must not decide it.
        start.config.job.threads = setup.threads;
        start.config.job.device = torch::device_name(setup.device);
        leader.begin(&start)?;
        facts(setup, &start.config)?.compare(&mut leader)?;
        leader.settle();
        Ok(Box::new(leader))
    }
}

/// What rank `place` does, from the first to the last. Returns the exit code, where rank 0 does not end it before.
pub fn follow(place: &RankPlace, job: Option<&Path>) -> i32 {
    leave_with_rank_zero();
    let rank = place.rank;
    let (error, voice) = match Follower::join(place) {
        Ok(follower) => {
            let voice = follower.voice();
            match train(follower, job) {
                Ok(()) => loop {
                    // Rank 0 makes the last snapshot, and then ends this process.
                    std::thread::park();
                },
                Err(error) => (error, Some(voice)),
            }
        }
        Err(error) => (error, None),
    };
    let message = error.to_string();
    // One write: lines of several ranks meet on one standard error.
    eprintln!("ckptd-gpt2 rank {rank}: {message}");
    voice.as_ref().into_iter().for_each(|voice: &RankVoice| voice.fail(&message));
    i32::from(error.exit_code())
}

fn train(mut follower: Follower, job: Option<&Path>) -> Result<()> {
    let start = follower.begin()?;
    let mut config = start.config.clone();
    if let Some(path) = job {
        config = Config::load(path)?;
        config.job.threads = start.config.job.threads;
        config.job.device.clone_from(&start.config.job.device);
    }
    let events = EventSender::unheard();
    let setup = TrainingSetup::open(start, &events)?;
    facts(&setup, &config)?.compare(&mut follower)?;
    follower.settle();
    TrainingLoop::new(setup, events, None, Box::new(follower))?.run().map(drop)
}

/// What this rank has to have in common with the others.
fn facts(setup: &TrainingSetup, job: &Config) -> Result<RankFacts> {
    let json = serde_json::to_vec(job).map_err(|e| Error::Other(format!("writing a job: {e}")))?;
    let capture = setup.state.capturer().capture()?;
    let capture = capture.ok_or_else(|| Error::Other("a snapshot is under way before the training".into()))?;
    let mut hasher = blake3::Hasher::new();
    for tensor in &capture.tensors {
        hasher.update(tensor.meta.label().as_bytes()).update(&[0]).update((*tensor.bytes).as_ref());
    }
    let train = serde_json::to_vec(&capture.train).map_err(|e| Error::Other(format!("writing a state: {e}")))?;
    hasher.update(&train);
    let short = |hash: blake3::Hash| hash.to_hex()[..16].to_owned();
    Ok(RankFacts {
        release: env!("CARGO_PKG_VERSION").into(),
        job: short(blake3::hash(&json)),
        data: setup.data.content_hash.clone(),
        libtorch: libtorch_kind(),
        processor: processor_kind(),
        threads: setup.threads,
        state: short(hasher.finalize()),
    })
}

/// Signals to all processes of a job are for rank 0, which saves first.
fn leave_with_rank_zero() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: to ignore a signal needs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
