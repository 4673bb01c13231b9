//! A proxy before an HTTP server that breaks requests on purpose, by method and path.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::listener::{AnswerBody, Broken, Connection, Listener, Service, whole};
use crate::random::SeededRandom;

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status and body; the server sees nothing.
    Status(u16, &'static str),
    /// The connection is reset; the server sees nothing.
    Reset,
    /// No answer ever; the server sees nothing.
    Stall,
    /// The server has applied it; the connection is reset instead of an answer.
    LostAnswer,
    /// The server has applied it; this status is answered.
    AppliedThen(u16),
    /// The server sees it only after so long; until then there is no answer.
    Late(Duration),
    /// The answer breaks off after so many bytes of its body.
    Cut(usize),
    /// The answer stops, without an end, after so many bytes of its body.
    StallAfter(usize),
    /// The answer comes so many bytes in each tenth of a second.
    Slow(usize),
    /// A bit of the request's body is changed.
    FlipRequest,
    /// A bit of the answer's body is changed.
    FlipAnswer,
    /// The connection is closed after the answer, which does not say so.
    CloseAfter,
}

/// Which requests a fault happens to.
#[derive(Clone, Debug)]
pub struct Rule {
    pub method: &'static str,
    /// A part of path and query.
    pub contains: String,
    /// So many matching requests pass before.
    pub after: u32,
    /// Then it happens so many times.
    pub times: u32,
    pub fault: Fault,
}

impl Rule {
    /// Once, to the first such request.
    pub fn once(method: &'static str, contains: &str, fault: Fault) -> Rule {
        Rule { method, contains: contains.into(), after: 0, times: 1, fault }
    }

    /// To every such request.
    pub fn always(method: &'static str, contains: &str, fault: Fault) -> Rule {
        Rule { times: u32::MAX, ..Rule::once(method, contains, fault) }
    }
}

/// A running proxy.
pub struct FaultProxy {
    service: Arc<Proxy>,
    listener: Listener,
}

struct Proxy {
    server: String,
    client: Client<HttpConnector, Full<Bytes>>,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    storm: Option<(SeededRandom, Vec<(u64, Fault)>)>,
    requests: u64,
    faults: u64,
}

impl FaultProxy {
    /// A proxy before `server`, as `http://127.0.0.1:port`.
    pub fn start(server: &str) -> FaultProxy {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let service = Arc::new(Proxy { server: server.to_owned(), client, plan: Mutex::default() });
        FaultProxy { listener: Listener::start(Arc::clone(&service)), service }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address)
    }

    /// In place of all rules so far.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        let mut plan = self.service.plan();
        *plan = Plan { rules: rules.into_iter().collect(), ..Plan::default() };
    }

    /// Each fault happens to so many requests of a thousand.
    pub fn storm(&self, seed: u64, shares: impl IntoIterator<Item = (u64, Fault)>) {
        let mut plan = self.service.plan();
        *plan = Plan { storm: Some((SeededRandom::new(seed), shares.into_iter().collect())), ..Plan::default() };
    }

    /// Requests, and how many of them met a fault, since the rules were set.
    pub fn counts(&self) -> (u64, u64) {
        let plan = self.service.plan();
        (plan.requests, plan.faults)
    }
}

impl Plan {
    /// The fault that happens to a request now.
    fn next(&mut self, method: &str, path: &str) -> Option<Fault> {
        self.requests += 1;
        let rule = self.rules.iter_mut().find(|rule| {
            rule.times > 0 && (rule.method.is_empty() || rule.method == method) && path.contains(rule.contains.as_str())
        });
        let fault = match (rule, &mut self.storm) {
            (Some(rule), _) if rule.after > 0 => {
                rule.after -= 1;
                None
            }
            (Some(rule), _) => {
                rule.times = rule.times.saturating_sub(1);
                Some(rule.fault.clone())
            }
            (None, Some((random, shares))) => {
                let mut drawn = random.below(1000);
                let hit = shares.iter().find(|(share, _)| {
                    let is_hit = drawn < *share;
                    drawn = drawn.saturating_sub(*share);
                    is_hit
                });
                hit.map(|(_, fault)| fault.clone())
            }
            (None, None) => None,
        };
        self.faults += u64::from(fault.is_some());
        fault
    }
}

