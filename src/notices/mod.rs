//! Where notices of the session's end come from: Slurm, systemd, a file that is touched, the clouds' metadata services.
//!
//! Each source is asked on a thread of its own, beside the training. Invariant: a source that does not answer, answers
//! nonsense or answers too much changes nothing, neither the training nor what it said before, and costs one line of
//! the log until it answers again; what was announced once is not announced again. Deliberately not here: what follows
//! from a notice (agent/job), signals (agent).
//!
//! Reading order: [`http`] and [`program`] (how sources are asked), then a file a source.

pub mod aws;
pub mod azure;
pub mod gcp;
pub mod http;
pub mod notice_file;
pub mod program;
pub mod slurm;
pub mod systemd;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use crate::session::clock::{BootInstant, ClockReading};
use crate::session::notice::{NoticeKind, SessionNotice};
use ckptd_core::config::SessionSection;

/// Takes what the sources have to say.
pub type Sink = Arc<dyn Fn(SessionNotice) + Send + Sync>;

/// A source that is asked now and then.
pub trait Source: Send {
    /// For people, and to tell sources apart.
    fn name(&self) -> &'static str;
    /// Asks once, within a few seconds; `Err` says in a clause what was wrong with the answer.
    fn ask(&mut self) -> Result<Found, String>;
    /// When to ask again after an answer that was none.
    fn retry_after(&self) -> Duration;
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The end that is announced.
    pub end: Option<End>,
    /// Announced risks, each by a text that tells it from the others: a snapshot is due for each new one.
    pub risks: BTreeSet<String>,
    /// When to ask again; `None`: there is nothing more to learn.
    pub again: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// What is announced, for people; another text is another end.
    pub what: String,
    pub when: When,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    At(Timestamp),
    /// Counted from the answer.
    In(Duration),
}

impl When {
    fn moment(self, now: ClockReading) -> BootInstant {
        match self {
            When::At(time) => now.moment_of(time),
            When::In(duration) => now.at + duration,
        }
    }
}

/// The sources that the config and the surroundings ask for; they end with this.
pub struct Sources {
    stops: Vec<Sender<Wake>>,
}

/// What wakes a source's thread before its time.
pub enum Wake {
    Look,
    Stop,
}

impl Sources {
    pub fn start(session: &SessionSection, sink: &Sink) -> Sources {
        let mut sources = Sources { stops: Vec::new() };
        let mut polled: Vec<Box<dyn Source>> = Vec::new();
        if session.slurm {
            polled.extend(slurm::Slurm::here().map(|source| Box::new(source) as Box<dyn Source>));
        }
        if session.systemd {
            polled.extend(systemd::Systemd::here().map(|source| Box::new(source) as Box<dyn Source>));
        }
        if session.aws {
            polled.push(Box::new(aws::Spot::new(http::Http::new(), &session.aws_url)));
            polled.push(Box::new(aws::Rebalance::new(http::Http::new(), &session.aws_url)));
        }
        if session.gcp {
            polled.push(Box::new(gcp::Preempted::new(http::Http::new(), &session.gcp_url)));
            polled.push(Box::new(gcp::Maintenance::new(http::Http::new(), &session.gcp_url)));
        }
        if session.azure {
            polled.push(Box::new(azure::Events::new(http::Http::new(), &session.azure_url)));
        }
        for source in polled {
            sources.spawn(source.name(), sink, move |wakes, sink, _| poll(source, &wakes, &sink));
        }
        if let Some(path) = session.notice_file.clone() {
            sources.spawn(notice_file::NAME, sink, move |wakes, sink, wake| {
                notice_file::watch(&path, &wakes, wake, &sink);
            });
        }
        sources
    }

    fn spawn(
        &mut self,
        name: &'static str,
        sink: &Sink,
        run: impl FnOnce(Receiver<Wake>, Sink, Sender<Wake>) + Send + 'static,
    ) {
        let (wake, wakes) = channel();
        let (sink, other) = (Arc::clone(sink), wake.clone());
        match std::thread::Builder::new().name(name.into()).spawn(move || run(wakes, sink, other)) {
            Ok(_) => self.stops.push(wake),
            Err(e) => warn!("{name} is not asked: no thread could be started: {e}"),
        }
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        for stop in &self.stops {
            let _ = stop.send(Wake::Stop);
        }
    }
}

