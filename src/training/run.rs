//! The loop: everything that happens, wherever it comes from, is one input of one queue; they are taken one by one, the
//! job decides, and the loop does what it wants done.
//!
//! Invariant: nothing in the loop waits for a disk, a worker, a client or a terminal: those have threads and tasks of
//! their own. Deliberately not here: what is decided (job).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::display::{LineInterval, ProgressDisplay};
use super::job::events::{JobAction, JobEvent, SessionOutcome};
use super::job::machine::{JobMachine, JobSurroundings};
use super::launch::{self, WorkerLaunch};
use super::outlets::JobOutlets;
use super::remote::{self, SessionBeginning};
use super::spare::SpareWorker;
use super::start::{self, Started};
use super::store_end;
use super::worker::{WaitingWorker, WorkerProcess};
use crate::daemon::inbox::{DaemonInput, Inbox, InboxSender};
use crate::daemon::job_file::{JobFile, JobFileWatcher};
use crate::daemon::log_keeper::LogKeeper;
use crate::daemon::printer::LogPrinter;
use crate::daemon::recorder::{Recorder, RecorderNote};
use crate::daemon::service::ServiceManager;
use crate::daemon::signals;
use crate::daemon::user_stop::UserStop;
use crate::daemon::verifier::{Verifier, VerifierReport, VerifierTask};
use crate::notices::notice_file::NoticeMemory;
use crate::notices::source::NoticeSink;
use crate::notices::sources::NoticeSources;
use crate::session::clock::ClockReading;
use ckptd_core::config::{Config, ConfigOverrides, LogLevel};
use ckptd_core::error::{Error, Result};
use ckptd_core::os::dir::Dir;
use ckptd_core::protocol::WorkerEvent;
use ckptd_core::store::layout::{self, Folder};
use ckptd_core::store::{Record, Store, StoreLock};
use ckptd_remote::job::replicator::{ReplicaTask, Replicator};

/// How long a killed worker is waited for at the end.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);
const REAP_LEAST: Duration = Duration::from_millis(50);
/// How long the record of the session is waited for at the end, and how long when there is no time.
const RECORDER_TIMEOUT: Duration = Duration::from_millis(500);
const RECORDER_LEAST: Duration = Duration::from_millis(50);
/// How long the kept log is waited for at the end.
const KEEPER_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a rotation under way is waited for at the end.
const VERIFIER_TIMEOUT: Duration = Duration::from_secs(1);

/// What a run needs besides its config.
pub struct RunOptions<'a> {
    /// The job file, and what was read from it: it is watched for changes.
    pub path: PathBuf,
    pub text: String,
    /// What the command line says otherwise.
    pub overrides: ConfigOverrides,
    pub accept_changes: bool,
    /// Take the job from another machine that owns it at the remote.
    pub take_over: bool,
    pub series: SessionSeries,
    pub printer: &'a LogPrinter,
    pub keeper: &'a LogKeeper,
    /// How often there is a line on the progress.
    pub lines: LineInterval,
    pub set_log_level: &'a dyn Fn(LogLevel),
}

/// The sessions of one process.
#[derive(Debug)]
pub struct SessionSeries {
    /// Where a session that its budget ends is followed by the next one: whether somebody has asked for an end.
    pub user_stop: Option<UserStop>,
    pub notices: NoticeMemory,
    pub is_first: bool,
}

impl SessionSeries {
    /// The first session.
    pub fn new(user_stop: Option<UserStop>) -> SessionSeries {
        SessionSeries { user_stop, notices: NoticeMemory::default(), is_first: true }
    }

    /// Whether somebody has asked for an end.
    pub fn is_stopped(&self) -> bool {
        self.user_stop.as_ref().is_some_and(UserStop::is_asked)
    }
}

