//! AWS: the interruption of a spot instance, and the recommendation to rebalance.
//!
//! The instance metadata service, version 2: a token by PUT, then GET with the token. 404 says that nothing is
//! announced. "terminate" and "stop" come about two minutes ahead, at best; "hibernate" begins at once and keeps the
//! memory, so that a snapshot is all there is to do. Deliberately not here: version 1, which needs no token.
//! Source: docs.aws.amazon.com, "Spot Instance interruption notices", "EC2 instance rebalance recommendations".

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::http::{Method, Network, Request, beginning, url};
use super::{End, Found, Source, When};

const TOKEN: &str = "/latest/api/token";
const ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
/// As the documentation recommends.
const INTERVAL: Duration = Duration::from_secs(5);
const MAX_TOKEN: usize = 1024;

/// The metadata service, with its token.
struct Metadata<N> {
    network: N,
    base: String,
    token: Option<String>,
}

impl<N: Network> Metadata<N> {
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
            let reply = self.network.ask(&Request { method: Method::Get, url: &url, headers: &headers });
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
        let reply = self.network.ask(&Request { method: Method::Put, url: &url, headers: &headers })?;
        if reply.status != 200 {
            return Err(format!("{url} gives no token: status {}", reply.status));
        }
        parse_token(&reply.body)
    }
}

pub struct Spot<N>(Metadata<N>);
pub struct Rebalance<N>(Metadata<N>);

impl<N: Network> Spot<N> {
    pub fn new(network: N, base: &str) -> Spot<N> {
        Spot(Metadata { network, base: base.into(), token: None })
    }
}

impl<N: Network> Source for Spot<N> {
    fn name(&self) -> &'static str {
        "AWS spot"
    }

    fn ask(&mut self) -> Result<Found, String> {
        let mut found = Found { again: Some(INTERVAL), ..Found::default() };
        if let Some(body) = self.0.get(ACTION)? {
            let Action { kind, time } = parse_action(&body)?;
            match kind {
                Kind::Hibernate => {
                    found.risks.insert(format!("hibernate at {time}"));
                }
                Kind::Terminate | Kind::Stop => {
                    found.end = Some(End { what: format!("{} at {time}", kind.name()), when: When::At(time) });
                }
            }
        }
        Ok(found)
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

impl<N: Network> Rebalance<N> {
    pub fn new(network: N, base: &str) -> Rebalance<N> {
        Rebalance(Metadata { network, base: base.into(), token: None })
    }
}

impl<N: Network> Source for Rebalance<N> {
    fn name(&self) -> &'static str {
        "AWS rebalance"
    }

    fn ask(&mut self) -> Result<Found, String> {
        let mut found = Found { again: Some(INTERVAL), ..Found::default() };
        if let Some(body) = self.0.get(REBALANCE)? {
            found.risks.insert(format!("recommended at {}", parse_rebalance(&body)?));
        }
        Ok(found)
    }

    fn retry_after(&self) -> Duration {
        INTERVAL
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Terminate,
    Stop,
    Hibernate,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Terminate => "terminate",
            Kind::Stop => "stop",
            Kind::Hibernate => "hibernate",
        }
    }
}

/// `spot/instance-action`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Action {
    #[serde(rename = "action")]
    pub kind: Kind,
    pub time: Timestamp,
}

pub fn parse_action(body: &[u8]) -> Result<Action, String> {
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

    use super::super::http::fake::{Fake, reply, script};
    use super::*;

    #[test]
    fn an_interruption_is_an_end_at_its_time_and_a_hibernation_a_risk() {
        let body = r#"{"action": "terminate", "time": "2026-11-24T08:22:00Z"}"#;
        let mut spot = Spot::new(script(vec![reply(200, "TOKEN"), reply(404, ""), reply(200, body)]), "http://aws/");
        assert_eq!(spot.ask().unwrap(), Found { again: Some(INTERVAL), ..Found::default() });
        let end = spot.ask().unwrap().end.unwrap();
        assert_eq!(end.when, When::At("2026-11-24T08:22:00Z".parse().unwrap()));
        assert_eq!(end.what, "terminate at 2026-11-24T08:22:00Z");
        let body = r#"{"action":"hibernate","time":"2026-11-24T08:22:00Z"}"#;
        let found = Spot::new(script(vec![reply(200, "T"), reply(200, body)]), "http://aws").ask().unwrap();
        assert_eq!((found.end, found.risks.len()), (None, 1));
    }

    #[test]
    fn a_token_that_has_expired_is_renewed_once_and_a_recommendation_is_a_risk() {
        let tokens = Mutex::new(0);
        let network = Fake(move |request: &Request| {
            let mut tokens = tokens.lock().unwrap();
            match request.method {
                Method::Put => {
                    assert_eq!(request.url, "http://aws/latest/api/token");
                    *tokens += 1;
                    reply(200, &format!("token-{tokens}"))
                }
                Method::Get if request.headers[0] == ("X-aws-ec2-metadata-token", "token-1") => {
                    reply(200, r#"{"noticeTime": "2026-11-24T08:22:00Z"}"#)
                }
                Method::Get => reply(401, ""),
            }
        });
        let mut source = Rebalance::new(network, "http://aws");
        source.0.token = Some("old".into());
        assert_eq!(source.ask().unwrap().risks, ["recommended at 2026-11-24T08:22:00Z".to_owned()].into());
        let always = |_: &Request| reply(200, "t");
        assert!(Spot::new(Fake(always), "http://aws").ask().unwrap_err().contains("no instance-action"));
    }

    #[test]
    fn a_service_that_refuses_every_token_is_asked_no_more_than_twice() {
        let network = Fake(|request: &Request| match request.method {
            Method::Put => reply(200, "t"),
            Method::Get => reply(401, ""),
        });
        let mut spot = Spot::new(network, "http://aws");
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
        let refused = Spot::new(script(vec![reply(403, "")]), "http://aws").ask().unwrap_err();
        assert!(refused.contains("no token: status 403"), "{refused}");
        let failed = Spot::new(script(vec![reply(200, "t"), reply(302, "")]), "http://aws").ask().unwrap_err();
        assert!(failed.contains("status 302"), "{failed}");
    }
}
