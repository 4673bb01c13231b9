//! A session of many ranks: how they come together, and what ranks other than 0 do in it.
//!
//! Rank 0 prepares the training, then says to the others what it is; they prepare the same, from what they see or from
//! rank 0, and all compare what they have before the first step. Invariant: ranks other than 0 read no standard input,
//! write no standard output and no snapshot, and leave with rank 0. Deliberately not here: rank 0's own course
//! (`main`).

use std::path::Path;
use std::sync::Arc;

use ckptd_core::config::{Config, JobSection, RankCount, RankRoom, RanksSection, TrainSection};
use ckptd_core::os::process::processors;
use ckptd_core::protocol::{MessageLevel, Start};
use ckptd_core::store::SnapshotReader;
use ckptd_core::{Error, Result};

use crate::capture::StateCapturer;
use crate::events::EventSender;
use crate::ranks::{
    Alone, Follower, HeldPart, Leader, MOMENTS_THREAD, PartHolder, RankFacts, RankGroup, RankPlace, RankVoice,
    RanksEnd, libtorch_kind, processor_kind, say,
};
use crate::setup::TrainingSetup;
use crate::snapshots::{ShardedMoments, UpdateGate};
use crate::torch;
use crate::train::TrainingLoop;

/// The ranks, and what rank 0 needs for snapshots where the optimizer is sharded.
pub type TrainingRanks = (Box<dyn RankGroup>, Option<ShardedMoments>);

/// Rank 0, before the training is ready.
pub struct RankZero(Option<Leader>);

impl RankZero {
    /// Waits for the other ranks: those that a launcher has started, where there is a `place` among them; else those
    /// that `[ranks] count` asks for, which it starts.
    ///
    /// # Errors
    /// Those of [`Leader`].
    pub fn open(place: Option<&RankPlace>, start: &mut Start, events: &EventSender) -> Result<RankZero> {
        let (hang_timeout, count) = (start.config.worker.hang_timeout.0, how_many(start)?);
        start.config.ranks.count = RankCount::Fixed(count);
        as_many_as_asked(place, &start.config.ranks, count)?;
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
        start.config.ranks.count = RankCount::Fixed(leader.size());
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
    pub fn begin(self, mut start: Start, setup: &mut TrainingSetup) -> Result<TrainingRanks> {
        let Some(mut leader) = self.0 else { return Ok((Box::new(Alone), None)) };
        // Settled here, once: what a launcher leaves to another rank must not decide it.
        start.config.job.threads = setup.threads;
        start.config.job.device = torch::device_name(setup.device);
        leader.begin(&start)?;
        setup.hand_out(start.resume.as_deref(), &mut leader)?;
        facts(setup, &start.config)?.compare(&mut leader)?;
        leader.settle();
        let owned: Option<Vec<_>> = (0..leader.size()).map(|rank| setup.owned_by(rank)).collect();
        let moments = owned.map(|owned| ShardedMoments {
            gate: UpdateGate::default(),
            parts: leader.held_parts(),
            owned: Arc::new(owned),
        });
        Ok((Box::new(leader), moments))
    }
}

/// How many ranks `start` asks for, on this machine.
fn how_many(start: &Start) -> Result<usize> {
    let recorded = match (start.config.ranks.count, &start.resume) {
        (RankCount::Auto, Some(path)) => SnapshotReader::open(path)?.manifest().train.settings.threads(),
        _ => None,
    };
    let asked = Some(start.config.job.threads).filter(|threads| *threads > 0);
    let (threads, micro_batches) = (asked.or(recorded), start.config.train.grad_accumulation);
    Ok(start.config.ranks.how_many(&RankRoom { tasks: None, processors: processors(), threads, micro_batches }))
}

/// Holds what a launcher has started against what it was asked for.
fn as_many_as_asked(place: Option<&RankPlace>, asked: &RanksSection, count: usize) -> Result<()> {
    let Some(launcher) = asked.launcher.name() else { return Ok(()) };
    let started = place.map_or(1, |place| place.size);
    if started == count {
        return Ok(());
    }
    Err(Error::Config(format!(
        "[ranks] launcher {launcher} was to start {count} ranks, and by its environment this process is one of \
         {started}; does it set RANK and WORLD_SIZE, or the variables of Open MPI or Slurm?"
    )))
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
    say(rank, &message);
    voice.as_ref().into_iter().for_each(|voice: &RankVoice| voice.fail(&message));
    i32::from(error.exit_code())
}

fn train(mut follower: Follower, job: Option<&Path>) -> Result<()> {
    let start = follower.begin()?;
    let dispute = start.dispute.clone();
    // A job file of its own says where things lie here.
    let local = job.map_or_else(|| Ok(start.config.clone()), Config::load)?;
    let setup = TrainingSetup::follow(start, &local, &mut follower)?;
    facts(&setup, &local)?.compare(&mut follower)?;
    follower.settle();
    if setup.owned_by(follower.rank()).is_some() {
        serve_parts(&follower, setup.state.capturer())?;
    }
    TrainingLoop::new(setup, EventSender::unheard(), None, Box::new(follower))?.settling(dispute).run().map(drop)
}

/// Gives rank 0 this rank's shard of the moments, whenever it takes a snapshot.
fn serve_parts(follower: &Follower, capturer: StateCapturer) -> Result<()> {
    let Some(server) = follower.part_server() else { return Ok(()) };
    let body = move || server.serve(&HeldShards(capturer));
    let spawned = std::thread::Builder::new().name(MOMENTS_THREAD.into()).spawn(body);
    spawned.map(drop).map_err(|e| Error::Other(format!("starting the thread for moments: {e}")))
}

/// What a rank other than 0 holds of the moments.
struct HeldShards(StateCapturer);

impl PartHolder for HeldShards {
    fn hold(&self) -> Result<(u64, Vec<HeldPart>)> {
        let capture = self.0.capture()?.ok_or_else(|| Error::Other("a snapshot is held twice".into()))?;
        let parts = capture.shards.into_iter().map(|shard| (shard.index, shard.offset, shard.bytes));
        Ok((capture.train.step, parts.collect()))
    }

    fn end_training(&self) {
        self.0.freeze();
    }
}

/// What this rank has to have in common with the others. Of the job file that is what it says of the training: where
/// things lie may differ.
fn facts(setup: &TrainingSetup, job: &Config) -> Result<RankFacts> {
    let Config { job: JobSection { seed, .. }, model, data, train, .. } = job;
    // Whether activations are computed again changes no bit.
    let train = TrainSection { activation_checkpointing: false, ..train.clone() };
    let json = serde_json::to_vec(&(seed, &model.preset, model.dropout, data.validation, train))
        .map_err(|e| Error::Other(format!("writing a job: {e}")))?;
    let short = |hash: blake3::Hash| hash.to_hex()[..16].to_owned();
    Ok(RankFacts {
        release: env!("CARGO_PKG_VERSION").into(),
        job: short(blake3::hash(&json)),
        data: setup.data.content_hash.clone(),
        libtorch: libtorch_kind(),
        processor: processor_kind(),
        threads: setup.threads,
        state: short(setup.state.hash()?),
    })
}

/// Signals to all processes of a job are for rank 0, which saves first.
fn leave_with_rank_zero() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: to ignore a signal needs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