impl Service for Proxy {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response<AnswerBody>, Broken> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let fault = self.plan().next(request.method().as_str(), &path);
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        match fault {
            None | Some(Fault::CloseAfter) => {
                let mut answer = self.forward(parts, body).await?;
                if fault.is_some() {
                    // Told neither in a header nor in time: the client finds out when it writes the next request.
                    answer.headers_mut().remove("connection");
                    tokio::spawn(close_soon(connection));
                }
                Ok(answer)
            }
            Some(Fault::Status(status, text)) => Ok(answer(status, text)),
            Some(Fault::Reset) => reset(&connection),
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::LostAnswer) => {
                self.forward(parts, body).await?;
                reset(&connection)
            }
            Some(Fault::AppliedThen(status)) => {
                self.forward(parts, body).await?;
                Ok(answer(status, ""))
            }
            Some(Fault::Late(delay)) => {
                // The request arrives even if its sender has given up.
                let late = tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    self.forward(parts, body).await
                });
                late.await.map_err(|_| Broken)?
            }
            Some(Fault::FlipRequest) => self.forward(parts, flip(body)).await,
            Some(fault) => self.forward_broken(parts, body, &fault).await,
        }
    }
}

impl Proxy {
    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forward(&self, parts: hyper::http::request::Parts, body: Bytes) -> Result<Response<AnswerBody>, Broken> {
        let (parts, body) = self.ask(parts, body).await?;
        Ok(Response::from_parts(parts, whole(body)))
    }

    async fn ask(
        &self,
        mut parts: hyper::http::request::Parts,
        body: Bytes,
    ) -> Result<(hyper::http::response::Parts, Bytes), Broken> {
        let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        parts.uri = format!("{}{path}", self.server).parse().map_err(|_| Broken)?;
        let answer = self.client.request(Request::from_parts(parts, Full::new(body))).await.map_err(|_| Broken)?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        Ok((parts, body))
    }

    /// An answer whose body does not come as it should.
    async fn forward_broken(
        &self,
        parts: hyper::http::request::Parts,
        body: Bytes,
        fault: &Fault,
    ) -> Result<Response<AnswerBody>, Broken> {
        let (parts, body) = self.ask(parts, body).await?;
        let body = match *fault {
            Fault::FlipAnswer => whole(flip(body)),
            Fault::Cut(bytes) => {
                let start = body.slice(..bytes.min(body.len()));
                StreamBody::new(stream::iter([Ok(Frame::data(start)), Err(Broken)])).boxed()
            }
            Fault::StallAfter(bytes) => {
                let start = body.slice(..bytes.min(body.len()));
                let frames = stream::unfold(Some(start), |start| async move {
                    match start {
                        Some(start) => Some((Ok(Frame::data(start)), None)),
                        None => std::future::pending().await,
                    }
                });
                BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(frames)))))
            }
            Fault::Slow(bytes) => {
                let frames = stream::unfold(body, move |mut left| async move {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let piece = left.split_to(bytes.min(left.len()));
                    (!piece.is_empty()).then_some((Ok(Frame::data(piece)), left))
                });
                BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(frames)))))
            }
            _ => whole(body),
        };
        Ok(Response::from_parts(parts, body))
    }
}

type Frames = std::pin::Pin<Box<dyn stream::Stream<Item = Result<Frame<Bytes>, Broken>> + Send>>;

/// A stream that may be shared between threads, as bodies must.
struct SyncStream(Mutex<Frames>);

impl stream::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, Broken>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll_next(cx)
    }
}

fn reset(connection: &Connection) -> Result<Response<AnswerBody>, Broken> {
    connection.reset_at_end();
    Err(Broken)
}

async fn close_soon(connection: Arc<Connection>) {
    tokio::time::sleep(Duration::from_millis(20)).await;
    connection.close();
}

fn flip(body: Bytes) -> Bytes {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 1;
    }
    body.into()
}

fn answer(status: u16, text: &str) -> Response<AnswerBody> {
    let body = whole(Bytes::from(text.to_owned()));
    Response::builder().status(status).body(body).expect("a status makes an answer")
}
