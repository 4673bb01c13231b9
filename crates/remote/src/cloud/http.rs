//! HTTP requests that end when no byte has moved for a while, whatever their size; and what the answers' `Date` says of
//! this machine's clock.
//!
//! Invariant: a request that may have reached the server is never reported as one that did not.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use tokio::time::{Instant, Sleep};

use crate::errors::ErrorKind;
use crate::settings::RemoteSettings;

/// Bodies go out in pieces of so many bytes, so that their progress is seen.
const PIECE_BYTES: usize = 128 << 10;
/// Metadata services answer at once, or are not there.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
/// No `Date` has been seen yet.
const UNKNOWN: i64 = i64::MIN;

/// How far this machine's clock is ahead of the store's, in seconds, as the newest answer says.
#[derive(Clone, Debug)]
pub struct ClockOffset(Arc<AtomicI64>);

impl ClockOffset {
    fn new() -> ClockOffset {
        ClockOffset(Arc::new(AtomicI64::new(UNKNOWN)))
    }

    /// Seconds ahead (behind: negative); none before the first answer.
    pub fn seconds(&self) -> Option<i64> {
        Some(self.0.load(Relaxed)).filter(|seconds| *seconds != UNKNOWN)
    }

    fn note(&self, headers: &::http::HeaderMap) {
        let date = headers.get(::http::header::DATE).and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()) {
            self.0.store(jiff::Timestamp::now().as_second() - date.timestamp().as_second(), Relaxed);
        }
    }
}

/// Makes requests through one pool of connections.
#[derive(Clone, Debug)]
pub struct Transport {
    client: reqwest::Client,
    metadata: reqwest::Client,
    stall: Duration,
    clock: ClockOffset,
    is_tampering: bool,
}

impl Transport {
    /// A pool of connections for `settings`.
    ///
    /// # Errors
    /// What is wrong with the certificates, as a clause.
    pub fn new(settings: &RemoteSettings) -> Result<Transport, (ErrorKind, String)> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // refused where there is one already
        let builder = || -> Result<reqwest::ClientBuilder, (ErrorKind, String)> {
            let mut builder = reqwest::Client::builder().http1_only().redirect(reqwest::redirect::Policy::none());
            for certificate in certificates(settings)? {
                builder = builder.add_root_certificate(certificate);
            }
            Ok(builder)
        };
        let broken = |e: reqwest::Error| (ErrorKind::Config, format!("the HTTP client cannot be set up: {e}"));
        let client = builder()?.connect_timeout(settings.connect_timeout).build().map_err(broken)?;
        let metadata = builder()?.connect_timeout(METADATA_TIMEOUT).no_proxy().build().map_err(broken)?;
        Ok(Transport { client, metadata, stall: settings.stall, clock: ClockOffset::new(), is_tampering: false })
    }

    /// The clock, as the answers to all its requests show it.
    pub fn clock(&self) -> ClockOffset {
        self.clock.clone()
    }

    /// The same, but it changes a bit of each body that it sends: a store that compares digests refuses them all.
    pub fn tampering(&self) -> Transport {
        Transport { is_tampering: true, ..self.clone() }
    }

    /// What is given to the client library.
    pub fn options(&self) -> ClientOptions {
        ClientOptions::new()
    }
}

fn certificates(settings: &RemoteSettings) -> Result<Vec<reqwest::Certificate>, (ErrorKind, String)> {
    let Some(path) = &settings.ca_file else { return Ok(Vec::new()) };
    let fail = |what: String| (ErrorKind::Config, format!("the certificates in {}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let all = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| fail(e.to_string()))?;
    if all.is_empty() { Err(fail("there is none; PEM is expected".into())) } else { Ok(all) }
}

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // The library asks for other time-outs where it reaches for a metadata service.
        let key = object_store::ClientConfigKey::ConnectTimeout;
        let is_metadata = options.get_config_value(&key) != self.options().get_config_value(&key);
        let client = if is_metadata { &self.metadata } else { &self.client };
        Ok(HttpClient::new(Transport { client: client.clone(), ..self.clone() }))
    }
}

