//! What the service manager is told: that the daemon is up, how the training goes, that it lives, that it ends.
//!
//! Invariant: the watchdog is fed by the training and not by a clock. A ping says that the worker or the keeper gave a
//! sign of life since the last one. In phases in which nobody has anything to say (between two workers, while the last
//! snapshot is written and read back) pings go on for as long as a silence may last, and then end, too. Nothing here
//! waits for the service manager. Deliberately not here: when the job counts as hung (job), what systemd does about it
//! (the unit).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

use crate::session::clock::BootInstant;
use crate::training::progress::{Progress, State};

/// Between two changes of the status text.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// While the session ends the manager is asked for this much more time, this often: what hangs is not asked for.
const EXTENSION: Duration = Duration::from_secs(15);
const EXTENSION_INTERVAL: Duration = Duration::from_secs(5);
/// A silence that is nobody's fault may last this long, or as long as the worker's.
const QUIET_LIMIT: Duration = Duration::from_secs(600);
/// How long the last message is waited for.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages that wait for a manager that takes none.
const OUTBOX: usize = 64;

/// A message, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Ready,
    Reloading,
    Status(String),
    Alive,
    Stopping,
    MoreTime,
}

/// The way to the service manager; without one it says nothing.
pub struct ServiceManager {
    outbox: Option<SyncSender<Vec<Word>>>,
    sent: Receiver<()>,
    account: Account,
    /// It was told that the config is being read again.
    is_reloading: bool,
}

impl ServiceManager {
    /// The manager that NOTIFY_SOCKET names, if there is one. `hang_timeout`: what a silence of the worker may last.
    pub fn connect(hang_timeout: Duration, now: BootInstant) -> ServiceManager {
        let (outbox, messages) = sync_channel::<Vec<Word>>(OUTBOX);
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
            is_reloading: false,
        }
    }

    /// The daemon is up: the store is its own, and whoever asks is answered.
    pub fn ready(&mut self) {
        self.send(vec![Word::Ready]);
    }

    /// The job file is being read again, because somebody asked for it.
    pub fn reloading(&mut self) {
        self.is_reloading = true;
        self.send(vec![Word::Reloading]);
    }

    /// The job file was read again.
    pub fn reloaded(&mut self) {
        if std::mem::take(&mut self.is_reloading) {
            self.ready();
        }
    }

    /// The worker or the keeper has shown that it lives.
    pub fn sign_of_life(&mut self, now: BootInstant) {
        self.account.sign_of_life(now);
    }

    /// Says what is due.
    pub fn update(&mut self, progress: &Progress, now: BootInstant) {
        if self.outbox.is_some() {
            let words = self.account.due(&Facts::of(progress), now);
            self.send(words);
        }
    }

    /// When [`ServiceManager::update`] is wanted at the latest.
    pub fn wake_at(&self, progress: &Progress, now: BootInstant) -> Option<BootInstant> {
        self.outbox.as_ref().and_then(|_| self.account.wake_at(&Facts::of(progress), now))
    }

    /// Says the last words, and waits until they are on their way.
    pub fn finish(mut self, progress: &Progress) {
        let last = Facts::of(progress).status;
        self.send(vec![Word::Stopping, Word::Status(last)]);
        if self.outbox.take().is_some() {
            let _ = self.sent.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    fn send(&mut self, words: Vec<Word>) {
        if let Some(outbox) = self.outbox.as_ref().filter(|_| !words.is_empty()) {
            // A manager that takes nothing must not hold up the training.
            let _ = outbox.try_send(words);
        }
    }
}

fn send(words: &[Word]) {
    let mut states = Vec::new();
    for word in words {
        match word {
            Word::Ready => states.push(NotifyState::Ready),
            Word::Reloading => {
                states.push(NotifyState::Reloading);
                states.extend(NotifyState::monotonic_usec_now());
            }
            Word::Status(text) => states.push(NotifyState::Status(text)),
            Word::Alive => states.push(NotifyState::Watchdog),
            Word::Stopping => states.push(NotifyState::Stopping),
            Word::MoreTime => states.push(NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32)),
        }
    }
    if let Err(e) = sd_notify::notify(&states) {
        debug!("the service manager is not told: {e}");
    }
}

/// What of the progress matters here.
struct Facts {
    is_stopping: bool,
    has_worker: bool,
    status: String,
}

impl Facts {
    fn of(progress: &Progress) -> Facts {
        let is_stopping = matches!(progress.state, State::Stopping);
        Facts { is_stopping, has_worker: progress.worker_pid.is_some(), status: status_text(progress) }
    }
}

/// One line: step, loss, what is safe.
fn status_text(progress: &Progress) -> String {
    let stage = progress.stage.as_ref().map(|(stage, _)| stage.as_str());
    let doing = match (progress.state, stage) {
        (State::Starting, None) => "starting".to_owned(),
        (State::Starting, Some(stage)) => stage.to_owned(),
        (State::Training, _) => progress.line_text(),
        (State::Stopping, _) => format!("step {}/{}, stopping", progress.step, progress.total_steps),
        (State::Stopped, _) => format!("step {}/{}, to be resumed", progress.step, progress.total_steps),
        (State::Finished, _) => format!("finished after {} steps", progress.total_steps),
        (State::Failed, _) => format!("step {}/{}, failed", progress.step, progress.total_steps),
    };
    let safe = match &progress.last_verified {
        Some(last) => format!("step {} saved and verified", last.step),
        None => "nothing saved yet".to_owned(),
    };
    // A line feed would begin another message.
    format!("{doing}; {safe}").replace(['\n', '\r'], " ")
}