/// Asks `source` until there is nothing more to learn, or until it is told to stop.
fn poll(mut source: Box<dyn Source>, wakes: &Receiver<Wake>, sink: &Sink) {
    let name = source.name();
    let mut heard = Heard::default();
    let mut trouble = Trouble::new(name);
    loop {
        let wait = match source.ask() {
            Ok(found) => {
                trouble.over();
                let again = found.again;
                for kind in heard.news(name, found, ClockReading::now()) {
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
struct Heard {
    end: Option<String>,
    risks: BTreeSet<String>,
}

impl Heard {
    /// What is new in an answer.
    fn news(&mut self, name: &str, found: Found, now: ClockReading) -> Vec<NoticeKind> {
        let mut calls = Vec::new();
        for risk in found.risks {
            if self.risks.insert(risk.clone()) {
                info!("{name}: {risk}");
                calls.push(NoticeKind::Snapshot);
            }
        }
        match found.end {
            Some(end) if self.end.as_ref() != Some(&end.what) => {
                info!("{name}: {}", end.what);
                calls.push(NoticeKind::EndsAt(end.when.moment(now)));
                self.end = Some(end.what);
            }
            None if self.end.is_some() => {
                calls.push(NoticeKind::Withdrawn);
                self.end = None;
            }
            _ => {}
        }
        calls
    }
}

/// One line a trouble, however often it is met, and one when it is over.
struct Trouble {
    name: &'static str,
    told: bool,
}

impl Trouble {
    fn new(name: &'static str) -> Trouble {
        Trouble { name, told: false }
    }

    fn met(&mut self, what: &str) {
        let name = self.name;
        match std::mem::replace(&mut self.told, true) {
            false => warn!("{name}: {what}; the training goes on, and it is asked again"),
            true => debug!("{name}: {what}"),
        }
    }

    fn over(&mut self) {
        if std::mem::replace(&mut self.told, false) {
            info!("{}: it answers again", self.name);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(what: &str) -> Option<End> {
        Some(End { what: what.into(), when: When::In(Duration::from_secs(30)) })
    }

    #[test]
    fn what_was_announced_is_not_announced_again_and_a_new_word_takes_its_place() {
        let (mut heard, now) = (Heard::default(), ClockReading::now());
        let later = ClockReading { at: now.at + Duration::from_secs(10), ..now };
        let mut news = |found, now| heard.news("test", found, now);
        let in_30 = NoticeKind::EndsAt(now.at + Duration::from_secs(30));
        assert_eq!(news(Found::default(), now), []);
        assert_eq!(news(Found { end: end("preempted"), ..Found::default() }, now), [in_30]);
        assert_eq!(news(Found { end: end("preempted"), ..Found::default() }, later), [], "the end must not move");
        assert_eq!(news(Found::default(), later), [NoticeKind::Withdrawn]);
        assert_eq!(news(Found::default(), later), []);
        let risk = Found { risks: ["rebalance".into()].into(), ..Found::default() };
        assert_eq!(news(risk.clone(), now), [NoticeKind::Snapshot]);
        assert_eq!(news(risk, now), []);
    }

    /// Answers as they should be; one of them is damaged, or what comes is no answer at all.
    fn answers() -> impl Strategy<Value = Vec<u8>> {
        let good = prop::sample::select(vec![
            r#"{"action": "terminate", "time": "2026-11-24T08:22:00Z"}"#,
            r#"{"noticeTime": "2026-11-24T08:22:00Z"}"#,
            r#"{"DocumentIncarnation":1,"Events":[{"EventId":"A","EventStatus":"Scheduled","EventType":"Preempt",
                "Resources":["vm"],"NotBefore":"Tue, 24 Nov 2026 18:29:47 GMT"}]}"#,
            "TERMINATE_ON_HOST_MAINTENANCE",
            "1795508520",
            "2026-11-24T08:22:00",
            "RuntimeMaxUSec=1h 30min\nActiveEnterTimestampMonotonic=1\nActiveState=active\n",
            "1:name=systemd:/system.slice/run-r1.scope\n0::/user.slice/user@1.service/a.service\n",
        ]);
        let damaged = (good, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(good, at, byte)| {
            let mut bytes = good.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        });
        prop_oneof![damaged, prop::collection::vec(any::<u8>(), 0..200)]
    }

    proptest! {
        #[test]
        fn no_answer_whatever_it_holds_makes_a_source_fall_over(answer in answers()) {
            let _ = aws::parse_action(&answer);
            let _ = aws::parse_rebalance(&answer);
            let _ = aws::parse_token(&answer);
            let _ = gcp::parse_preempted(&answer);
            let _ = gcp::parse_maintenance(&answer);
            let _ = azure::parse_name(&answer);
            if let Ok(events) = azure::parse_events(&answer) {
                let _ = azure::judge(&events, "vm");
            }
            let text = String::from_utf8_lossy(&answer);
            let _ = slurm::parse_end(&text, &jiff::tz::TimeZone::UTC);
            let _ = systemd::parse_cgroup(&text);
            let now = Duration::from_secs(1000);
            if let Ok(Some(limit)) = systemd::parse_show(&text) {
                prop_assert!(limit.left(now) <= limit.max || limit.since > Some(now));
            }
        }
    }

    #[test]
    fn a_source_that_is_not_asked_for_any_more_is_left_alone() {
        struct Counting(Sender<()>);
        impl Source for Counting {
            fn name(&self) -> &'static str {
                "counting"
            }
            fn ask(&mut self) -> Result<Found, String> {
                self.0.send(()).unwrap();
                Err("nothing there".into())
            }
            fn retry_after(&self) -> Duration {
                Duration::from_secs(3600)
            }
        }
        let (asked, questions) = channel();
        let sink: Sink = Arc::new(|notice| panic!("{notice:?}"));
        let mut sources = Sources { stops: Vec::new() };
        let source: Box<dyn Source> = Box::new(Counting(asked));
        sources.spawn("counting", &sink, move |wakes, sink, _| poll(source, &wakes, &sink));
        questions.recv().unwrap();
        drop(sources);
        // The thread ends, and with it the sender.
        questions.recv().unwrap_err();
    }
}
