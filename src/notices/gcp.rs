//! Google Cloud: the preemption of a spot or preemptible instance, and the maintenance of its host.
//!
//! The metadata server shows itself by a header; an answer without it is somebody else's. `preempted` turns to TRUE
//! when the instance is told to shut down, 30 s before it is cut off. `maintenance-event` announces that the host goes
//! out of service: the instance is moved on while it runs (a pause, worth a snapshot), or ended, after 60 s, and with a
//! GPU after an hour. Source: cloud.google.com/compute/docs, "Preemptible VM instances", "Query the metadata server
//! for maintenance event notices".

use std::path::Path;
use std::time::Duration;

use super::http::{Method, Network, Request, beginning, url};
use super::{End, Found, Source, When};

const PREEMPTED: &str = "/computeMetadata/v1/instance/preempted";
const MAINTENANCE: &str = "/computeMetadata/v1/instance/maintenance-event";
/// Of 30 s no more than this is lost by asking.
const INTERVAL: Duration = Duration::from_secs(1);
const PREEMPTION_LEAD: Duration = Duration::from_secs(30);
const MAINTENANCE_LEAD: Duration = Duration::from_secs(60);
const MAINTENANCE_LEAD_GPU: Duration = Duration::from_secs(3600);

struct Metadata<N> {
    network: N,
    base: String,
}

impl<N: Network> Metadata<N> {
    fn get(&self, path: &str) -> Result<Vec<u8>, String> {
        let url = url(&self.base, path);
        let headers = [("Metadata-Flavor", "Google")];
        let reply = self.network.ask(&Request { method: Method::Get, url: &url, headers: &headers })?;
        match (reply.status, reply.flavor.as_deref()) {
            (200, Some("Google")) => Ok(reply.body),
            (200, _) => Err(format!("{url} is not Google's metadata server")),
            (status, _) => Err(format!("{url} answers with status {status}")),
        }
    }
}

pub struct Preempted<N>(Metadata<N>);

pub struct Maintenance<N> {
    metadata: Metadata<N>,
    has_gpu: bool,
}

impl<N: Network> Preempted<N> {
    pub fn new(network: N, base: &str) -> Preempted<N> {
        Preempted(Metadata { network, base: base.into() })
    }
}

impl<N: Network> Source for Preempted<N> {
    fn name(&self) -> &'static str {
        "Google Cloud preemption"
    }

    fn ask(&mut self) -> Result<Found, String> {
        let preempted = parse_preempted(&self.0.get(PREEMPTED)?)?;
        // What is asked once a second is known a second late.
        let when = When::In(PREEMPTION_LEAD - INTERVAL);
        let end = preempted.then(|| End { what: "this instance is preempted".into(), when });
        Ok(Found { end, again: Some(INTERVAL), ..Found::default() })
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

impl<N: Network> Maintenance<N> {
    pub fn new(network: N, base: &str) -> Maintenance<N> {
        let has_gpu = Path::new("/proc/driver/nvidia").exists();
        Maintenance { metadata: Metadata { network, base: base.into() }, has_gpu }
    }
}

impl<N: Network> Source for Maintenance<N> {
    fn name(&self) -> &'static str {
        "Google Cloud maintenance"
    }

    fn ask(&mut self) -> Result<Found, String> {
        let mut found = Found { again: Some(INTERVAL), ..Found::default() };
        match parse_maintenance(&self.metadata.get(MAINTENANCE)?)? {
            Event::None => {}
            Event::Migrate => {
                found.risks.insert("this instance is about to be moved to another host".into());
            }
            Event::Terminate => {
                let lead = if self.has_gpu { MAINTENANCE_LEAD_GPU } else { MAINTENANCE_LEAD };
                let what = "this instance ends for maintenance of its host".into();
                found.end = Some(End { what, when: When::In(lead - INTERVAL) });
            }
        }
        Ok(found)
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

pub fn parse_preempted(body: &[u8]) -> Result<bool, String> {
    match body.trim_ascii() {
        b"TRUE" => Ok(true),
        b"FALSE" => Ok(false),
        _ => Err(format!("neither TRUE nor FALSE: {}", beginning(body))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    None,
    Migrate,
    Terminate,
}

pub fn parse_maintenance(body: &[u8]) -> Result<Event, String> {
    match body.trim_ascii() {
        b"NONE" => Ok(Event::None),
        b"MIGRATE_ON_HOST_MAINTENANCE" => Ok(Event::Migrate),
        b"TERMINATE_ON_HOST_MAINTENANCE" => Ok(Event::Terminate),
        _ => Err(format!("no maintenance event: {}", beginning(body))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::http::Reply;
    use super::super::http::fake::{Fake, reply, script};
    use super::*;

    #[test]
    fn a_preemption_is_an_end_within_thirty_seconds() {
        let network = Fake(|request: &Request| {
            assert_eq!(request.url, "http://gcp/computeMetadata/v1/instance/preempted");
            assert_eq!(request.headers, [("Metadata-Flavor", "Google")]);
            reply(200, "TRUE\n")
        });
        let end = Preempted::new(network, "http://gcp").ask().unwrap().end.unwrap();
        assert_eq!(end.when, When::In(Duration::from_secs(29)));
        assert_eq!(Preempted::new(script(vec![reply(200, "FALSE")]), "http://gcp").ask().unwrap().end, None);
    }

    #[test]
    fn a_host_that_goes_moves_the_instance_or_ends_it_with_a_gpu_an_hour_later() {
        let ask = |body: &str, has_gpu: bool| {
            let metadata = Metadata { network: script(vec![reply(200, body)]), base: "http://gcp".into() };
            Maintenance { metadata, has_gpu }.ask().unwrap()
        };
        assert_eq!(ask("NONE", false), Found { again: Some(INTERVAL), ..Found::default() });
        assert_eq!(ask("MIGRATE_ON_HOST_MAINTENANCE", true).risks.len(), 1);
        let lead = |has_gpu| ask("TERMINATE_ON_HOST_MAINTENANCE", has_gpu).end.unwrap().when;
        assert_eq!(lead(false), When::In(Duration::from_secs(59)));
        assert_eq!(lead(true), When::In(Duration::from_secs(3599)));
    }

    #[test]
    fn an_answer_of_another_server_or_of_another_form_is_none() {
        let other = Fake(|_: &Request| Ok(Reply { status: 200, flavor: None, body: b"TRUE".to_vec() }));
        assert!(Preempted::new(other, "http://gcp").ask().unwrap_err().contains("not Google's"));
        let failed = Preempted::new(script(vec![reply(503, "")]), "http://gcp").ask().unwrap_err();
        assert!(failed.contains("status 503"), "{failed}");
        for bad in ["", "true", "TRUE TRUE", "<html>", "\u{fffd}"] {
            assert!(parse_preempted(bad.as_bytes()).is_err(), "{bad}");
            assert!(parse_maintenance(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
