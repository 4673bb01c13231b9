//! `ckptd-gpt2`: trains GPT-2 and commits snapshots, as ckptd's worker or alone.
//!
//! As a worker it says hello, waits for `start`, prepares the job, and trains on the main thread, while another thread
//! serves commands. An end, by command or because the agent is gone, does not wait for the step: the newest completed
//! state is made durable and the process exits.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ckptd_core::config::{Config, SnapshotEvery};
use ckptd_core::protocol::{AgentCommand, MessageLevel, Start, VERSION, WorkerEvent, WorkerFailure};
use ckptd_core::snapshot::TensorMeta;
use ckptd_core::store::{CommitPace, SessionStart, Store, StoreLock};
use ckptd_core::{Error, Result};
use ckptd_gpt2::evaluations::EvaluationPolicy;
use ckptd_gpt2::events::COMMANDS_THREAD;
use ckptd_gpt2::events::{CommandReader, EventSender};
use ckptd_gpt2::rank_session::{self, RankZero};
use ckptd_gpt2::ranks::{RankPlace, RanksEnd};
use ckptd_gpt2::setup::TrainingSetup;
use ckptd_gpt2::snapshots::{CommitSettings, SnapshotPolicy, SnapshotTaker};
use ckptd_gpt2::train::TrainingLoop;
use ckptd_gpt2::{generate, merge, probe, process, ranks, torch};
use clap::{Parser, Subcommand};

/// GPT-2 worker of ckptd. Without arguments it speaks ckptd's protocol on stdin and stdout.
#[derive(Parser)]
#[command(version)]
struct WorkerArguments {
    /// Train this job alone, without the daemon: resume, snapshot, print events; nothing is verified or rotated.
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    task: Option<ModelTask>,
}

#[derive(Subcommand)]
enum ModelTask {
    /// Continue a text with a snapshot or any other model.
    Generate(generate::GenerateArguments),
    /// Write the logits of a model for a batch of tokens.
    Logits(probe::LogitsArguments),
    /// Print the variance of a model's logits and how far they are from another model's (for `ckptd check`).
    Probe(probe::ProbeArguments),
    /// Write a base model with an adapter of PEFT merged into it (for `ckptd import`).
    Merge(merge::MergeArguments),
}

