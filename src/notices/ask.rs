//! The loop around one source: asks it now and then, and passes on what is new.

use std::collections::BTreeSet;
use std::sync::mpsc::Receiver;

use tracing::info;

use super::source::{NoticeSink, NoticeSource, SourceAnswer, SourceWake};
use super::trouble::SourceTrouble;
use crate::session::clock::ClockReading;
use crate::session::notice::{NoticeKind, SessionNotice};

/// Asks `source` until there is nothing more to learn, or until it is told to stop.
pub(super) fn poll(mut source: Box<dyn NoticeSource>, wakes: &Receiver<SourceWake>, sink: &NoticeSink) {
    let name = source.name();
    let mut announced = AnnouncedSoFar::default();
    let mut trouble = SourceTrouble::new(name);
    loop {
        let wait = match source.ask() {
            Ok(answer) => {
                trouble.over();
                let again = answer.again;
                for kind in announced.news(name, answer, ClockReading::now()) {
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
        if wakes.recv_timeout(wait).is_ok() {
            return;
        }
    }
}

/// What a source has announced already.
#[derive(Default)]
struct AnnouncedSoFar {
    end: Option<String>,
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
        match answer.end {
            Some(announced) if self.end.as_ref() != Some(&announced.text) => {
                info!("{name}: {}", announced.text);
                kinds.push(NoticeKind::EndsAt(announced.end.moment(now)));
                self.end = Some(announced.text);
            }
            None if self.end.is_some() => {
                kinds.push(NoticeKind::Withdrawn);
                self.end = None;
            }
            _ => {}
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::source::{AnnouncedEnd, Announcement};
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
}
