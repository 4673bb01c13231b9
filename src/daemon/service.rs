//! What the service manager is told: that the daemon is up, how the job goes, that it lives, that it ends.
//!
//! Invariant: the watchdog is fed by the job and not by a clock: a ping says that there was a sign of life since the
//! last one. In phases without a speaker (between two workers, while the last snapshot is written and read back) pings
//! go on for as long as a silence may last, and then end, too. Nothing here waits for the service manager. Deliberately
//! not here: when the job counts as hung (job), what systemd does about it (the unit).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

use crate::once_flag::OnceFlag;
use crate::session::clock::BootInstant;

/// Between two changes of the status text.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// While the session ends the manager is asked for this much more time, this often: a daemon that hangs does not ask.
const EXTENSION: Duration = Duration::from_secs(15);
const EXTENSION_INTERVAL: Duration = Duration::from_secs(5);
/// In a phase without a speaker a silence may last this long, or as long as the worker's.
const QUIET_LIMIT: Duration = Duration::from_secs(600);
/// How long the last message is waited for.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages that wait for a manager that takes none.
const OUTBOX: usize = 64;

/// What the manager is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    pub is_stopping: bool,
    /// The next session follows in this process: nothing ends that the manager knows of.
    pub goes_on: bool,
    pub has_worker: bool,
    /// What the job does, and what is safe.
    pub status: String,
}

/// A message, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ServiceMessage {
    Ready,
    Reloading,
    Status(String),
    Alive,
    Stopping,
    MoreTime,
}

/// The way to the service manager; without one it says nothing.
pub struct ServiceManager {
    outbox: Option<SyncSender<Vec<ServiceMessage>>>,
    sent: Receiver<()>,
    account: Account,
    /// It was told that the config is being read again.
    is_reloading: OnceFlag,
}

impl ServiceManager {
    /// The manager that NOTIFY_SOCKET names, if there is one. `hang_timeout`: what a silence of the worker may last.
    pub fn connect(hang_timeout: Duration, now: BootInstant) -> ServiceManager {
        let (outbox, messages) = sync_channel::<Vec<ServiceMessage>>(OUTBOX);
        // Its other end is dropped when all is sent.
        let (all_sent, sent) = sync_channel(0);
        let talk = move || {
            let _all_sent: SyncSender<()> = all_sent;
            for message in messages {
                send(&message);
            }
        };
        let is_managed = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty());
        let talks = is_managed && std::thread::Builder::new().name("notify".into()).spawn(talk).is_ok();
        let watchdog = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
        ServiceManager {
            outbox: talks.then_some(outbox),
            sent,
            account: Account::new(watchdog, hang_timeout.max(QUIET_LIMIT), now),
            is_reloading: OnceFlag::default(),
        }
    }

    /// The daemon is up: it holds the store, and answers status requests.
    pub fn ready(&mut self) {
        self.send(vec![ServiceMessage::Ready]);
    }

    /// The daemon does `what` before it is up, which takes as long as it takes; to be said again every few seconds.
    pub fn starting(&mut self, what: &str) {
        self.send(vec![ServiceMessage::Status(one_line(what)), ServiceMessage::MoreTime]);
    }

    /// The job file is being read again, because it was asked to.
    pub fn reloading(&mut self) {
        self.is_reloading.raise();
        self.send(vec![ServiceMessage::Reloading]);
    }

    /// The job file was read again.
    pub fn reloaded(&mut self) {
        if self.is_reloading.lower() {
            self.ready();
        }
    }

    /// The worker or the verifier has shown that it lives.
    pub fn sign_of_life(&mut self, now: BootInstant) {
        self.account.sign_of_life(now);
    }

    /// Says what is due.
    pub fn update(&mut self, facts: &ServiceFacts, now: BootInstant) {
        if self.outbox.is_some() {
            let words = self.account.due(facts, now);
            self.send(words);
        }
    }

    /// When [`ServiceManager::update`] is wanted at the latest.
    pub fn wake_at(&self, facts: &ServiceFacts, now: BootInstant) -> Option<BootInstant> {
        self.outbox.as_ref().and_then(|_| self.account.wake_at(facts, now))
    }

    /// Says the last words, and waits until they are on their way.
    pub fn finish(mut self, facts: &ServiceFacts) {
        let mut last = vec![ServiceMessage::Status(one_line(&facts.status))];
        if !facts.goes_on {
            last.insert(0, ServiceMessage::Stopping);
        }
        self.send(last);
        if self.outbox.take().is_some() {
            let _ = self.sent.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    fn send(&mut self, words: Vec<ServiceMessage>) {
        if let Some(outbox) = self.outbox.as_ref().filter(|_| !words.is_empty()) {
            // A manager that takes nothing must not hold up the training.
            let _ = outbox.try_send(words);
        }
    }
}

fn send(words: &[ServiceMessage]) {
    let mut states = Vec::new();
    for word in words {
        match word {
            ServiceMessage::Ready => states.push(NotifyState::Ready),
            ServiceMessage::Reloading => {
                states.push(NotifyState::Reloading);
                states.extend(NotifyState::monotonic_usec_now());
            }
            ServiceMessage::Status(text) => states.push(NotifyState::Status(text)),
            ServiceMessage::Alive => states.push(NotifyState::Watchdog),
            ServiceMessage::Stopping => states.push(NotifyState::Stopping),
            ServiceMessage::MoreTime => states.push(NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32)),
        }
    }
    if let Err(e) = sd_notify::notify(&states) {
        debug!("the service manager is not told: {e}");
    }
}

