//! AWS: the interruption of a spot instance, and the recommendation to rebalance.
//!
//! The instance metadata service, version 2: a token by PUT, then GET with the token. 404 says that nothing is
//! announced. "terminate" and "stop" come about two minutes ahead, at best; "hibernate" begins at once and keeps the
//! memory: a snapshot is all there is to do. Deliberately not here: version 1, which needs no token.
//! Source: docs.aws.amazon.com, "Spot Instance interruption notices", "EC2 instance rebalance recommendations".

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::http::{HttpClient, HttpMethod, HttpRequest, beginning, url};
use super::source::{AnnouncedEnd, Announcement, NoticeSource, SourceAnswer};

const TOKEN: &str = "/latest/api/token";
const ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
/// As the documentation recommends.
const INTERVAL: Duration = Duration::from_secs(5);
const MAX_TOKEN: usize = 1024;

/// The metadata service, with its token.
struct AwsMetadata<N> {
    network: N,
    base: String,
    token: Option<String>,
}

impl<N: HttpClient> AwsMetadata<N> {
    /// What lies under `path`; `None`: nothing.
    fn get(&mut self, path: &str) -> Result<Option<Vec<u8>>, String> {
        let url = url(&self.base, path);
        let mut renewed = self.token.is_none();
        loop {
            let token = match self.token.take() {
                Some(token) => token,
                None => self.new_token()?,
            };
            let headers = [("X-aws-ec2-metadata-token", token.as_str())];
            let reply = self.network.ask(&HttpRequest { method: HttpMethod::Get, url: &url, headers: &headers });
            match reply {
                // It has expired.
                Ok(reply) if reply.status == 401 && !renewed => {
                    renewed = true;
                    continue;
                }
                Ok(reply) if reply.status == 401 => return Err(format!("{url} refuses a new token")),
                reply => {
                    self.token = Some(token);
                    let reply = reply?;
                    return match reply.status {
                        200 => Ok(Some(reply.body)),
                        404 => Ok(None),
                        status => Err(format!("{url} answers with status {status}")),
                    };
                }
            }
        }
    }

    fn new_token(&self) -> Result<String, String> {
        let url = url(&self.base, TOKEN);
        let headers = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
        let reply = self.network.ask(&HttpRequest { method: HttpMethod::Put, url: &url, headers: &headers })?;
        if reply.status != 200 {
            return Err(format!("{url} gives no token: status {}", reply.status));
        }
        parse_token(&reply.body)
    }
}

pub struct SpotInterruption<N>(AwsMetadata<N>);
pub struct RebalanceAdvice<N>(AwsMetadata<N>);

impl<N: HttpClient> SpotInterruption<N> {
    pub fn new(network: N, base: &str) -> SpotInterruption<N> {
        SpotInterruption(AwsMetadata { network, base: base.into(), token: None })
    }
}

impl<N: HttpClient> NoticeSource for SpotInterruption<N> {
    fn name(&self) -> &'static str {
        "AWS spot"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let mut answer = SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() };
        if let Some(body) = self.0.get(ACTION)? {
            let SpotAction { kind, time } = parse_action(&body)?;
            match kind {
                SpotActionKind::Hibernate => {
                    answer.risks.insert(format!("hibernate at {time}"));
                }
                SpotActionKind::Terminate | SpotActionKind::Stop => {
                    answer.end =
                        Some(Announcement { text: format!("{} at {time}", kind.name()), end: AnnouncedEnd::At(time) });
                }
            }
        }
        Ok(answer)
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

impl<N: HttpClient> RebalanceAdvice<N> {
    pub fn new(network: N, base: &str) -> RebalanceAdvice<N> {
        RebalanceAdvice(AwsMetadata { network, base: base.into(), token: None })
    }
}

impl<N: HttpClient> NoticeSource for RebalanceAdvice<N> {
    fn name(&self) -> &'static str {
        "AWS rebalance"
    }

    fn ask(&mut self) -> Result<SourceAnswer, String> {
        let mut answer = SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() };
        if let Some(body) = self.0.get(REBALANCE)? {
            answer.risks.insert(format!("recommended at {}", parse_rebalance(&body)?));
        }
        Ok(answer)
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpotActionKind {
    Terminate,
    Stop,
    Hibernate,
}

impl SpotActionKind {
    const fn name(self) -> &'static str {
        match self {
            SpotActionKind::Terminate => "terminate",
            SpotActionKind::Stop => "stop",
            SpotActionKind::Hibernate => "hibernate",
        }
    }
}

/// `spot/instance-action`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct SpotAction {
    #[serde(rename = "action")]
    pub kind: SpotActionKind,
    pub time: Timestamp,
}

pub fn parse_action(body: &[u8]) -> Result<SpotAction, String> {
    serde_json::from_slice(body).map_err(|e| format!("no instance-action: {e} in {}", beginning(body)))
}

