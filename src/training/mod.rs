//! The agent: keeps one training running, and vouches for what it saves.
//!
//! Everything that happens, wherever it comes from, becomes one [`Input`] of one queue; [`run`] takes them one by one,
//! lets the [`job`] decide and does what it wants done. Nothing in the loop waits for a disk, a worker, a client or a
//! terminal: those have threads and tasks of their own.
//!
//! Reading order: [`job`] (what is done about what), [`restarts`] (one of its policies; the other is the session's
//! plan), [`worker`], [`keeper`], [`scribe`], [`watcher`], [`status`], [`service`],
//! [`printer`].

pub mod job;
pub mod progress;
pub mod restarts;
mod start;
pub mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::daemon::printer::{Panel, Printer};
use crate::daemon::recorder::{Note, Scribe};
use crate::daemon::service::ServiceManager;
use crate::daemon::verifier::{Keeper, Task};
use crate::daemon::watcher::Watcher;
pub use job::Outcome;
use job::{ClockReading, Job, JobAction, JobEvent, Signal};
use progress::{Progress, Report, State};
use worker::Worker;

use crate::notices::{Sink, Sources};
use crate::session::clock::BootInstant;
use ckptd_core::config::{Config, LogLevel};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;
use ckptd_core::store::{Record, Store};

/// What the loop takes in.
pub enum Input {
    Job(JobEvent),
    /// Somebody asks for the status.
    Status(oneshot::Sender<Report>),
}

/// Inputs that wait; a worker that says more than is taken in has to wait, too.
const QUEUE: usize = 1024;
/// Time between two lines on the progress, and between two looks of the panel.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const PANEL_INTERVAL: Duration = Duration::from_millis(500);
/// The timer stands still while the machine sleeps, and the wall's clock may be set: both are looked at this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long a killed worker is waited for at the end.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);
const REAP_LEAST: Duration = Duration::from_millis(50);

/// How long the record of the session is waited for at the end, and how long when there is no time.
const SCRIBE_TIMEOUT: Duration = Duration::from_millis(500);
const SCRIBE_LEAST: Duration = Duration::from_millis(50);
/// How long a rotation under way is waited for at the end.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(1);

/// What a run needs besides its config.
pub struct Surroundings<'a> {
    /// The job file, and what was read from it: it is watched for changes.
    pub path: std::path::PathBuf,
    pub text: String,
    pub accept_changes: bool,
    /// Snapshots hold the hash of the model's answers, whatever the job file says.
    pub probe: bool,
    pub printer: &'a Printer,
    pub set_log_level: &'a dyn Fn(LogLevel),
}

/// Runs the job in the foreground, from the lock to the end of the session.
pub fn run(config: Config, surroundings: &Surroundings<'_>) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::Other(format!("starting the event loop: {e}")))?;
    let outcome = runtime.block_on(serve(config, surroundings));
    // A blocking thread may still sit in a system call; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config, surroundings: &Surroundings<'_>) -> Result<Outcome> {
    let began = start::began(&config)?;
    let (inputs, queue) = mpsc::channel(QUEUE);
    listen_to_signals(&inputs)?;
    let mut queue = Queue { inputs: queue, held: VecDeque::new() };
    let mut manager = ServiceManager::connect(config.worker.hang_timeout.0, began.at);
    let _sources = Sources::start(&config.session, &notices_to(&inputs));
    let store = Arc::new(Store::create(&config.job.store)?);
    let Some(lock) = start::lock(&store, &config, began, &mut queue).await?.map(Arc::new) else {
        // To leave before it is up would be a failure.
        manager.ready();
        return Ok(Outcome::Resume);
    };
    let run_id = store.begin_run(&lock, RunId::random)?;
    debug!("the run is {run_id}");
    if let Err(e) = store.write_record(&lock, Record::Job, &config) {
        // A full disk must not keep a training from going on: only `status` and `list` know less for it.
        warn!("the job is not remembered in the store: {e}");
    }
    let server = match crate::daemon::status::StatusSocket::bind(&config.status.socket) {
        Ok(socket) => tokio::spawn(socket.serve(inputs.clone())),
        Err(error @ Error::Config(_)) => return Err(error),
        Err(error) => {
            // Some shared and cloud file systems know no sockets, which is no reason not to train.
            warn!("{error}; `ckptd status` will show the store's files only");
            tokio::spawn(std::future::ready(()))
        }
    };
    info!("{}: {} in {}", config.job.name, start::describe(&config), store.path().display());
    // Nothing that follows keeps the daemon from doing its work, and a training that is complete ends it at once.
    manager.ready();
    let records = store.read_record(Record::Sessions).ok().flatten().unwrap_or_default();
    let keeper = Keeper::start(store.clone(), lock.clone(), inputs.clone())?;
    let scribe = Scribe::start(store, lock.clone())?;
    let watcher = Watcher::start(surroundings.path.clone(), surroundings.text.clone(), inputs.clone())?;
    let (job, actions) = Job::new(config, run_id, surroundings.accept_changes, records, began);
    let mut agent = Agent { job, keeper, scribe, watcher, inputs, worker: None, surroundings, manager };
    let outcome = agent.run(actions, &mut queue).await;
    agent.manager.finish(agent.job.progress());
    lock.record_end(outcome.as_ref().err().map(Error::to_string));
    // The socket's file goes with its task.
    server.abort();
    let _ = server.await;
    outcome
}