/// What was said and when; what is due follows from it.
struct Account {
    /// The manager gives the service up after so long without a ping.
    watchdog: Option<Duration>,
    quiet_limit: Duration,
    last_sign: BootInstant,
    /// There was a sign of life since the last ping.
    has_lived: bool,
    last_ping: Option<BootInstant>,
    status: String,
    last_status: Option<BootInstant>,
    said_stopping: OnceFlag,
    last_extension: Option<BootInstant>,
}

impl Account {
    fn new(watchdog: Option<Duration>, quiet_limit: Duration, now: BootInstant) -> Account {
        Account {
            watchdog,
            quiet_limit,
            last_sign: now,
            has_lived: true,
            last_ping: None,
            status: String::new(),
            last_status: None,
            said_stopping: OnceFlag::default(),
            last_extension: None,
        }
    }

    fn sign_of_life(&mut self, now: BootInstant) {
        self.has_lived = true;
        self.last_sign = now;
    }

    fn due(&mut self, facts: &ServiceFacts, now: BootInstant) -> Vec<ServiceMessage> {
        let mut words = Vec::new();
        if self.status != facts.status && now >= next(self.last_status, STATUS_INTERVAL, now) {
            self.status.clone_from(&facts.status);
            self.last_status = Some(now);
            words.push(ServiceMessage::Status(one_line(&facts.status)));
        }
        if self.may_ping(facts, now) && self.ping_at(now).is_some_and(|at| now >= at) {
            self.has_lived = false;
            self.last_ping = Some(now);
            words.push(ServiceMessage::Alive);
        }
        if facts.is_stopping && !facts.goes_on {
            if self.said_stopping.raise() {
                words.push(ServiceMessage::Stopping);
            }
            if now >= next(self.last_extension, EXTENSION_INTERVAL, now) {
                self.last_extension = Some(now);
                words.push(ServiceMessage::MoreTime);
            }
        }
        words
    }

    fn wake_at(&self, facts: &ServiceFacts, now: BootInstant) -> Option<BootInstant> {
        let status = (self.status != facts.status).then(|| next(self.last_status, STATUS_INTERVAL, now));
        let ping = self.ping_at(now).filter(|_| self.may_ping(facts, now));
        let ends = facts.is_stopping && !facts.goes_on;
        let extension = ends.then(|| next(self.last_extension, EXTENSION_INTERVAL, now));
        [status, ping, extension].into_iter().flatten().min()
    }

    fn may_ping(&self, facts: &ServiceFacts, now: BootInstant) -> bool {
        let is_quiet = !facts.has_worker || facts.is_stopping;
        self.has_lived || (is_quiet && now - self.last_sign < self.quiet_limit)
    }