/// Runs the job in the foreground, from the lock to the end of the session.
pub fn run(config: Config, options: &RunOptions<'_>) -> Result<SessionOutcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::Other(format!("starting the event loop: {e}")))?;
    let outcome = runtime.block_on(serve(config, options));
    // A blocking thread may still sit in a system call; it is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn serve(config: Config, options: &RunOptions<'_>) -> Result<SessionOutcome> {
    let series = &options.series;
    let began = start::began(&config, series.is_first)?;
    let (inputs, mut inbox) = Inbox::new();
    signals::listen(&inputs, JobEvent::Signal)?;
    let mut manager = ServiceManager::connect(config.worker.hang_timeout.0, began.at);
    let sources = NoticeSources::start(&config.session, &notices_to(&inputs), &series.notices);
    let beginning = SessionBeginning { began, take_over: options.take_over, manager: &mut manager };
    let Some(started) = start::start(&config, beginning, &inputs, &mut inbox).await? else {
        // To leave before it is up would be a failure.
        manager.ready();
        return Ok(SessionOutcome::Resume);
    };
    if !series.is_first && series.is_stopped() {
        // It came between the two sessions.
        return Ok(SessionOutcome::Resume);
    }
    let kept = options.keeper.keep(started.store.clone(), started.lock.clone());
    info!("{}: {} in {}", config.job.name, describe_model(&config), started.store.path().display());
    // Nothing that follows keeps the daemon from doing its work, and a training that is complete ends it at once.
    manager.ready();
    let Started { store, lock, run_id, records, room, status_server, replicator, data } = started;
    let store_path = store.path().to_owned();
    let outlets = JobOutlets::start(&config, (&store, &lock), &inputs, began)?;
    let helpers = Helpers::start(store, &lock, replicator, options, &inputs)?;
    let (mut job, actions) = JobMachine::new(config, run_id, options.accept_changes, records, began);
    job.tell_opening(room);
    let surroundings = JobSurroundings { slurm: sources.has_slurm(), until_done: series.user_stop.is_some() };
    let job = job.within(surroundings).trained_on(data);
    let spare = SpareWorker::default();
    let mut daemon =
        TrainingDaemon { job, helpers, inputs, worker: None, spare, outlets, options, manager, sources, store_path };
    let outcome = daemon.run(actions, &mut inbox).await;
    daemon.manager.finish(&daemon.job.progress().service_facts());
    lock.record_end(outcome.as_ref().err().map(Error::to_string));
    // The socket's file goes with its task.
    status_server.abort();
    let _ = status_server.await;
    if let Err(error) = &outcome {
        kept.note(&format!("ckptd: {error}"));
    }
    kept.finish(KEEPER_TIMEOUT);
    outcome
}

/// Where the sources of notices put them.
fn notices_to(inputs: &InboxSender<JobEvent>) -> NoticeSink {
    let inputs = inputs.clone();
    Arc::new(move |notice| {
        // The job may be over already.
        let _ = inputs.send_from_thread(JobEvent::Notice(notice));
    })
}

/// What is trained, in a few words.
fn describe_model(config: &Config) -> String {
    if !config.worker.script.is_empty() {
        return config.worker.script.join(" ");
    }
    match (&config.model.preset, &config.model.from) {
        (Some(preset), _) => preset.clone(),
        (None, Some(folder)) => folder.display().to_string(),
        (None, None) => "a model".to_owned(),
    }
}

/// The threads that touch files on behalf of the loop.
struct Helpers {
    verifier: Verifier,
    recorder: Recorder,
    job_file: JobFileWatcher,
    store: Arc<Store>,
    lock: Arc<StoreLock>,
    /// With where the snapshots are; `None`: the job has no remote.
    replicator: Option<(Replicator, Dir)>,
}

impl Helpers {
    fn start(
        store: Arc<Store>,
        lock: &Arc<StoreLock>,
        replicator: Option<Replicator>,
        options: &RunOptions<'_>,
        inputs: &InboxSender<JobEvent>,
    ) -> Result<Helpers> {
        let snapshots = store.folder(Folder::Snapshots)?;
        let replicator = replicator.map(|replicator| (replicator, snapshots));
        let to = inputs.clone();
        let verifier = Verifier::start(store.clone(), lock.clone(), move |report| {
            to.send_from_thread(match report {
                VerifierReport::Chosen(choice) => JobEvent::Chosen(choice),
                VerifierReport::ReadBack { id, result } => JobEvent::ReadBack { id, result },
            })
        })?;
        let recorder = Recorder::start(store.clone(), lock.clone())?;
        let to = inputs.clone();
        let file =
            JobFile { path: options.path.clone(), text: options.text.clone(), overrides: options.overrides.clone() };
        let job_file = JobFileWatcher::start(file, move |config| to.send_from_thread(JobEvent::Config(config)))?;
        Ok(Helpers { verifier, recorder, job_file, store, lock: lock.clone(), replicator })
    }
}

