//! What a notice source is, and what it answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::session::clock::{BootInstant, ClockReading};
use crate::session::notice::SessionNotice;

/// Takes what the sources say.
pub type NoticeSink = Arc<dyn Fn(SessionNotice) + Send + Sync>;

/// A source that is asked now and then.
pub trait NoticeSource: Send {
    /// For people, and to tell sources apart.
    fn name(&self) -> &'static str;
    /// Asks once, within a few seconds; `Err` says in a clause what was wrong with the answer.
    fn ask(&mut self) -> Result<SourceAnswer, String>;
    /// When to ask again after an answer that was none.
    fn retry_after(&self) -> Duration;
}

/// An answer of a source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceAnswer {
    /// The end that is announced.
    pub end: Option<Announcement>,
    /// Announced risks, each by a text that tells it from the others: a snapshot is due for each new one.
    pub risks: BTreeSet<String>,
    /// When to ask again; `None`: there is nothing more to learn.
    pub again: Option<Duration>,
}

/// An announced end of the machine or the allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct Announcement {
    /// For people; another text is another end.
    pub text: String,
    pub end: AnnouncedEnd,
}

/// When it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AnnouncedEnd {
    At(Timestamp),
    /// Counted from the first such answer.
    In(Duration),
    /// What is left now, told anew with each answer.
    Left(Duration),
}

impl AnnouncedEnd {
    /// On the session's clock.
    pub fn moment(self, now: ClockReading) -> BootInstant {
        match self {
            AnnouncedEnd::At(time) => now.moment_of(time),
            AnnouncedEnd::In(duration) | AnnouncedEnd::Left(duration) => now.at + duration,
        }
    }
}

/// When to ask a source again that has announced an end: seldom as long as that is far, every minute near it.
pub fn ask_again(left: Duration) -> Duration {
    (left / 10).clamp(Duration::from_secs(60), Duration::from_secs(600))
}

/// What wakes a source's thread before its time.
pub enum SourceWake {
    /// Look now; say also what has not changed.
    Look,
    Stop,
}