    /// Four pings in the time that the manager waits for one.
    fn ping_at(&self, now: BootInstant) -> Option<BootInstant> {
        self.watchdog.map(|watchdog| next(self.last_ping, watchdog / 4, now))
    }
}

/// A line feed would begin another message.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

/// `interval` after `last`, or at once.
fn next(last: Option<BootInstant>, interval: Duration, now: BootInstant) -> BootInstant {
    last.map_or(now, |last| last + interval)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> BootInstant {
        BootInstant::since_boot(Duration::from_secs(1000 + seconds))
    }

    fn account() -> Account {
        Account::new(Some(Duration::from_secs(40)), Duration::from_secs(600), at(0))
    }

    fn facts(is_stopping: bool, has_worker: bool) -> ServiceFacts {
        ServiceFacts { is_stopping, goes_on: false, has_worker, status: String::new() }
    }

    #[test]
    fn a_worker_that_falls_silent_is_not_pinged_for_and_one_that_speaks_is() {
        let (mut account, trains) = (account(), facts(false, true));
        assert_eq!(account.due(&trains, at(0)), [ServiceMessage::Alive]);
        for second in 1..100 {
            assert_eq!(account.due(&trains, at(second)), [], "a clock fed the watchdog");
            assert_eq!(account.wake_at(&trains, at(second)), None);
        }
        account.sign_of_life(at(100));
        assert_eq!(account.due(&trains, at(100)), [ServiceMessage::Alive]);
        // One that comes early is passed on when it is due.
        account.sign_of_life(at(101));
        assert_eq!((account.due(&trains, at(101)), account.wake_at(&trains, at(101))), (vec![], Some(at(110))));
        assert_eq!(account.due(&trains, at(110)), [ServiceMessage::Alive]);
    }

    #[test]
    fn phases_without_a_speaker_are_pinged_for_until_they_last_too_long() {
        let (mut account, between) = (account(), facts(false, false));
        let pings: Vec<u64> =
            (0..2000).filter(|s| account.due(&between, at(*s)).contains(&ServiceMessage::Alive)).collect();
        assert_eq!(pings.first(), Some(&0));
        assert!(pings.windows(2).all(|pair| pair[1] - pair[0] == 10));
        assert!((590..600).contains(pings.last().unwrap()), "{pings:?}");
    }

    #[test]
    fn an_end_is_announced_once_and_asks_for_more_time_as_long_as_it_lasts() {
        let (mut account, ends) = (account(), facts(true, true));
        assert_eq!(
            account.due(&ends, at(0)),
            [ServiceMessage::Alive, ServiceMessage::Stopping, ServiceMessage::MoreTime]
        );
        assert_eq!((account.due(&ends, at(1)), account.wake_at(&ends, at(1))), (vec![], Some(at(5))));
        assert_eq!(account.due(&ends, at(5)), [ServiceMessage::MoreTime]);
        assert_eq!(account.due(&ends, at(10)), [ServiceMessage::Alive, ServiceMessage::MoreTime]);
    }

    #[test]
    fn the_status_changes_at_most_once_a_second_and_is_one_line() {
        let mut account = Account::new(None, Duration::from_secs(600), at(0));
        let facts =
            |status: &str| ServiceFacts { is_stopping: false, goes_on: false, has_worker: true, status: status.into() };
        assert_eq!(account.due(&facts("step 1"), at(0)), [ServiceMessage::Status("step 1".into())]);
        assert_eq!(
            (account.due(&facts("step 2"), at(0)), account.wake_at(&facts("step 2"), at(0))),
            (vec![], Some(at(1)))
        );
        assert_eq!(account.due(&facts("step 3"), at(1)), [ServiceMessage::Status("step 3".into())]);
        assert_eq!(account.wake_at(&facts("step 3"), at(1)), None);
        assert_eq!(account.due(&facts("reading\nREADY=1"), at(2)), [ServiceMessage::Status("reading READY=1".into())]);
    }
}