struct TrainingDaemon<'a> {
    job: JobMachine,
    helpers: Helpers,
    inputs: InboxSender<JobEvent>,
    worker: Option<WorkerProcess>,
    spare: SpareWorker,
    outlets: JobOutlets,
    options: &'a RunOptions<'a>,
    manager: ServiceManager,
    sources: NoticeSources,
    store_path: PathBuf,
}

impl TrainingDaemon<'_> {
    async fn run(&mut self, mut actions: Vec<JobAction>, inbox: &mut Inbox<JobEvent>) -> Result<SessionOutcome> {
        let mut display = ProgressDisplay::new(self.options.printer, self.options.lines);
        loop {
            let mut outcome = None;
            for action in actions {
                outcome = self.act(action).or(outcome);
            }
            if let Some(outcome) = outcome {
                self.finish(inbox).await;
                return outcome;
            }
            let now = ClockReading::now();
            display.update(self.job.progress(), now);
            let facts = self.job.progress().service_facts();
            self.outlets.hold_hooks(facts.is_stopping);
            self.manager.update(&facts, now.at);
            let manager_at = self.manager.wake_at(&facts, now.at);
            let wake_at = [self.job.wake_at(now), display.wake_at(), manager_at].into_iter().flatten().min();
            actions = match inbox.next(wake_at).await {
                Some(DaemonInput::Event(event)) => self.take(event),
                Some(DaemonInput::Status(reply)) => {
                    let _ = reply.send(self.job.report(ClockReading::now()));
                    Vec::new()
                }
                Some(DaemonInput::Order(order, reply)) => {
                    let (said, actions) = self.job.ordered(order, ClockReading::now());
                    let _ = reply.send(said);
                    actions
                }
                None => self.take(JobEvent::Tick),
            };
        }
    }

    fn take(&mut self, event: JobEvent) -> Vec<JobAction> {
        let now = ClockReading::now();
        if matches!(event, JobEvent::Exited(_)) {
            self.worker = None;
        }
        if event.is_sign_of_life() {
            self.manager.sign_of_life(now.at);
        }
        let reloaded = matches!(event, JobEvent::Config(_));
        let is_step = matches!(&event, JobEvent::Said(said) if matches!(**said, WorkerEvent::Step { .. }));
        let actions = self.job.on(event, now);
        if is_step && !self.spare.is_some() && SpareWorker::suits(self.job.config()) {
            self.prepare_spare();
        }
        if reloaded {
            self.manager.reloaded();
        }
        actions
    }

    fn act(&mut self, action: JobAction) -> Option<Result<SessionOutcome>> {
        match action {
            JobAction::Choose { discard } => self.helpers.verifier.give(VerifierTask::Choose { discard }),
            JobAction::SetAside { spoiled } => self.helpers.verifier.give(VerifierTask::SetAside { spoiled }),
            JobAction::Verify { id } => {
                self.helpers.verifier.give(VerifierTask::Verify {
                    id,
                    retention: self.job.config().retention.clone(),
                    threads: self.job.verify_threads(),
                    sure_up_to: self.job.sure_up_to(),
                });
            }
            JobAction::Replicate { id } => {
                if let Some((replicator, snapshots)) = &self.helpers.replicator {
                    self.outlets.hurry_history();
                    replicator.give(ReplicaTask::Send(snapshots.join(&layout::snapshot_file(&id))));
                }
            }
            JobAction::Spawn => {
                let event = self.spawn().unwrap_or_else(JobEvent::NotStarted);
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
            JobAction::RecordReplication(record) => self.helpers.recorder.give(RecorderNote::Replication(record)),
            JobAction::Record(records) => self.helpers.recorder.give(RecorderNote::Sessions(records)),
            JobAction::Mark(session) => self.helpers.recorder.give(RecorderNote::Mark(session)),
            JobAction::Keep(record) => self.outlets.keep(record),
            JobAction::Tell(call) => self.outlets.tell(*call),
            JobAction::Remember(config) => self.helpers.recorder.give(RecorderNote::Job(config)),
            JobAction::LookAtStore => self.look_at_store(),
            JobAction::AskSources => self.sources.look(),
            JobAction::StandStill => match &self.worker {
                Some(worker) => worker.stand_still(),
                None => signals::stand_still(),
            },
            JobAction::Reload => {
                self.manager.reloading();
                self.helpers.job_file.ask();
            }
            JobAction::SetLogLevel(level) => (self.options.set_log_level)(level),
            JobAction::End(outcome) => return Some(outcome),
        }
        None
    }

    /// Starts a script, a worker, or the launcher of its ranks.
    fn spawn(&mut self) -> Result<JobEvent> {
        let script = &self.job.config().worker.script;
        if !script.is_empty() {
            let worker = WorkerProcess::spawn_script(script, self.inputs.clone())?;
            let pid = worker.pid;
            self.worker = Some(worker);
            return Ok(JobEvent::Started { pid, ranks: 1 });
        }
        let launch = self.launch()?;
        let waiting = match self.spare.take(&launch) {
            Some(waiting) => waiting,
            None => WaitingWorker::spawn(&launch, self.helpers.lock.file())?,
        };
        let worker = waiting.attend(self.inputs.clone());
        let (pid, ranks) = (worker.pid, launch.ranks);
        self.worker = Some(worker);
        Ok(JobEvent::Started { pid, ranks })
    }

    fn launch(&self) -> Result<WorkerLaunch> {
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        launch::worker_launch(self.job.config(), self.job.recorded_threads(), &environment)
    }

    /// The training is under way: what would replace its worker gets ready.
    fn prepare_spare(&mut self) {
        if self.worker.is_some()
            && !self.job.progress().service_facts().is_stopping
            && let Ok(launch) = self.launch()
        {
            self.spare.start(launch, self.helpers.lock.file());
        }
    }

    /// Has a thread of its own say what the store holds, since the verifier may be busy with older snapshots.
    fn look_at_store(&self) {
        let (path, inputs) = (self.store_path.clone(), self.inputs.clone());
        let look = move || {
            // It may be over already.
            let _ = inputs.send_from_thread(JobEvent::Kept(store_end::kept(&path)));
        };
        if let Err(e) = std::thread::Builder::new().name("store".into()).spawn(look) {
            warn!("the store is not looked at: no thread could be started: {e}");
        }
    }

    /// Ends the worker and lets the threads complete what they have begun, in the time that is left.
    async fn finish(&mut self, inbox: &mut Inbox<JobEvent>) {
        self.spare.end().await;
        self.reap(inbox).await;
        // A rotation that has begun is better completed, but it must not hold up the end.
        let left = self.job.time_to_leave(ClockReading::now());
        self.helpers.recorder.finish(RECORDER_TIMEOUT.min(left.max(RECORDER_LEAST)));
        let left = self.job.time_to_leave(ClockReading::now());
        let wait = if self.job.is_settled() { VERIFIER_TIMEOUT.min(left) } else { Duration::ZERO };
        self.helpers.verifier.finish(wait);
        // What is to be told of the session need not wait for its upload.
        self.outlets.hold_hooks(false);
        self.finish_replication(inbox).await;
        let job = &self.job;
        self.outlets.finish(|| job.time_to_leave(ClockReading::now()));
    }

    /// Lets what is on its way to the remote arrive, in the time that is left, and says what is where.
    async fn finish_replication(&mut self, inbox: &mut Inbox<JobEvent>) {
        let Some((replicator, snapshots)) = self.helpers.replicator.take() else { return };
        if let Some(id) = self.job.owed_to_remote() {
            replicator.give(ReplicaTask::Send(snapshots.join(&layout::snapshot_file(&id))));
        }
        remote::finish(&replicator, &mut self.job, &mut self.manager, inbox, &self.outlets).await;
        if let Some(text) = self.job.replication_text(ClockReading::now()) {
            info!("{text}");
        }
        if let Some(record) = self.job.replication_record() {
            // `status` knows less without it.
            let _ = self.helpers.store.write_record(&self.helpers.lock, Record::Replication, &record);
        }
    }

    /// Leaves no worker behind that would keep the store locked.
    async fn reap(&mut self, inbox: &mut Inbox<JobEvent>) {
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
                () = inbox.discard_next() => {}
            }
        }
    }
}
