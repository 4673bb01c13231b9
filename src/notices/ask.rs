//! The loop around one source: asks it now and then, and passes on what is new.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tracing::info;

use super::source::{AnnouncedEnd, Announcement, NoticeSink, NoticeSource, SourceAnswer, SourceWake};
use super::trouble::SourceTrouble;
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::notice::{NoticeKind, SessionNotice};

/// Asks `source` until there is nothing more to learn, or until it is told to stop.
pub(super) fn poll(mut source: Box<dyn NoticeSource>, wakes: &Receiver<SourceWake>, sink: &NoticeSink) {
    let name = source.name();
    let mut announced = AnnouncedSoFar::default();
    let mut trouble = SourceTrouble::new(name);
    let mut is_asked_again = false;
    loop {
        let wait = match source.ask() {
            Ok(answer) => {
                trouble.over();
                let again = answer.again;
                let now = ClockReading::now();
                let mut kinds = announced.news(name, answer, now);
                if is_asked_again && kinds.is_empty() {
                    kinds.push(announced.still(now));
                }
                for kind in kinds {
                    sink(SessionNotice { source: name.into(), kind });
                }
                match again {
                    Some(wait) => wait,
                    None => return,
                }
            }
            Err(what) => {
                trouble.met(&what);
                source.retry_after()
            }
        };
        is_asked_again = match wakes.recv_timeout(wait) {
            Ok(SourceWake::Look) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Ok(SourceWake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}

/// Two moments that are no further apart are the same.
const SAME: Duration = Duration::from_secs(2);

/// What a source has announced already.
#[derive(Default)]
struct AnnouncedSoFar {
    end: Option<(Announcement, BootInstant)>,
    risks: BTreeSet<String>,
}

impl AnnouncedSoFar {
    /// What is new in an answer.
    fn news(&mut self, name: &str, answer: SourceAnswer, now: ClockReading) -> Vec<NoticeKind> {
        let mut kinds = Vec::new();
        for risk in answer.risks {
            if self.risks.insert(risk.clone()) {
                info!("{name}: {risk}");
                kinds.push(NoticeKind::Snapshot);
            }
        }
        let known = self.end.take();
        match (answer.end, known) {
            (Some(end), Some((known, at))) if end.text == known.text && !has_moved(&end, at, now) => {
                self.end = Some((end, at));
            }
            (Some(end), known) => {
                if known.is_none_or(|(known, _)| known.text != end.text) {
                    info!("{name}: {}", end.text);
                }
                let at = end.end.moment(now);
                kinds.push(NoticeKind::EndsAt(at));
                self.end = Some((end, at));
            }
            (None, Some(_)) => kinds.push(NoticeKind::Withdrawn),
            (None, None) => {}
        }
        kinds
    }

    /// What holds still.
    fn still(&self, now: ClockReading) -> NoticeKind {
        match &self.end {
            // A time of day is one also after the clock was set.
            Some((Announcement { end: end @ AnnouncedEnd::At(_), .. }, _)) => NoticeKind::EndsAt(end.moment(now)),
            Some((_, at)) => NoticeKind::EndsAt(*at),
            None => NoticeKind::Withdrawn,
        }
    }
}

/// Whether what is left of the time, by this answer, ends at another moment than `at`.
fn has_moved(announced: &Announcement, at: BootInstant, now: ClockReading) -> bool {
    let AnnouncedEnd::Left(left) = announced.end else { return false };
    let moment = now.at + left;
    (moment - at).max(at - moment) > SAME
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> Option<Announcement> {
        Some(Announcement { text: text.into(), end: AnnouncedEnd::In(Duration::from_secs(30)) })
    }

    #[test]
    fn what_was_announced_is_not_announced_again_and_a_new_word_takes_its_place() {
        let (mut announced, now) = (AnnouncedSoFar::default(), ClockReading::now());
        let later = ClockReading { at: now.at + Duration::from_secs(10), ..now };
        let mut news = |answer, now| announced.news("test", answer, now);
        let in_30 = NoticeKind::EndsAt(now.at + Duration::from_secs(30));
        assert_eq!(news(SourceAnswer::default(), now), []);
        assert_eq!(news(SourceAnswer { end: end("preempted"), ..SourceAnswer::default() }, now), [in_30]);
        assert_eq!(
            news(SourceAnswer { end: end("preempted"), ..SourceAnswer::default() }, later),
            [],
            "the end must not move"
        );
        assert_eq!(news(SourceAnswer::default(), later), [NoticeKind::Withdrawn]);
        assert_eq!(news(SourceAnswer::default(), later), []);
        let risk = SourceAnswer { risks: ["rebalance".into()].into(), ..SourceAnswer::default() };
        assert_eq!(news(risk.clone(), now), [NoticeKind::Snapshot]);
        assert_eq!(news(risk, now), []);
    }

    #[test]
    fn what_is_left_of_a_limit_that_stood_still_while_the_machine_slept_ends_later() {
        let (mut announced, now) = (AnnouncedSoFar::default(), ClockReading::now());
        let left = |seconds| SourceAnswer {
            end: Some(Announcement {
                text: "RuntimeMaxSec".into(),
                end: AnnouncedEnd::Left(Duration::from_secs(seconds)),
            }),
            ..SourceAnswer::default()
        };
        let at = |seconds| ClockReading { at: now.at + Duration::from_secs(seconds), ..now };
        let end = |seconds| NoticeKind::EndsAt(now.at + Duration::from_secs(seconds));
        assert_eq!(announced.news("test", left(100), now), [end(100)]);
        assert_eq!(announced.news("test", left(90), at(10)), []);
        assert_eq!(announced.still(at(10)), end(100));
        // Fifty seconds of sleep.
        assert_eq!(announced.news("test", left(80), at(70)), [end(150)]);
        assert_eq!(announced.still(at(70)), end(150));
    }
}