#[async_trait::async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let is_list = is_list(&parts.uri);
        let url = parts.uri.to_string().parse().map_err(|e| HttpError::new(HttpErrorKind::Unknown, Malformed(e)))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        let progress = Progress::default();
        if body.content_length() > 0 {
            *request.body_mut() = Some(reqwest::Body::wrap(SentBody::new(body, progress.clone(), self.is_tampering)));
        }
        let answer = self.client.execute(request);
        let response = progress.watch(self.stall, answer).await?.map_err(http_error)?;
        let response: ::http::Response<reqwest::Body> = response.into();
        self.clock.note(response.headers());
        let (mut parts, body) = response.into_parts();
        let body = HttpResponseBody::new(ReceivedBody::new(body, self.stall));
        if !is_list || !parts.status.is_success() {
            return Ok(HttpResponse::from_parts(parts, body));
        }
        let page = body.bytes().await?;
        if !is_whole_page(&page) {
            parts.status = ::http::StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(HttpResponse::from_parts(parts, page.into()))
    }
}

/// Whether a page of a list is asked for, of a bucket or a container.
fn is_list(uri: &::http::Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "list-type=2" || pair == "comp=list"))
}

/// Whether an answer is a page of a list that says how it goes on. The client library takes any other document, such as
/// an error with the status 200, for an empty last page.
fn is_whole_page(page: &[u8]) -> bool {
    let has = |text: &[u8]| page.windows(text.len()).any(|window| window == text);
    let is_bucket = has(b"<ListBucketResult") && has(b"</ListBucketResult>");
    let goes_on = !has(b"<IsTruncated>true<") || has(b"<NextContinuationToken>");
    is_bucket && goes_on || has(b"<EnumerationResults") && has(b"</EnumerationResults>")
}

#[derive(Debug, thiserror::Error)]
#[error("the address is malformed: {0}")]
struct Malformed(url::ParseError);

#[derive(Debug, thiserror::Error)]
#[error("nothing moved for {} s", .0.as_secs_f64())]
struct Stalled(Duration);

fn stalled(stall: Duration) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, Stalled(stall))
}

/// Only what failed before a connection stood has certainly not been seen by the server.
fn http_error(e: reqwest::Error) -> HttpError {
    let kind = match () {
        () if e.is_connect() => HttpErrorKind::Connect,
        () if e.is_timeout() => HttpErrorKind::Timeout,
        () if e.is_builder() => HttpErrorKind::Unknown,
        () => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, e.without_url())
}

/// How often a body gave a piece.
#[derive(Clone, Debug, Default)]
struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Waits for `answer` as long as something moves.
    async fn watch<T>(&self, stall: Duration, answer: impl Future<Output = T>) -> Result<T, HttpError> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let before = self.0.load(Relaxed);
            match tokio::time::timeout(stall, answer.as_mut()).await {
                Ok(answer) => return Ok(answer),
                Err(_) if self.0.load(Relaxed) == before => return Err(stalled(stall)),
                Err(_) => {}
            }
        }
    }
}

/// A body on its way out.
struct SentBody {
    body: HttpRequestBody,
    piece: Bytes,
    left: u64,
    progress: Progress,
    is_tampering: bool,
}

impl SentBody {
    fn new(body: HttpRequestBody, progress: Progress, is_tampering: bool) -> SentBody {
        let left = body.content_length() as u64;
        SentBody { body, piece: Bytes::new(), left, progress, is_tampering }
    }
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        while self.piece.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.piece = frame.into_data().unwrap_or_default(),
                other => return other,
            }
        }
        let bytes = PIECE_BYTES.min(self.piece.len());
        let mut piece = self.piece.split_to(bytes);
        if std::mem::take(&mut self.is_tampering) {
            let mut other = piece.to_vec();
            other[0] ^= 1;
            piece = other.into();
        }
        self.left = self.left.saturating_sub(bytes as u64);
        self.progress.0.fetch_add(1, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A body on its way in: an error where nothing comes for a while although it is waited for.
struct ReceivedBody {
    body: reqwest::Body,
    stall: Duration,
    timer: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl ReceivedBody {
    fn new(body: reqwest::Body, stall: Duration) -> ReceivedBody {
        ReceivedBody { body, stall, timer: Box::pin(tokio::time::sleep(stall)), is_waiting: false }
    }
}

impl Body for ReceivedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(http_error)));
        }
        if !std::mem::replace(&mut self.is_waiting, true) {
            let until = Instant::now() + self.stall;
            self.timer.as_mut().reset(until);
        }
        let stall = self.stall;
        self.timer.as_mut().poll(cx).map(|()| Some(Err(stalled(stall))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
