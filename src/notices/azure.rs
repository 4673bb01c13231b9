//! Azure: scheduled events of this machine.
//!
//! The service announces what will happen to the machines of a group: Preempt (30 s ahead at least), Reboot and Freeze
//! (15 minutes), Redeploy (10), Terminate (5 to 15). Only events that name this machine count: its name is asked
//! for first. A freeze is a pause of seconds that keeps the memory: worth a snapshot. No event is ever approved,
//! which would only bring it forward. Source: learn.microsoft.com, "Azure Metadata Service: Scheduled Events for
//! Linux VMs".

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::http::{HttpClient, HttpMethod, HttpRequest, beginning, url};
use super::source::{AnnouncedEnd, Announcement, NoticeSource, SourceAnswer};

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
/// As the documentation recommends.
const INTERVAL: Duration = Duration::from_secs(1);
const MAX_NAME: usize = 256;

pub struct AzureEvents<N> {
    network: N,
    base: String,
    /// This machine, as the service calls it.
    name: Option<String>,
    answered: bool,
}

impl<N: HttpClient> AzureEvents<N> {
    pub fn new(network: N, base: &str) -> AzureEvents<N> {
        AzureEvents { network, base: base.into(), name: None, answered: false }
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, String> {
        let url = url(&self.base, path);
        let reply =
            self.network.ask(&HttpRequest { method: HttpMethod::Get, url: &url, headers: &[("Metadata", "true")] })?;
        match reply.status {
            200 => Ok(reply.body),
            status => Err(format!("{url} answers with status {status}")),
        }
    }
}

impl<N: HttpClient> NoticeSource for AzureEvents<N> {
    fn name(&self) -> &'static str {
        "Azure scheduled events"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let name = match &self.name {
            Some(name) => name,
            None => self.name.insert(parse_name(&self.get(NAME)?)?),
        }
        .clone();
        let hint = if self.answered { "" } else { " (the first answer may take two minutes)" };
        let body = self.get(EVENTS).map_err(|what| what + hint)?;
        let events = parse_events(&body)?;
        self.answered = true;
        Ok(judge(&events, &name))
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

/// What `events` mean for the machine `name`: the earliest end, and every freeze.
pub fn judge(events: &[AzureEvent], name: &str) -> SourceAnswer {
    let mut answer = SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() };
    let mut earliest = None;
    for event in events.iter().filter(|event| event.resources.iter().any(|r| r.eq_ignore_ascii_case(name))) {
        match event.kind {
            AzureEventKind::Freeze => {
                answer.risks.insert(format!("freeze, event {}", event.id));
            }
            AzureEventKind::Preempt | AzureEventKind::Reboot | AzureEventKind::Redeploy | AzureEventKind::Terminate => {
                // One that has begun comes before all others.
                let at = event.not_before.unwrap_or(Timestamp::MIN);
                if earliest.is_none_or(|(known, _)| at < known) {
                    earliest = Some((at, event));
                }
            }
            AzureEventKind::Other => {}
        }
    }
    answer.end = earliest.map(|(_, event)| {
        let kind = event.kind.name();
        match event.not_before {
            Some(at) => {
                Announcement { text: format!("{kind} not before {at}, event {}", event.id), end: AnnouncedEnd::At(at) }
            }
            None => Announcement {
                text: format!("{kind} has begun, event {}", event.id),
                end: AnnouncedEnd::In(Duration::ZERO),
            },
        }
    });
    answer
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum AzureEventKind {
    Freeze,
    Reboot,
    Redeploy,
    Preempt,
    Terminate,
    /// One that this program does not know.
    #[serde(other)]
    Other,
}

impl AzureEventKind {
    const fn name(self) -> &'static str {
        match self {
            AzureEventKind::Freeze => "freeze",
            AzureEventKind::Reboot => "reboot",
            AzureEventKind::Redeploy => "redeploy",
            AzureEventKind::Preempt => "preemption",
            AzureEventKind::Terminate => "termination",
            AzureEventKind::Other => "event",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct AzureEvent {
    pub id: String,
    pub kind: AzureEventKind,
    pub resources: Vec<String>,
    /// `None`: it has begun.
    pub not_before: Option<Timestamp>,
}

pub fn parse_events(body: &[u8]) -> Result<Vec<AzureEvent>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct EventList {
        events: Vec<RawEvent>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct RawEvent {
        event_id: String,
        event_type: AzureEventKind,
        resources: Vec<String>,
        #[serde(default)]
        event_status: String,
        #[serde(default)]
        not_before: String,
    }
    let document: EventList =
        serde_json::from_slice(body).map_err(|e| format!("no list of scheduled events: {e} in {}", beginning(body)))?;
    let event = |raw: RawEvent| {
        let not_before = match raw.not_before.trim() {
            "" => None,
            _ if raw.event_status == "Started" => None,
            text => Some(parse_time(text)?),
        };
        Ok(AzureEvent { id: raw.event_id, kind: raw.event_type, resources: raw.resources, not_before })
    };
    document.events.into_iter().map(event).collect()
}

/// "Mon, 19 Sep 2016 18:29:47 GMT".
fn parse_time(text: &str) -> Result<Timestamp, String> {
    jiff::fmt::rfc2822::DateTimeParser::new()
        .relaxed_weekday(true)
        .parse_timestamp(text)
        .map_err(|e| format!("{:?} is no time of an event: {e}", text.chars().take(40).collect::<String>()))
}

pub fn parse_name(body: &[u8]) -> Result<String, String> {
    match std::str::from_utf8(body.trim_ascii()) {
        Ok(name) if (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control) => Ok(name.to_owned()),
        _ => Err(format!("no name of a machine: {}", beginning(body))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::http::fake::{FakeClient, reply};
    use super::*;

    fn event(kind: &str, resource: &str, status: &str, not_before: &str) -> String {
        format!(
            r#"{{"EventId":"E-{kind}","EventStatus":"{status}","EventType":"{kind}","ResourceType":"VirtualMachine",
                "Resources":["{resource}"],"NotBefore":"{not_before}","Description":"","DurationInSeconds":-1}}"#
        )
    }

    fn judged(events: &[String]) -> SourceAnswer {
        let body = format!(r#"{{"DocumentIncarnation":7,"Events":[{}]}}"#, events.join(","));
        judge(&parse_events(body.as_bytes()).unwrap(), "trainer_3")
    }

    #[test]
    fn the_earliest_end_of_this_machine_counts_and_what_has_begun_is_earliest() {
        let reboot = event("Reboot", "trainer_3", "Scheduled", "Tue, 24 Nov 2026 18:29:47 GMT");
        let preempt = event("Preempt", "TRAINER_3", "Scheduled", "Tue, 24 Nov 2026 18:20:00 GMT");
        let others = event("Terminate", "trainer_4", "Scheduled", "Tue, 24 Nov 2026 18:00:00 GMT");
        let answer = judged(&[reboot.clone(), preempt, others.clone()]);
        assert_eq!(answer.end.unwrap().end, AnnouncedEnd::At("2026-11-24T18:20:00Z".parse().unwrap()));
        assert_eq!(judged(&[others]).end, None);
        for begun in [event("Redeploy", "trainer_3", "Started", ""), event("Redeploy", "trainer_3", "Scheduled", "")] {
            assert_eq!(judged(&[reboot.clone(), begun]).end.unwrap().end, AnnouncedEnd::In(Duration::ZERO));
        }
    }

    #[test]
    fn a_freeze_is_a_risk_and_an_unknown_event_is_nothing() {
        let freeze = event("Freeze", "trainer_3", "Scheduled", "Tue, 24 Nov 2026 18:29:47 GMT");
        let unknown = event("Reincarnate", "trainer_3", "Scheduled", "");
        let answer = judged(&[freeze, unknown]);
        assert_eq!((answer.end, answer.risks), (None, ["freeze, event E-Freeze".to_owned()].into()));
    }

    #[test]
    fn the_machines_name_is_asked_for_once() {
        let names = std::sync::atomic::AtomicU32::new(0);
        let network = FakeClient(move |request: &HttpRequest| {
            assert_eq!(request.headers, [("Metadata", "true")]);
            if request.url.contains("compute/name") {
                assert_eq!(names.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 0);
                return reply(200, "trainer_3");
            }
            reply(200, &format!(r#"{{"Events":[{}]}}"#, event("Preempt", "trainer_3", "Started", "")))
        });
        let mut events = AzureEvents::new(network, "http://azure");
        assert_eq!(events.ask().unwrap().end, events.ask().unwrap().end);
    }

    #[test]
    fn what_is_no_list_of_events_is_an_error() {
        let bad_time = event("Preempt", "trainer_3", "Scheduled", "soon");
        for bad in
            ["", "null", "{}", r#"{"Events":{}}"#, r#"{"Events":[{}]}"#, &format!(r#"{{"Events":[{bad_time}]}}"#)]
        {
            assert!(parse_events(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in [&b""[..], b"\n", b"\xff", b"a\x00b", &[b'x'; 300]] {
            assert!(parse_name(bad).is_err());
        }
    }
}