pub fn parse_rebalance(body: &[u8]) -> Result<Timestamp, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Recommendation {
        notice_time: Timestamp,
    }
    serde_json::from_slice(body)
        .map(|recommendation: Recommendation| recommendation.notice_time)
        .map_err(|e| format!("no rebalance recommendation: {e} in {}", beginning(body)))
}

/// A token is sent back as a header's value, and a secret: it is in no message.
pub fn parse_token(body: &[u8]) -> Result<String, String> {
    let token = body.trim_ascii();
    match token.len() {
        1..=MAX_TOKEN if token.iter().all(u8::is_ascii_graphic) => Ok(String::from_utf8_lossy(token).into_owned()),
        _ => Err("what came as a token is none".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::super::http::fake::{FakeClient, reply, script};
    use super::*;

    #[test]
    fn an_interruption_is_an_end_at_its_time_and_a_hibernation_a_risk() {
        let body = r#"{"action": "terminate", "time": "2026-11-24T08:22:00Z"}"#;
        let mut spot =
            SpotInterruption::new(script(vec![reply(200, "TOKEN"), reply(404, ""), reply(200, body)]), "http://aws/");
        assert_eq!(spot.ask().unwrap(), SourceAnswer { again: Some(INTERVAL), ..SourceAnswer::default() });
        let end = spot.ask().unwrap().end.unwrap();
        assert_eq!(end.end, AnnouncedEnd::At("2026-11-24T08:22:00Z".parse().unwrap()));
        assert_eq!(end.text, "terminate at 2026-11-24T08:22:00Z");
        let body = r#"{"action":"hibernate","time":"2026-11-24T08:22:00Z"}"#;
        let answer =
            SpotInterruption::new(script(vec![reply(200, "T"), reply(200, body)]), "http://aws").ask().unwrap();
        assert_eq!((answer.end, answer.risks.len()), (None, 1));
    }

    #[test]
    fn a_token_that_has_expired_is_renewed_once_and_a_recommendation_is_a_risk() {
        let tokens = Mutex::new(0);
        let network = FakeClient(move |request: &HttpRequest| {
            let mut tokens = tokens.lock().unwrap();
            match request.method {
                HttpMethod::Put => {
                    assert_eq!(request.url, "http://aws/latest/api/token");
                    *tokens += 1;
                    reply(200, &format!("token-{tokens}"))
                }
                HttpMethod::Get if request.headers[0] == ("X-aws-ec2-metadata-token", "token-1") => {
                    reply(200, r#"{"noticeTime": "2026-11-24T08:22:00Z"}"#)
                }
                HttpMethod::Get => reply(401, ""),
            }
        });
        let mut source = RebalanceAdvice::new(network, "http://aws");
        source.0.token = Some("old".into());
        assert_eq!(source.ask().unwrap().risks, ["recommended at 2026-11-24T08:22:00Z".to_owned()].into());
        let always = |_: &HttpRequest| reply(200, "t");
        assert!(
            SpotInterruption::new(FakeClient(always), "http://aws").ask().unwrap_err().contains("no instance-action")
        );
    }

    #[test]
    fn a_service_that_refuses_every_token_is_asked_no_more_than_twice() {
        let network = FakeClient(|request: &HttpRequest| match request.method {
            HttpMethod::Put => reply(200, "t"),
            HttpMethod::Get => reply(401, ""),
        });
        let mut spot = SpotInterruption::new(network, "http://aws");
        assert!(spot.ask().unwrap_err().contains("refuses a new token"));
        spot.0.token = Some("old".into());
        assert!(spot.ask().unwrap_err().contains("refuses a new token"));
        for bad in ["", " ", "a b", "t\u{e9}", &"x".repeat(2000)] {
            assert!(parse_token(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_announcement_is_an_error() {
        for bad in [
            "",
            "null",
            "[]",
            "<html>",
            r#"{"action":"terminate"}"#,
            r#"{"action":"explode","time":"2026-11-24T08:22:00Z"}"#,
            r#"{"action":"stop","time":"soon"}"#,
            r#"{"action":"stop","time":1}"#,
            "\u{0}",
        ] {
            assert!(parse_action(bad.as_bytes()).is_err(), "{bad}");
            assert!(parse_rebalance(bad.as_bytes()).is_err(), "{bad}");
        }
        let refused = SpotInterruption::new(script(vec![reply(403, "")]), "http://aws").ask().unwrap_err();
        assert!(refused.contains("no token: status 403"), "{refused}");
        let failed =
            SpotInterruption::new(script(vec![reply(200, "t"), reply(302, "")]), "http://aws").ask().unwrap_err();
        assert!(failed.contains("status 302"), "{failed}");
    }
}