/// What was said and when; what is due follows from it.
struct Account {
    /// The manager gives the service up after so long without a ping.
    watchdog: Option<Duration>,
    quiet_limit: Duration,
    last_sign: BootInstant,
    /// Something has lived since the last ping.
    has_lived: bool,
    last_ping: Option<BootInstant>,
    status: String,
    last_status: Option<BootInstant>,
    said_stopping: bool,
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
            said_stopping: false,
            last_extension: None,
        }
    }

    fn sign_of_life(&mut self, now: BootInstant) {
        self.has_lived = true;
        self.last_sign = now;
    }

    fn due(&mut self, facts: &Facts, now: BootInstant) -> Vec<Word> {
        let mut words = Vec::new();
        if self.status != facts.status && now >= next(self.last_status, STATUS_INTERVAL, now) {
            self.status.clone_from(&facts.status);
            self.last_status = Some(now);
            words.push(Word::Status(facts.status.clone()));
        }
        if self.may_ping(facts, now) && self.ping_at(now).is_some_and(|at| now >= at) {
            self.has_lived = false;
            self.last_ping = Some(now);
            words.push(Word::Alive);
        }
        if facts.is_stopping {
            if !std::mem::replace(&mut self.said_stopping, true) {
                words.push(Word::Stopping);
            }
            if now >= next(self.last_extension, EXTENSION_INTERVAL, now) {
                self.last_extension = Some(now);
                words.push(Word::MoreTime);
            }
        }
        words
    }

    fn wake_at(&self, facts: &Facts, now: BootInstant) -> Option<BootInstant> {
        let status = (self.status != facts.status).then(|| next(self.last_status, STATUS_INTERVAL, now));
        let ping = self.ping_at(now).filter(|_| self.may_ping(facts, now));
        let extension = facts.is_stopping.then(|| next(self.last_extension, EXTENSION_INTERVAL, now));
        [status, ping, extension].into_iter().flatten().min()
    }

    fn may_ping(&self, facts: &Facts, now: BootInstant) -> bool {
        let is_quiet = !facts.has_worker || facts.is_stopping;
        self.has_lived || (is_quiet && now - self.last_sign < self.quiet_limit)
    }

    /// Four pings in the time that the manager waits for one.
    fn ping_at(&self, now: BootInstant) -> Option<BootInstant> {
        self.watchdog.map(|watchdog| next(self.last_ping, watchdog / 4, now))
    }
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

    fn facts(is_stopping: bool, has_worker: bool) -> Facts {
        Facts { is_stopping, has_worker, status: String::new() }
    }

    #[test]
    fn a_worker_that_falls_silent_is_not_pinged_for_and_one_that_speaks_is() {
        let (mut account, trains) = (account(), facts(false, true));
        assert_eq!(account.due(&trains, at(0)), [Word::Alive]);
        for second in 1..100 {
            assert_eq!(account.due(&trains, at(second)), [], "a clock fed the watchdog");
            assert_eq!(account.wake_at(&trains, at(second)), None);
        }
        account.sign_of_life(at(100));
        assert_eq!(account.due(&trains, at(100)), [Word::Alive]);
        // One that comes early is passed on when it is due.
        account.sign_of_life(at(101));
        assert_eq!((account.due(&trains, at(101)), account.wake_at(&trains, at(101))), (vec![], Some(at(110))));
        assert_eq!(account.due(&trains, at(110)), [Word::Alive]);
    }

    #[test]
    fn phases_without_a_speaker_are_pinged_for_until_they_last_too_long() {
        let (mut account, between) = (account(), facts(false, false));
        let pings: Vec<u64> = (0..2000).filter(|s| account.due(&between, at(*s)).contains(&Word::Alive)).collect();
        assert_eq!(pings.first(), Some(&0));
        assert!(pings.windows(2).all(|pair| pair[1] - pair[0] == 10));
        assert!((590..600).contains(pings.last().unwrap()), "{pings:?}");
    }

    #[test]
    fn an_end_is_announced_once_and_asks_for_more_time_as_long_as_it_lasts() {
        let (mut account, ends) = (account(), facts(true, true));
        assert_eq!(account.due(&ends, at(0)), [Word::Alive, Word::Stopping, Word::MoreTime]);
        assert_eq!((account.due(&ends, at(1)), account.wake_at(&ends, at(1))), (vec![], Some(at(5))));
        assert_eq!(account.due(&ends, at(5)), [Word::MoreTime]);
        assert_eq!(account.due(&ends, at(10)), [Word::Alive, Word::MoreTime]);
    }

    #[test]
    fn the_status_changes_at_most_once_a_second_and_is_one_line() {
        let mut account = Account::new(None, Duration::from_secs(600), at(0));
        let facts = |status: &str| Facts { is_stopping: false, has_worker: true, status: status.into() };
        assert_eq!(account.due(&facts("step 1"), at(0)), [Word::Status("step 1".into())]);
        assert_eq!(
            (account.due(&facts("step 2"), at(0)), account.wake_at(&facts("step 2"), at(0))),
            (vec![], Some(at(1)))
        );
        assert_eq!(account.due(&facts("step 3"), at(1)), [Word::Status("step 3".into())]);
        assert_eq!(account.wake_at(&facts("step 3"), at(1)), None);
        let mut progress = Progress::new(10);
        progress.stage = Some(("reading\nREADY=1".into(), None));
        assert_eq!(status_text(&progress), "reading READY=1; nothing saved yet");
    }
}
