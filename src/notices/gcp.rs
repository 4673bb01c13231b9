//! Google Cloud: the preemption of a spot or preemptible instance, and the maintenance of its host.
//!
//! The metadata server shows itself by a header; an answer without it comes from another server. `preempted` turns to
//! TRUE when the instance is told to shut down, 30 s before it is cut off. `maintenance-event` announces that the host
//! goes out of service: the instance is moved on while it runs (a pause, worth a snapshot), or ended, after 60 s, and
//! with a GPU after an hour. Source: cloud.google.com/compute/docs, "Preemptible VM instances", "Query the metadata
//! server for maintenance event notices".

use std::path::Path;
use std::time::Duration;

use super::http::{HttpClient, HttpMethod, HttpRequest, beginning, url};
use super::source::{AnnouncedEnd, Announcement, NoticeSource, SourceAnswer};

const PREEMPTED: &str = "/computeMetadata/v1/instance/preempted";
const MAINTENANCE: &str = "/computeMetadata/v1/instance/maintenance-event";
/// Of 30 s no more than this is lost by asking.
const INTERVAL: Duration = Duration::from_secs(1);
const PREEMPTION_LEAD: Duration = Duration::from_secs(30);
const MAINTENANCE_LEAD: Duration = Duration::from_secs(60);
const MAINTENANCE_LEAD_GPU: Duration = Duration::from_secs(3600);

struct GcpMetadata<N> {
    network: N,
    base: String,
}

impl<N: HttpClient> GcpMetadata<N> {
    fn get(&self, path: &str) -> Result<Vec<u8>, String> {
        let url = url(&self.base, path);
        let headers = [("Metadata-Flavor", "Google")];
        let reply = self.network.ask(&HttpRequest { method: HttpMethod::Get, url: &url, headers: &headers })?;
        match (reply.status, reply.flavor.as_deref()) {
            (200, Some("Google")) => Ok(reply.body),
            (200, _) => Err(format!("{url} is not Google's metadata server")),
            (status, _) => Err(format!("{url} answers with status {status}")),
        }
    }
}

pub struct GcpPreemption<N>(GcpMetadata<N>);

pub struct GcpMaintenance<N> {
    metadata: GcpMetadata<N>,
    has_gpu: bool,
}

impl<N: HttpClient> GcpPreemption<N> {
    pub fn new(network: N, base: &str) -> GcpPreemption<N> {
        GcpPreemption(GcpMetadata { network, base: base.into() })
    }
}

impl<N: HttpClient> NoticeSource for GcpPreemption<N> {
    fn name(&self) -> &'static str {
        "Google Cloud preemption"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let preempted = parse_preempted(&self.0.get(PREEMPTED)?)?;
        // What is asked once a second is known a second late.
        let when = AnnouncedEnd::In(PREEMPTION_LEAD - INTERVAL);
        let end = preempted.then(|| Announcement { text: "this instance is preempted".into(), end: when });
        Ok(SourceAnswer { end, again: Some(INTERVAL), ..SourceAnswer::default() })
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

impl<N: HttpClient> GcpMaintenance<N> {
    pub fn new(network: N, base: &str) -> GcpMaintenance<N> {
        let has_gpu = Path::new("/proc/driver/nvidia").exists();
        GcpMaintenance { metadata: GcpMetadata { network, base: base.into() }, has_gpu }
    }
}

impl<N: HttpClient> NoticeSource for GcpMaintenance<N> {
    fn name(&self) -> &'static str {
        "Google Cloud maintenance"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let mut answer = SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() };
        match parse_maintenance(&self.metadata.get(MAINTENANCE)?)? {
            MaintenanceEvent::None => {}
            MaintenanceEvent::Migrate => {
                answer.risks.insert("this instance is about to be moved to another host".into());
            }
            MaintenanceEvent::Terminate => {
                let lead = if self.has_gpu { MAINTENANCE_LEAD_GPU } else { MAINTENANCE_LEAD };
                let text = "this instance ends for maintenance of its host".into();
                answer.end = Some(Announcement { text, end: AnnouncedEnd::In(lead - INTERVAL) });
            }
        }
        Ok(answer)
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
pub enum MaintenanceEvent {
    None,
    Migrate,
    Terminate,
}

pub fn parse_maintenance(body: &[u8]) -> Result<MaintenanceEvent, String> {
    match body.trim_ascii() {
        b"NONE" => Ok(MaintenanceEvent::None),
        b"MIGRATE_ON_HOST_MAINTENANCE" => Ok(MaintenanceEvent::Migrate),
        b"TERMINATE_ON_HOST_MAINTENANCE" => Ok(MaintenanceEvent::Terminate),
        _ => Err(format!("no maintenance event: {}", beginning(body))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::http::HttpReply;
    use super::super::http::fake::{FakeClient, reply, script};
    use super::*;

    #[test]
    fn a_preemption_is_an_end_within_thirty_seconds() {
        let network = FakeClient(|request: &HttpRequest| {
            assert_eq!(request.url, "http://gcp/computeMetadata/v1/instance/preempted");
            assert_eq!(request.headers, [("Metadata-Flavor", "Google")]);
            reply(200, "TRUE\n")
        });
        let end = GcpPreemption::new(network, "http://gcp").ask().unwrap().end.unwrap();
        assert_eq!(end.end, AnnouncedEnd::In(Duration::from_secs(29)));
        assert_eq!(GcpPreemption::new(script(vec![reply(200, "FALSE")]), "http://gcp").ask().unwrap().end, None);
    }

    #[test]
    fn a_host_that_goes_moves_the_instance_or_ends_it_with_a_gpu_an_hour_later() {
        let ask = |body: &str, has_gpu: bool| {
            let metadata = GcpMetadata { network: script(vec![reply(200, body)]), base: "http://gcp".into() };
            GcpMaintenance { metadata, has_gpu }.ask().unwrap()
        };
        assert_eq!(ask("NONE", false), SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() });
        assert_eq!(ask("MIGRATE_ON_HOST_MAINTENANCE", true).risks.len(), 1);
        let lead = |has_gpu| ask("TERMINATE_ON_HOST_MAINTENANCE", has_gpu).end.unwrap().end;
        assert_eq!(lead(false), AnnouncedEnd::In(Duration::from_secs(59)));
        assert_eq!(lead(true), AnnouncedEnd::In(Duration::from_secs(3599)));
    }

    #[test]
    fn an_answer_of_another_server_or_of_another_form_is_none() {
        let other = FakeClient(|_: &HttpRequest| Ok(HttpReply { status: 200, flavor: None, body: b"TRUE".to_vec() }));
        assert!(GcpPreemption::new(other, "http://gcp").ask().unwrap_err().contains("not Google's"));
        let failed = GcpPreemption::new(script(vec![reply(503, "")]), "http://gcp").ask().unwrap_err();
        assert!(failed.contains("status 503"), "{failed}");
        for bad in ["", "true", "TRUE TRUE", "<html>", "\u{fffd}"] {
            assert!(parse_preempted(bad.as_bytes()).is_err(), "{bad}");
            assert!(parse_maintenance(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