/// The queue's receiving end, which names what it takes out.
pub struct Queue {
    inputs: mpsc::Receiver<Input>,
    /// What came before anybody could deal with it.
    held: VecDeque<Input>,
}

impl Queue {
    /// The next input, or the tick at `wake_at`.
    async fn next(&mut self, wake_at: Option<BootInstant>) -> Input {
        if let Some(input) = self.held.pop_front() {
            return input;
        }
        let input = match wake_at {
            None => self.inputs.recv().await,
            Some(at) => {
                match tokio::time::timeout((at - BootInstant::now()).min(LONGEST_SLEEP), self.inputs.recv()).await {
                    Ok(input) => input,
                    Err(_) => return Input::Job(JobEvent::Tick),
                }
            }
        };
        // The agent holds a sender itself, so that the queue never closes.
        input.unwrap_or(Input::Job(JobEvent::Tick))
    }
}

struct Agent<'a> {
    job: Job,
    keeper: Keeper,
    scribe: Scribe,
    watcher: Watcher,
    inputs: mpsc::Sender<Input>,
    worker: Option<Worker>,
    surroundings: &'a Surroundings<'a>,
    manager: ServiceManager,
}

impl Agent<'_> {
    async fn run(&mut self, mut actions: Vec<JobAction>, queue: &mut Queue) -> Result<Outcome> {
        let mut show = Show::new(self.surroundings.printer);
        loop {
            let mut outcome = None;
            for action in actions {
                outcome = self.act(action).or(outcome);
            }
            if let Some(outcome) = outcome {
                self.bury(queue).await;
                // A rotation that has begun is better completed, but it must not hold up the end.
                let left = self.job.time_to_leave(ClockReading::now());
                self.scribe.finish(SCRIBE_TIMEOUT.min(left.max(SCRIBE_LEAST)));
                let left = self.job.time_to_leave(ClockReading::now());
                self.keeper.finish(if self.job.is_settled() { KEEPER_TIMEOUT.min(left) } else { Duration::ZERO });
                return outcome;
            }
            show.update(self.job.progress(), BootInstant::now());
            let now = ClockReading::now();
            self.manager.update(self.job.progress(), now.at);
            let manager_at = self.manager.wake_at(self.job.progress(), now.at);
            let wake_at = [self.job.wake_at(now), show.wake_at(), manager_at].into_iter().flatten().min();
            actions = match queue.next(wake_at).await {
                Input::Job(mut event) => {
                    let now = ClockReading::now();
                    if let JobEvent::Config(Ok(config)) = &mut event {
                        config.snapshot.probe |= self.surroundings.probe;
                    }
                    if matches!(event, JobEvent::Exited(_)) {
                        self.worker = None;
                    }
                    if event.is_sign_of_life() {
                        self.manager.sign_of_life(now.at);
                    }
                    let reloaded = matches!(event, JobEvent::Config(_));
                    let actions = self.job.on(event, now);
                    if reloaded {
                        self.manager.reloaded();
                    }
                    actions
                }
                Input::Status(reply) => {
                    let _ = reply.send(self.job.report(ClockReading::now()));
                    Vec::new()
                }
            };
        }
    }

    fn act(&mut self, action: JobAction) -> Option<Result<Outcome>> {
        match action {
            JobAction::Choose { discard } => self.keeper.give(Task::Choose { discard }),
            JobAction::Verify { id } => {
                self.keeper.give(Task::Verify {
                    id,
                    retention: self.job.config().retention.clone(),
                    threads: self.job.verify_threads(),
                });
            }
            JobAction::Spawn => {
                let event = match Worker::spawn(&self.job.config().worker.command, self.inputs.clone()) {
                    Ok(worker) => {
                        let pid = worker.pid;
                        self.worker = Some(worker);
                        JobEvent::Started { pid }
                    }
                    Err(error) => JobEvent::NotStarted(error),
                };
                // Neither asks for more than to end.
                let more = self.job.on(event, ClockReading::now());
                return more.into_iter().find_map(|action| self.act(action));
            }
            JobAction::Send(command) => {
                if let Some(worker) = &self.worker {
                    worker.send(command);
                }
            }
            JobAction::Kill => {
                if let Some(worker) = &self.worker {
                    worker.kill();
                }
            }
            JobAction::Record(records) => self.scribe.give(Note::SessionRecords(records)),
            JobAction::Remember(config) => self.scribe.give(Note::Job(config)),
            JobAction::Reload => {
                self.manager.reloading();
                self.watcher.ask();
            }
            JobAction::SetLogLevel(level) => (self.surroundings.set_log_level)(level),
            JobAction::End(outcome) => return Some(outcome),
        }
        None
    }

    /// Leaves no worker behind that would keep the store locked.
    async fn bury(&mut self, queue: &mut Queue) {
        let Some(worker) = self.worker.take() else { return };
        worker.kill();
        // One that is slow to die keeps the lock until it has, and the next run waits for it.
        let left = self.job.time_to_leave(ClockReading::now()).max(REAP_LEAST);
        let deadline = tokio::time::Instant::now() + REAP_TIMEOUT.min(left);
        let gone = worker.gone();
        tokio::pin!(gone);
        loop {
            tokio::select! {
                () = &mut gone => return,
                () = tokio::time::sleep_until(deadline) => return,
                // What it still says must not fill the queue, or it would never be gone.
                _ = queue.inputs.recv() => {}
            }
        }
    }
}

