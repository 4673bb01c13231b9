//! The agent: keeps one training running, and vouches for what it saves.
//!
//! Everything that happens, wherever it comes from, becomes one [`Input`] of one queue; [`run`] takes them one by one,
//! lets the [`job`] decide and does what it wants done. Nothing in the loop waits for a disk, a worker, a client or a
//! terminal: those have threads and tasks of their own.
//!
//! Reading order: [`job`] (what is done about what), [`restarts`] and [`pace`] (its policies), [`worker`], [`keeper`],
//! [`status`], [`printer`].

pub mod job;
pub mod keeper;
pub mod pace;
pub mod printer;
pub mod progress;
pub mod restarts;
mod start;
pub mod status;
pub mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

pub use job::Outcome;
use job::{Action, Event, Job, Now, Signal};
use keeper::{Keeper, Task};
use printer::{Panel, Printer};
use progress::{Progress, Report, State};
use worker::Worker;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::Store;

/// What the loop takes in.
pub enum Input {
    Job(Event),
    /// Somebody asks for the status.
    Status(oneshot::Sender<Report>),
}

/// Inputs that wait; a worker that says more than is taken in has to wait, too.
const QUEUE: usize = 1024;
/// Time between two lines on the progress, and between two looks of the panel.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const PANEL_INTERVAL: Duration = Duration::from_millis(500);
/// How long a killed worker is waited for at the end.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a rotation under way is waited for at the end.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the job in the foreground, from the lock to the end of the session.
pub fn run(config: Config, accept_changes: bool, printer: &Printer) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::Other(format!("starting the event loop: {e}")))?;
    let outcome = runtime.block_on(serve(config, accept_changes, printer));
    // A blocking thread may still sit in a system call; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config, accept_changes: bool, printer: &Printer) -> Result<Outcome> {
    let began = Now::read();
    let (inputs, queue) = mpsc::channel(QUEUE);
    listen_to_signals(&inputs)?;
    let mut queue = Queue { inputs: queue };
    let store = Arc::new(Store::create(&config.job.store)?);
    let Some(mut lock) = start::lock(&store, &config.job.name, &mut queue).await? else { return Ok(Outcome::Resume) };
    store.clean_staging()?;
    let run_id = start::run_id(&store)?;
    if let Err(e) = store.set_job(&config) {
        // A full disk must not keep a training from going on: only `status` and `list` know less for it.
        warn!("the job is not remembered in the store: {e}");
    }
    let server = match status::StatusSocket::bind(&config.status.socket) {
        Ok(socket) => tokio::spawn(socket.serve(inputs.clone())),
        Err(error @ Error::Config(_)) => return Err(error),
        Err(error) => {
            // Some shared and cloud file systems know no sockets, which is no reason not to train.
            warn!("{error}; `ckptd status` will show the store's files only");
            tokio::spawn(std::future::ready(()))
        }
    };
    info!("{}: {} in {}", config.job.name, start::describe(&config), store.path().display());
    let keeper = Keeper::start(store, inputs.clone())?;
    let (job, actions) = Job::new(config.clone(), run_id, accept_changes, began);
    let mut agent = Agent { config, job, keeper, inputs, worker: None };
    let outcome = agent.run(actions, &mut queue, printer).await;
    lock.ended(outcome.as_ref().err().map(Error::to_string));
    // The socket's file goes with its task.
    server.abort();
    let _ = server.await;
    outcome
}

/// The queue's receiving end, which names what it takes out.
pub struct Queue {
    inputs: mpsc::Receiver<Input>,
}

impl Queue {
    /// The next input, or the tick at `wake_at`.
    async fn next(&mut self, wake_at: Option<Instant>) -> Input {
        let input = match wake_at {
            None => self.inputs.recv().await,
            Some(at) => match tokio::time::timeout_at(at.into(), self.inputs.recv()).await {
                Ok(input) => input,
                Err(_) => return Input::Job(Event::Tick),
            },
        };
        // The agent holds a sender itself, so that the queue never closes.
        input.unwrap_or(Input::Job(Event::Tick))
    }
}

struct Agent {
    config: Config,
    job: Job,
    keeper: Keeper,
    inputs: mpsc::Sender<Input>,
    worker: Option<Worker>,
}

impl Agent {
    async fn run(&mut self, mut actions: Vec<Action>, queue: &mut Queue, printer: &Printer) -> Result<Outcome> {
        let mut show = Show::new(printer);
        loop {
            let mut outcome = None;
            for action in actions {
                outcome = self.act(action).or(outcome);
            }
            if let Some(outcome) = outcome {
                self.bury(queue).await;
                // A rotation that has begun is better completed, but it must not hold up the end.
                self.keeper.finish(if self.job.is_settled() { KEEPER_TIMEOUT } else { Duration::ZERO });
                return outcome;
            }
            show.update(self.job.progress(), Instant::now());
            let wake_at = [self.job.wake_at(Now::read()), show.wake_at()].into_iter().flatten().min();
            actions = match queue.next(wake_at).await {
                Input::Job(event) => {
                    if matches!(event, Event::Exited(_)) {
                        self.worker = None;
                    }
                    self.job.on(event, Now::read())
                }
                Input::Status(reply) => {
                    let _ = reply.send(self.job.progress().report(Timestamp::now()));
                    Vec::new()
                }
            };
        }
    }

    fn act(&mut self, action: Action) -> Option<Result<Outcome>> {
        match action {
            Action::Choose { discard } => self.keeper.give(Task::Choose { discard }),
            Action::Verify { id } => {
                self.keeper.give(Task::Verify { id, retention: self.config.retention.clone() });
            }
            Action::Spawn => {
                let event = match Worker::spawn(&self.config.worker.command, self.inputs.clone()) {
                    Ok(worker) => {
                        let pid = worker.pid;
                        self.worker = Some(worker);
                        Event::Started { pid }
                    }
                    Err(error) => Event::NotStarted(error),
                };
                // Neither asks for more than to end.
                let more = self.job.on(event, Now::read());
                return more.into_iter().find_map(|action| self.act(action));
            }
            Action::Send(command) => {
                if let Some(worker) = &self.worker {
                    worker.send(command);
                }
            }
            Action::Kill => {
                if let Some(worker) = &self.worker {
                    worker.kill();
                }
            }
            Action::End(outcome) => return Some(outcome),
        }
        None
    }

    /// Leaves no worker behind that would keep the store locked.
    async fn bury(&mut self, queue: &mut Queue) {
        let Some(worker) = self.worker.take() else { return };
        worker.kill();
        let deadline = tokio::time::Instant::now() + REAP_TIMEOUT;
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
    next: Instant,
    step: u64,
}

impl Show<'_> {
    fn new(printer: &Printer) -> Show<'_> {
        Show { printer, next: Instant::now(), step: 0 }
    }

    fn wake_at(&self) -> Option<Instant> {
        self.printer.is_live().then_some(self.next)
    }

    fn update(&mut self, progress: &Progress, now: Instant) {
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
                if inputs.send(Input::Job(Event::Signal(name))).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}
