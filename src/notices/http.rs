//! How a metadata service is asked: plain HTTP to an address of the machine's own.
//!
//! Invariant: an answer takes two seconds and 64 KiB at most; no proxy of the environment is used and no
//! redirect is followed, so that only the service itself is believed. Deliberately not here: what is asked.

use std::time::Duration;

use ureq::http;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_BODY: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpMethod {
    Get,
    Put,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest<'a> {
    pub method: HttpMethod,
    pub url: &'a str,
    pub headers: &'a [(&'static str, &'a str)],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReply {
    pub status: u16,
    /// The header Metadata-Flavor, by which Google's service shows itself.
    pub flavor: Option<String>,
    pub body: Vec<u8>,
}

/// The network, or what takes its place in a test.
pub trait HttpClient: Send {
    /// The reply, with any status; `Err` says in a clause why there is no reply.
    fn ask(&self, request: &HttpRequest) -> Result<HttpReply, String>;
}

pub struct DirectClient {
    agent: ureq::Agent,
}

impl DirectClient {
    pub fn new() -> DirectClient {
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .max_response_header_size(MAX_BODY as usize)
            // A connection that is kept may be dead when it is needed.
            .max_idle_connections(0)
            .user_agent(concat!("ckptd/", env!("CARGO_PKG_VERSION")))
            .build();
        DirectClient { agent: config.into() }
    }
}

impl Default for DirectClient {
    fn default() -> DirectClient {
        DirectClient::new()
    }
}

impl HttpClient for DirectClient {
    fn ask(&self, request: &HttpRequest) -> Result<HttpReply, String> {
        let method = match request.method {
            HttpMethod::Get => http::Method::GET,
            HttpMethod::Put => http::Method::PUT,
        };
        let mut builder = http::Request::builder().method(method).uri(request.url);
        if request.method == HttpMethod::Put {
            // Without it ureq 3.5 sends an empty body in chunks, after a service may have answered and closed.
            builder = builder.header("content-length", "0");
        }
        for (name, value) in request.headers {
            builder = builder.header(*name, *value);
        }
        let fault = |e: ureq::Error| match e {
            ureq::Error::Timeout(_) => format!("{} gives no answer in time", request.url),
            ureq::Error::BodyExceedsLimit(_) => format!("the answer of {} is larger than 64 KiB", request.url),
            other => format!("asking {}: {other}", request.url),
        };
        let asked = builder.body(()).map_err(|e| format!("asking {}: {e}", request.url))?;
        let mut reply = self.agent.run(asked).map_err(fault)?;
        let flavor = reply.headers().get("metadata-flavor").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = reply.body_mut().with_config().limit(MAX_BODY).read_to_vec().map_err(fault)?;
        Ok(HttpReply { status: reply.status().as_u16(), flavor, body })
    }
}

/// `base` and `path` as one address.
pub fn url(base: &str, path: &str) -> String {
    format!("{}{path}", base.trim_end_matches('/'))
}

/// The beginning of an answer that was not understood, for a message.
pub fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(80)]);
    format!("{:?}", text.trim())
}

#[cfg(test)]
pub mod fake {
    //! A network of answers that a test has prepared.

    use std::sync::Mutex;

    use super::*;

    /// Answers with what `answer` says about method, address and headers.
    pub struct FakeClient<F>(pub F);

    impl<F: Fn(&HttpRequest) -> Result<HttpReply, String> + Send> HttpClient for FakeClient<F> {
        fn ask(&self, request: &HttpRequest) -> Result<HttpReply, String> {
            (self.0)(request)
        }
    }

    pub fn reply(status: u16, body: &str) -> Result<HttpReply, String> {
        Ok(HttpReply { status, flavor: Some("Google".into()), body: body.as_bytes().to_vec() })
    }

    /// Answers in a row, to any question.
    pub fn script(replies: Vec<Result<HttpReply, String>>) -> impl HttpClient {
        let replies = Mutex::new(replies.into_iter());
        FakeClient(move |_: &HttpRequest| {
            let next = replies.lock().map_err(|e| e.to_string())?.next();
            next.unwrap_or_else(|| Err("the script is over".into()))
        })
    }
}
