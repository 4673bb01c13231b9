//! The job's remote at the beginning and the end of a session: the wait before the first step, and the wait for what is
//! still on its way.
//!
//! Invariant: signals are heard during both. Deliberately not here: what is sent, and who owns the job (ckptd-remote).

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tracing::{info, warn};

use super::companions;
use super::job::events::{JobAction, JobEvent};
use super::job::machine::JobMachine;
use super::outlets::JobOutlets;
use crate::daemon::inbox::{DaemonInput, Inbox, InboxSender};
use crate::daemon::service::{ServiceFacts, ServiceManager};
use crate::daemon::signals::DaemonSignal;
use crate::session::clock::{BootInstant, ClockReading};
use ckptd_core::config::{Config, Lease, RemoteSection, RemoteVerify};
use ckptd_core::error::{Error, Result};
use ckptd_core::store::lock::SESSION;
use ckptd_core::store::{Store, StoreLock};
use ckptd_remote::job::owner::{OwnerSettings, TTL};
use ckptd_remote::job::replicator::{ReplicaNews, ReplicaTask, Replicator, ReplicatorSettings};
use ckptd_remote::job::send::CheckDepth;
use ckptd_remote::job::{JobError, RemoteJob};
use ckptd_remote::records::{JobRecord, VERSION};
use ckptd_remote::{RemoteSettings, RemoteUrl};

/// How often a wait looks at the clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long what is on its way is waited for where nothing limits the session's end.
const LONGEST_FINISH: Duration = Duration::from_secs(3600);
/// How long the thread's last news are waited for.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How often the service manager is told that it takes time.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// How a session begins.
pub(super) struct SessionBeginning<'a> {
    pub began: ClockReading,
    /// Take the job from another machine that owns it at the remote.
    pub take_over: bool,
    /// Hears of what takes time.
    pub manager: &'a mut ServiceManager,
}

impl SessionBeginning<'_> {
    /// When the session's budget is over.
    pub(super) fn budget_ends(&self, config: &Config) -> Option<BootInstant> {
        config.session.budget.map(|budget| self.began.at + budget.0)
    }
}

/// Where a job is.
#[derive(Clone, Debug)]
pub struct RemotePlace {
    /// `[remote] url`.
    pub url: String,
    /// `[remote] endpoint`; `None`: as the environment says.
    pub endpoint: Option<String>,
}

impl RemotePlace {
    /// As a job file says; none where it names no remote.
    pub fn of(remote: &RemoteSection) -> Option<RemotePlace> {
        Some(RemotePlace { url: remote.url.clone()?, endpoint: remote.endpoint.clone() })
    }
}

impl From<&str> for RemotePlace {
    fn from(url: &str) -> RemotePlace {
        RemotePlace { url: url.to_owned(), endpoint: None }
    }
}

impl From<&String> for RemotePlace {
    fn from(url: &String) -> RemotePlace {
        RemotePlace::from(url.as_str())
    }
}

/// The job at `place`.
pub async fn open(place: RemotePlace) -> Result<RemoteJob, JobError> {
    let url: RemoteUrl = place.url.parse().map_err(|e| Error::Config(format!("[remote] url: {e}")))?;
    let settings = RemoteSettings { endpoint: place.endpoint, ..RemoteSettings::of_process() };
    Ok(RemoteJob::new(ckptd_remote::open(&url, &settings).await?))
}

/// How a snapshot is checked there, as a job file says.
pub fn depth(verify: RemoteVerify) -> CheckDepth {
    match verify {
        RemoteVerify::Auto => CheckDepth::Auto,
        RemoteVerify::Whole => CheckDepth::Whole,
        RemoteVerify::Share(share) => CheckDepth::Share(share),
    }
}

/// How a job is replicated, as its file says.
fn settings(config: &Config, take_over: bool) -> ReplicatorSettings {
    let (remote, who) = (&config.remote, format!("{SESSION}, job {}", config.job.name));
    let (ttl, fenced) = match remote.lease {
        Lease::Ttl(ttl) => (ttl, true),
        Lease::None => (TTL, false),
    };
    ReplicatorSettings {
        owner: OwnerSettings { ttl, fenced, take_over, who },
        depth: depth(remote.verify),
        max_rate: remote.max_rate.map(|rate| rate.0),
        retention: remote.retention(),
        job: serde_json::to_value(config).ok().map(|config| JobRecord { version: VERSION, config }),
        companions: companions::source(config),
    }
}

