//! `ckptd-gpt2`: trains GPT-2 and commits snapshots, as ckptd's worker or alone.
//!
//! As a worker it says hello, waits for `start`, prepares the job, and trains on the main thread, while another thread
//! obeys commands. An end, by command or because the agent is gone, does not wait for the step: the newest completed
//! state is made durable and the process exits.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ckptd_core::config::{Config, SnapshotEvery};
use ckptd_core::protocol::{AgentCommand, MessageLevel, Start, VERSION, WorkerEvent, WorkerFailure};
use ckptd_core::store::{CommitPace, SessionStart, Store, StoreLock};
use ckptd_core::{Error, Result};
use ckptd_gpt2::events::{CommandReader, EventSender};
use ckptd_gpt2::job::TrainingSetup;
use ckptd_gpt2::snapshots::{CommitSettings, SnapshotPolicy, SnapshotTaker};
use ckptd_gpt2::train::TrainingLoop;
use ckptd_gpt2::{COMMANDS_THREAD, device, generate, probe};
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
    /// Let a snapshot, or any other model, go on with a text.
    Generate(generate::GenerateArguments),
    /// Write the logits of a model for a batch of tokens.
    Logits(probe::LogitsArguments),
    /// Say how the answers of a model are spread, and how far they are from another one's (for `ckptd check`).
    Probe(probe::ProbeArguments),
}

fn main() -> ExitCode {
    device::settle_openmp();
    device::tune_malloc();
    ckptd_core::os::fs::refuse_size_limit_signal();
    let arguments = WorkerArguments::parse();
    if let Some(task) = arguments.task {
        let done = match task {
            ModelTask::Generate(arguments) => generate::generate(&arguments),
            ModelTask::Logits(arguments) => probe::logits(&arguments),
            ModelTask::Probe(arguments) => probe::probe(&arguments),
        };
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("ckptd-gpt2: {e}");
                ExitCode::from(e.exit_code())
            }
        };
    }
    let events = match EventSender::to_stdout() {
        Ok(events) => events,
        Err(e) => {
            eprintln!("ckptd-gpt2: starting a thread: {e}");
            return ExitCode::FAILURE;
        }
    };
    let code = match arguments.config {
        Some(path) => run(&events, || alone(&path)),
        None => {
            let accepts = vec!["configure".to_owned()];
            let (worker, version) = (env!("CARGO_PKG_NAME").into(), env!("CARGO_PKG_VERSION").into());
            events.send(WorkerEvent::Hello { protocol: VERSION, worker, version, pid: std::process::id(), accepts });
            run(&events, wait_for_start)
        }
    };
    events.flush();
    // libtorch's threads may be at work on something that nobody waits for.
    std::process::exit(code);
}

/// Where the orders come from.
enum CommandSource {
    Agent(CommandReader),
    /// There are none: the session ends when the training does.
    Alone,
}

fn run(events: &EventSender, start: impl FnOnce() -> Result<(Start, CommandSource, StoreLock)>) -> i32 {
    let outcome = start().and_then(|(start, orders, lock)| train(start, orders, lock, events));
    let Err(error) = outcome else { return 0 };
    let failure = match &error {
        Error::Config(_) | Error::NotFound(_) => WorkerFailure::Config,
        Error::Damaged { .. } => WorkerFailure::Damaged,
        Error::Mismatch { .. } => WorkerFailure::Mismatch,
        _ => WorkerFailure::Other,
    };
    events.send(WorkerEvent::Failed { failure, what: error.to_string() });
    i32::from(error.exit_code())
}

fn wait_for_start() -> Result<(Start, CommandSource, StoreLock)> {
    let mut commands = CommandReader::from_stdin();
    match commands.next_command() {
        Ok(Some(AgentCommand::Start(start))) if start.protocol == VERSION => {
            Ok((*start, CommandSource::Agent(commands), StoreLock::inherited()))
        }
        Ok(Some(AgentCommand::Start(start))) => {
            Err(Error::Other(format!("the agent speaks protocol {}, this worker {VERSION}", start.protocol)))
        }
        Ok(Some(_)) => Err(Error::Other("the first command must be start".into())),
        Ok(None) => Err(Error::Other("standard input ended before a start command; see --help".into())),
        Err(what) => Err(Error::Other(what)),
    }
}

/// What an agent would have said.
fn alone(path: &std::path::Path) -> Result<(Start, CommandSource, StoreLock)> {
    let config = Config::load(path)?;
    let store = Store::create(&config.job.store)?;
    let lock = store.lock("ckptd-gpt2 alone")?;
    let session = store.begin_session(&lock, 2, &mut |line| eprintln!("ckptd-gpt2: {line}"))?;
    let SessionStart { run_id, next_seq, resume } = session;
    let resume = resume.map(|choice| choice.entry.path);
    let start = Start { protocol: VERSION, config, run_id, next_seq, resume, accept_changes: false };
    Ok((start, CommandSource::Alone, lock))
}