/// What the user sees of the progress: the panel, or a line now and then.
struct Show<'a> {
    printer: &'a Printer,
    next: BootInstant,
    step: u64,
}

impl Show<'_> {
    fn new(printer: &Printer) -> Show<'_> {
        Show { printer, next: BootInstant::now(), step: 0 }
    }

    fn wake_at(&self) -> Option<BootInstant> {
        self.printer.is_live().then_some(self.next)
    }

    fn update(&mut self, progress: &Progress, now: BootInstant) {
        if now < self.next {
            return;
        }
        if self.printer.is_live() {
            self.next = now + PANEL_INTERVAL;
            let now = Timestamp::now();
            self.printer.panel(Panel {
                step: progress.step,
                total_steps: progress.total_steps,
                outlook: progress.outlook_text(now),
                figures: progress.figures_text(now),
            });
        } else if progress.state == State::Training && progress.step > self.step {
            self.next = now + LINE_INTERVAL;
            let (step, loss, tokens_per_second) = (progress.step, progress.loss, progress.tokens_per_second());
            info!(step, loss, tokens_per_second, "{}", progress.line_text());
        }
        self.step = progress.step;
    }
}

/// Where the sources of notices put them.
fn notices_to(inputs: &mpsc::Sender<Input>) -> Sink {
    let inputs = inputs.clone();
    Arc::new(move |notice| {
        // The job may be over already.
        let _ = inputs.blocking_send(Input::Job(JobEvent::Notice(notice)));
    })
}

fn listen_to_signals(inputs: &mpsc::Sender<Input>) -> Result<()> {
    let kinds = [
        (SignalKind::interrupt(), Signal::Interrupt),
        (SignalKind::terminate(), Signal::Terminate),
        (SignalKind::user_defined1(), Signal::Snapshot),
        (SignalKind::user_defined2(), Signal::Finish),
        (SignalKind::hangup(), Signal::Hangup),
    ];
    for (kind, name) in kinds {
        let mut stream = signal(kind).map_err(|e| Error::Other(format!("listening to signals: {e}")))?;
        let inputs = inputs.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if inputs.send(Input::Job(JobEvent::Signal(name))).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