fn main() -> ExitCode {
    process::settle_openmp();
    process::tune_malloc();
    ckptd_core::os::fs::refuse_size_limit_signal();
    let arguments = WorkerArguments::parse();
    if let Some(task) = arguments.task {
        let done = match task {
            ModelTask::Generate(arguments) => generate::generate(&arguments),
            ModelTask::Logits(arguments) => probe::logits(&arguments),
            ModelTask::Probe(arguments) => probe::probe(&arguments),
            ModelTask::Merge(arguments) => merge::merge(&arguments),
        };
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("ckptd-gpt2: {e}");
                ExitCode::from(e.exit_code())
            }
        };
    }
    let place = RankPlace::from_environment();
    if let Ok(Some(place)) = &place
        && place.rank > 0
    {
        process::leave(rank_session::follow(place, arguments.config.as_deref()));
    }
    let events = match EventSender::to_stdout() {
        Ok(events) => events,
        Err(e) => {
            eprintln!("ckptd-gpt2: starting a thread: {e}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match arguments.config {
        Some(path) => place.and_then(|place| run_standalone(&path, place.as_ref(), &events)),
        None => {
            // First, since the agent hears of nothing before it, also of a rank that is not known.
            greet(&events);
            place.and_then(|place| run_as_worker(place.as_ref(), &events))
        }
    };
    let code = outcome.map_or_else(|error| report(&error, &events), |()| 0);
    events.flush();
    process::leave(code)
}

fn greet(events: &EventSender) {
    let accepts = ["configure", "evaluations"].map(str::to_owned).to_vec();
    let (worker, version) = (env!("CARGO_PKG_NAME").into(), env!("CARGO_PKG_VERSION").into());
    events.send(WorkerEvent::Hello { protocol: VERSION, worker, version, pid: std::process::id(), accepts });
}

/// Trains what the agent's `start` says.
fn run_as_worker(place: Option<&RankPlace>, events: &EventSender) -> Result<()> {
    // While the agent chooses a snapshot, or has another worker train: it need not be done later.
    process::warm_up();
    let (start, commands) = wait_for_start()?;
    train(start, place, Some(commands), StoreLock::inherited(), events)
}

/// Trains the job at `path` without an agent.
fn run_standalone(path: &Path, place: Option<&RankPlace>, events: &EventSender) -> Result<()> {
    let (start, lock) = standalone(path)?;
    train(start, place, None, lock, events)
}

/// Tells the agent why the worker cannot go on. Returns the exit code.
fn report(error: &Error, events: &EventSender) -> i32 {
    let failure = match error {
        Error::Config(_) | Error::NotFound(_) => WorkerFailure::Config,
        Error::Damaged { .. } => WorkerFailure::Damaged,
        Error::Mismatch { .. } | Error::Malformed { .. } => WorkerFailure::Mismatch,
        _ => WorkerFailure::Other,
    };
    events.send(WorkerEvent::Failed { failure, what: error.to_string() });
    i32::from(error.exit_code())
}

fn wait_for_start() -> Result<(Start, CommandReader)> {
    let mut commands = CommandReader::from_stdin();
    match commands.next_command() {
        Ok(Some(AgentCommand::Start(start))) if start.protocol == VERSION => Ok((*start, commands)),
        Ok(Some(AgentCommand::Start(start))) => {
            Err(Error::Other(format!("the agent speaks protocol {}, this worker {VERSION}", start.protocol)))
        }
        Ok(Some(_)) => Err(Error::Other("the first command must be start".into())),
        Ok(None) => Err(Error::Other("standard input ended before a start command; see --help".into())),
        Err(what) => Err(Error::Other(what)),
    }
}

/// What an agent would have said, and the store's lock.
fn standalone(path: &Path) -> Result<(Start, StoreLock)> {
    let config = Config::load(path)?;
    let store = Store::create(&config.job.store)?;
    let lock = store.lock("ckptd-gpt2 alone")?;
    let session = store.begin_session(&lock, 2, &mut |line| eprintln!("ckptd-gpt2: {line}"))?;
    let SessionStart { run_id, next_seq, resume } = session;
    let resume = resume.map(|choice| choice.entry.path);
    let start = Start { protocol: VERSION, config, run_id, next_seq, resume, accept_changes: false, dispute: None };
    Ok((start, lock))
}

/// Prepares and trains. Returns when the training is complete; an end by command leaves the process from within.
/// Without commands the session ends when the training does, and takes its own snapshots.
fn train(
    mut start: Start,
    place: Option<&RankPlace>,
    commands: Option<CommandReader>,
    lock: StoreLock,
    events: &EventSender,
) -> Result<()> {
    let (run_id, next_seq, dispute) = (start.run_id.clone(), start.next_seq, start.dispute.clone());
    let _writing = Store::open(&start.config.job.store)?.lock_as_worker()?;
    let snapshots: SharedTaker = Arc::default();
    let policy: Arc<SnapshotPolicy> = Arc::default();
    let evaluations: Arc<EvaluationPolicy> = Arc::default();
    let ranks_end: Arc<OnceLock<RanksEnd>> = Arc::default();
    let asked = &start.config.snapshot;
    policy.set(asked.every_steps, asked.level, asked.encode_threads);
    match (commands, asked.every) {
        (Some(commands), _) => {
            let control = WorkerControl {
                snapshots: snapshots.clone(),
                policy: policy.clone(),
                evaluations: evaluations.clone(),
                ranks_end: ranks_end.clone(),
            };
            serve_commands(commands, control, events.clone())?;
        }
        (None, SnapshotEvery::Interval(interval)) if asked.every_steps.is_none() => {
            take_by_time(interval, snapshots.clone())?;
        }
        (None, _) => {}
    }
    let rank_zero = RankZero::open(place, &mut start, events)?;
    let end = ranks_end.get_or_init(|| rank_zero.end()).clone();
    let mut setup = TrainingSetup::open(start.clone(), events)?;
    let (group, moments) = rank_zero.begin(start, &mut setup)?;
    let settings = CommitSettings {
        store: Store::open(&setup.config.job.store)?,
        lock,
        run_id,
        next_seq,
        resumed: setup.resumed.clone(),
        files: setup.files.clone(),
        provenance: setup.provenance.clone(),
        moments,
        probe: setup.config.snapshot.probe.then(|| setup.probe()),
    };
    let taker = SnapshotTaker::new(setup.state.capturer(), settings, policy, events.clone())?;
    let ready = ready(&setup, group.size());
    let training = TrainingLoop::new(setup, events.clone(), Some(taker.clone()), group)?;
    let mut training = training.obeying(evaluations).settling(dispute);
    events.send(ready);
    // From here on an order to stop has a state to save.
    let _ = snapshots.set(taker.clone());
    let step = training.run()?;
    taker.take_last("final", CommitPace::Alone, None)?;
    end.leave();
    events.send(WorkerEvent::Done { step, finished: true });
    events.flush();
    ranks::finish();
    Ok(())
}

/// What the agent hears when the training begins.
fn ready(setup: &TrainingSetup, ranks: usize) -> WorkerEvent {
    let (train, _) = setup.state.train();
    let shards = setup.owned_by(0).map_or(1, |_| ranks as u64);
    let (sizes, memory) = (setup.model.config().sizes(), setup.config.snapshot.memory);
    WorkerEvent::Ready {
        step: train.step,
        total_steps: setup.config.train.steps,
        parameters: setup.model.config().parameter_count(),
        state_bytes: setup.state.metas().iter().filter_map(TensorMeta::bytes).sum(),
        resumed: setup.resumed.as_ref().map(|resumed| format!("step {}", resumed.train.step)),
        device: torch::device_name(setup.device),
        threads: setup.threads as u64,
        vocabulary: u64::try_from(setup.model.config().vocab_size).ok(),
        train_tokens: Some(setup.data.train.len() as u64),
        peak_bytes: Some(sizes.peak_bytes_of_rank(&setup.config.train, memory, shards)),
    }
}

/// What commands act on.
struct WorkerControl {
    snapshots: SharedTaker,
    policy: Arc<SnapshotPolicy>,
    evaluations: Arc<EvaluationPolicy>,
    /// Known as soon as they have come together.
    ranks_end: Arc<OnceLock<RanksEnd>>,
}

/// What takes snapshots, once there is a state to take.
type SharedTaker = Arc<OnceLock<SnapshotTaker>>;

/// Takes a snapshot whenever `interval` has passed.
fn take_by_time(interval: Duration, snapshots: SharedTaker) -> Result<()> {
    spawn("timer", move || {
        loop {
            std::thread::sleep(interval);
            if let Some(snapshots) = snapshots.get() {
                snapshots.take("interval");
            }
        }
    })
}

/// Serves the agent's commands until it says stop or is gone; then saves the newest state and leaves the process.
fn serve_commands(mut commands: CommandReader, control: WorkerControl, events: EventSender) -> Result<()> {
    let WorkerControl { snapshots, policy, evaluations, ranks_end } = control;
    spawn(COMMANDS_THREAD, move || {
        let (save, reason, within) = loop {
            match commands.next_command() {
                Ok(Some(AgentCommand::Snapshot { reason })) => match snapshots.get() {
                    Some(taker) => drop(taker.take(&reason)),
                    None => events.log(MessageLevel::Info, "no snapshot yet: the training has not begun"),
                },
                Ok(Some(AgentCommand::Configure { every_steps, level, encode_threads, eval_every, eval_batches })) => {
                    policy.set(every_steps, level, encode_threads);
                    if let (Some(every), Some(batches)) = (eval_every, eval_batches) {
                        evaluations.set(every, batches);
                    }
                }
                Ok(Some(AgentCommand::Stop { snapshot, reason, within_ms })) => {
                    break (snapshot, reason, within_ms.map(Duration::from_millis));
                }
                Ok(Some(AgentCommand::Start(_))) => events.log(MessageLevel::Warn, "a second start was ignored"),
                Ok(None) => break (true, "the agent is gone".to_owned(), None),
                Err(what) => events.log(MessageLevel::Warn, what),
            }
        };
        let (mut code, asked) = (0, Instant::now());
        // Before the other ranks leave: the training must not take that for a failure.
        snapshots.get().into_iter().for_each(SnapshotTaker::end_training);
        // Ranks that hold parts of the state leave when it is saved, and so do those whose launcher would end rank 0
        // with them.
        let must_stay = ranks_end.get().is_some_and(RanksEnd::must_stay);
        let stay = save && (must_stay || snapshots.get().is_some_and(SnapshotTaker::is_sharded));
        let order = if stay { RanksEnd::make_way } else { RanksEnd::leave };
        ranks_end.get().into_iter().for_each(order);
        if let Some(taker) = snapshots.get().filter(|_| save) {
            // To freeze the state may have taken until an update was over.
            let within = within.map(|within| within.saturating_sub(asked.elapsed()));
            // The failure was reported as an event.
            code = i32::from(taker.take_last(&reason, CommitPace::Hurried, within).is_err());
        }
        ranks_end.get().into_iter().filter(|_| stay).for_each(RanksEnd::leave);
        let step = snapshots.get().map_or(0, SnapshotTaker::step);
        events.send(WorkerEvent::Done { step, finished: false });
        events.flush();
        ranks::finish();
        process::leave(code)
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
    spawned.map(drop).map_err(|e| Error::Other(format!("starting the thread for {name}: {e}")))
}