/// Prepares and trains. Returns when the training is complete; an end by command leaves the process from within.
fn train(start: Start, orders: CommandSource, lock: StoreLock, events: &EventSender) -> Result<()> {
    let (run_id, next_seq) = (start.run_id.clone(), start.next_seq);
    let taker: Arc<OnceLock<SnapshotTaker>> = Arc::default();
    let policy: Arc<SnapshotPolicy> = Arc::default();
    let asked = &start.config.snapshot;
    policy.set(asked.every_steps, asked.level, asked.encode_threads);
    let interval = start.config.snapshot.every;
    let own_timer = start.config.snapshot.every_steps.is_none();
    match orders {
        CommandSource::Agent(commands) => obey(commands, taker.clone(), policy.clone(), events.clone())?,
        CommandSource::Alone => {
            if let (SnapshotEvery::Interval(interval), true) = (interval, own_timer) {
                let taker = taker.clone();
                spawn("timer", move || {
                    loop {
                        std::thread::sleep(interval);
                        if let Some(snapshots) = taker.get() {
                            snapshots.take("interval");
                        }
                    }
                })?;
            }
        }
    }
    let job = TrainingSetup::open(start, events)?;
    let settings = CommitSettings {
        store: Store::open(&job.config.job.store)?,
        lock,
        run_id,
        next_seq,
        resumed: job.resumed.clone(),
        files: job.files.clone(),
        provenance: job.provenance.clone(),
        probe: job.config.snapshot.probe.then(|| job.prober()),
    };
    let snapshots = SnapshotTaker::new(job.state.capturer(), settings, policy, events.clone())?;
    let (train, _) = job.state.train();
    events.send(WorkerEvent::Ready {
        step: train.step,
        total_steps: job.config.train.steps,
        parameters: job.model.config().parameter_count(),
        state_bytes: job.state.capturer().memory().state,
        resumed: job.resumed.as_ref().map(|(train, _)| format!("step {}", train.step)),
        device: device::name(job.device),
        threads: job.threads as u64,
    });
    // From here on an order to stop has a state to save.
    let _ = taker.set(snapshots.clone());
    let step = TrainingLoop::new(job, events.clone(), snapshots.clone()).run()?;
    snapshots.take_last("final", CommitPace::Alone, None)?;
    events.send(WorkerEvent::Done { step, finished: true });
    Ok(())
}

/// Obeys the agent's commands until it says stop or is gone; then saves the newest state and leaves the process.
fn obey(
    mut commands: CommandReader,
    taker: Arc<OnceLock<SnapshotTaker>>,
    policy: Arc<SnapshotPolicy>,
    events: EventSender,
) -> Result<()> {
    spawn(COMMANDS_THREAD, move || {
        let (save, reason, within) = loop {
            match commands.next_command() {
                Ok(Some(AgentCommand::Snapshot { reason })) => match taker.get() {
                    Some(snapshots) => drop(snapshots.take(&reason)),
                    None => events.log(MessageLevel::Info, "no snapshot yet: the training has not begun"),
                },
                Ok(Some(AgentCommand::Configure { every_steps, level, encode_threads })) => {
                    policy.set(every_steps, level, encode_threads);
                }
                Ok(Some(AgentCommand::Stop { snapshot, reason, within_ms })) => {
                    break (snapshot, reason, within_ms.map(Duration::from_millis));
                }
                Ok(Some(AgentCommand::Start(_))) => events.log(MessageLevel::Warn, "a second start was ignored"),
                Ok(None) => break (true, "the agent is gone".to_owned(), None),
                Err(what) => events.log(MessageLevel::Warn, what),
            }
        };
        let mut code = 0;
        if let Some(snapshots) = taker.get() {
            snapshots.end_training();
        }
        if let (true, Some(snapshots)) = (save, taker.get()) {
            // The failure was told as an event.
            code = i32::from(snapshots.take_last(&reason, CommitPace::Hurried, within).is_err());
        }
        let step = taker.get().map_or(0, SnapshotTaker::step);
        events.send(WorkerEvent::Done { step, finished: false });
        events.flush();
        // Not exit: its handlers would tear libtorch down under the step that is being computed.
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(code) }
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(body);
    spawned.map(drop).map_err(|e| Error::Other(format!("starting the thread for {name}: {e}")))
}