/// Starts replication, and waits until the store is as new as the remote and the job this process's. Breaks off where a
/// signal or the budget ended the wait; `None`: the job has no remote.
pub(super) async fn begin(
    config: &Config,
    (store, lock): (&Arc<Store>, &Arc<StoreLock>),
    beginning: SessionBeginning<'_>,
    inputs: &InboxSender<JobEvent>,
    inbox: &mut Inbox<JobEvent>,
) -> Result<ControlFlow<(), Option<Replicator>>> {
    let Some(place) = RemotePlace::of(&config.remote) else { return Ok(ControlFlow::Continue(None)) };
    let url = place.url.clone();
    info!("asking {url} for what is newer there");
    let settings = settings(config, beginning.take_over);
    let pair = (store.clone(), lock.clone());
    let replicator = Replicator::start(open(place), pair, settings, news_to(inputs)?)?;
    let mut held = Vec::new();
    let budget_ends = beginning.budget_ends(config);
    let mut tell_at = BootInstant::now();
    loop {
        let now = BootInstant::now();
        if budget_ends.is_some_and(|end| now >= end) {
            return Ok(ControlFlow::Break(()));
        }
        if now >= tell_at {
            beginning.manager.starting(&format!("asking {url} for what is newer there"));
            tell_at = now + TELL_INTERVAL;
        }
        match inbox.next(Some(BootInstant::now() + LOOK_INTERVAL)).await {
            Some(DaemonInput::Event(JobEvent::Remote(ReplicaNews::Began(began)))) => {
                // Why is news of its own.
                if began?.is_some() {
                    info!("the training goes on from what is here, and is replicated when {url} works again");
                }
                inbox.hold(held);
                return Ok(ControlFlow::Continue(Some(replicator)));
            }
            Some(DaemonInput::Event(JobEvent::Remote(ReplicaNews::Told(line)))) => info!("{line}"),
            Some(DaemonInput::Event(JobEvent::Remote(ReplicaNews::Warned(line)))) => warn!("{line}"),
            Some(DaemonInput::Event(JobEvent::Signal(
                DaemonSignal::Interrupt | DaemonSignal::Terminate | DaemonSignal::Finish,
            ))) => return Ok(ControlFlow::Break(())),
            Some(input) => held.push(input),
            None => {}
        }
    }
}

/// Lets what is on its way arrive, in the time that is left; an impatient signal ends the wait.
pub(super) async fn finish(
    replicator: &Replicator,
    job: &mut JobMachine,
    manager: &mut ServiceManager,
    inbox: &mut Inbox<JobEvent>,
    outlets: &JobOutlets,
) {
    // What else it wants done is over.
    let keep = |actions: Vec<JobAction>| {
        for action in actions {
            match action {
                JobAction::Keep(record) => outlets.keep(record),
                JobAction::Tell(call) => outlets.tell(*call),
                _ => {}
            }
        }
    };
    // How the session ended goes with the last of the history.
    outlets.flush_history(job.time_to_leave(ClockReading::now()));
    replicator.give(ReplicaTask::Finish);
    let until = BootInstant::now() + LONGEST_FINISH;
    // An order may shorten it.
    while !replicator.has_ended() && BootInstant::now() < until && !job.time_to_leave(ClockReading::now()).is_zero() {
        let input = inbox.next(Some(BootInstant::now() + LOOK_INTERVAL)).await;
        let now = ClockReading::now();
        match input {
            Some(DaemonInput::Event(JobEvent::Signal(signal))) if job.ends_the_wait(signal, now) => break,
            Some(DaemonInput::Event(JobEvent::Signal(_))) | None => {}
            Some(DaemonInput::Event(event)) => keep(job.on(event, now)),
            Some(DaemonInput::Status(reply)) => drop(reply.send(job.report(now))),
            Some(DaemonInput::Order(order, reply)) => drop(reply.send(job.ordered(order, now).0)),
        }
        let facts = ServiceFacts { is_stopping: true, ..job.progress().service_facts() };
        manager.update(&facts, now.at);
    }
    // What it said last may still be on its way.
    while let Some(DaemonInput::Event(event)) = inbox.next(Some(BootInstant::now() + LAST_WORDS)).await {
        keep(job.on(event, ClockReading::now()));
    }
}

/// Passes news on to the loop, from a thread that may wait for it.
fn news_to(inputs: &InboxSender<JobEvent>) -> Result<impl Fn(ReplicaNews) -> ControlFlow<()> + Send + Sync + 'static> {
    let (to, news) = mpsc::channel();
    let inputs = inputs.clone();
    let pass_on = move || {
        for news in news {
            if inputs.send_from_thread(JobEvent::Remote(news)).is_break() {
                return;
            }
        }
    };
    let starting = |e| Error::Other(format!("starting a thread: {e}"));
    std::thread::Builder::new().name("remote news".into()).spawn(pass_on).map_err(starting)?;
    let to = Mutex::new(to);
    Ok(move |news| match to.lock().unwrap_or_else(|e| e.into_inner()).send(news) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    })
}
