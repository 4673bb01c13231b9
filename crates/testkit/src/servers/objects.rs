//! An object store in memory that speaks S3's protocol and the XML dialect of Google Cloud Storage: conditions, parts,
//! ranges, lists, digests.
//!
//! Invariant: every change happens in one step under one lock, so that of many writers who race under a condition
//! exactly one is told that it won. Deliberately not here: signatures, which are not looked at (but for their time).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response};

use super::date::http_date;
use super::listener::{AnswerBody, Broken, Connection, Listener, Service, whole};
use super::request::ObjectRequest;
use super::state::{Behaviour, Condition, Crc64, Refusal, State, Stored};

/// S3 refuses signatures that are older.
const MAX_SIGNATURE_AGE_S: i64 = 900;

const CRC64: &str = "x-amz-checksum-crc64nvme";

/// A running server. Buckets are there when they are written to.
pub struct ObjectServer {
    service: Arc<Objects>,
    listener: Listener,
}

#[derive(Default)]
struct Objects {
    state: Mutex<State>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl ObjectServer {
    /// On the loopback.
    pub fn start() -> ObjectServer {
        ObjectServer::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// At an address of this machine.
    pub fn start_at(address: IpAddr) -> ObjectServer {
        let service = Arc::new(Objects::default());
        ObjectServer { listener: Listener::start_at(address, Arc::clone(&service)), service }
    }

    /// Such as `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address)
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state().behaviour);
    }

    /// What is kept; the server waits meanwhile.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.service.state()
    }

    /// Requests of each kind so far.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.service.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Service for Objects {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        _connection: Arc<Connection>,
    ) -> Result<Response<AnswerBody>, Broken> {
        let request = ObjectRequest::read(request).await.ok_or(Broken)?;
        let is_head = request.method == Method::HEAD;
        let mut answer = self.decide(&request).unwrap_or_else(|(status, code)| refusal(status, code, is_head));
        let now = jiff::Timestamp::now().as_second() + self.state().behaviour.clock_ahead_s;
        let now = jiff::Timestamp::from_second(now).expect("the time is now");
        answer.headers_mut().insert("date", http_date(now).parse().expect("a date is a header"));
        Ok(answer)
    }
}

impl Objects {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    fn decide(&self, request: &ObjectRequest) -> Result<Response<AnswerBody>, Refusal> {
        self.refuse(request)?;
        let is_object = request.path.contains('/') && !request.path.ends_with('/');
        match (request.method.as_str(), request.query("uploadId")) {
            ("PUT", Some(upload)) => self.put_part(request, upload),
            ("PUT", None) if is_object => self.put(request),
            ("POST", Some(upload)) => self.complete(request, upload),
            ("POST", None) if request.query("uploads").is_some() => {
                self.count("begin");
                let id = self.state().begin(&request.path);
                Ok(xml(&format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                )))
            }
            ("DELETE", Some(upload)) => {
                self.count("abort");
                if self.state().abort(upload) { Ok(status(204)) } else { Err((404, "NoSuchUpload")) }
            }
            ("DELETE", None) => {
                self.count("delete");
                self.state().delete(&request.path);
                Ok(status(204))
            }
            ("GET" | "HEAD", None) if is_object => self.get(request),
            ("GET", None) if request.query("lifecycle").is_some() => {
                self.count("lifecycle");
                self.state().behaviour.lifecycle.map(xml)
            }
            ("GET", None) => Ok(self.list(request)),
            _ => Err((400, "InvalidRequest")),
        }
    }

    /// What is refused whatever it asks for.
    fn refuse(&self, request: &ObjectRequest) -> Result<(), Refusal> {
        let behaviour = self.state().behaviour.clone();
        if let Some(code) = behaviour.denies_with {
            return Err((403, code));
        }
        if let Some(refusal) = behaviour.refuses_writes.filter(|_| matches!(request.method.as_str(), "PUT" | "POST")) {
            return Err(refusal);
        }
        let is_of = |key: &str| request.header("authorization").is_some_and(|a| a.contains(&format!("={key}/")));
        if behaviour.only_key.is_some_and(|key| !is_of(key)) {
            return Err((400, "ExpiredToken"));
        }
        let signed = request.header("x-amz-date").and_then(|date| {
            let format = "%Y%m%dT%H%M%SZ";
            let signed = jiff::civil::DateTime::strptime(format, date).ok()?;
            jiff::tz::TimeZone::UTC.to_timestamp(signed).ok()
        });
        let now = jiff::Timestamp::now().as_second() + behaviour.clock_ahead_s;
        match signed {
            Some(signed) if (signed.as_second() - now).abs() > MAX_SIGNATURE_AGE_S => {
                Err((403, "RequestTimeTooSkewed"))
            }
            _ if behaviour.checks_digests => check_digests(request, behaviour.crc64),
            _ => Ok(()),
        }
    }

    fn put(&self, request: &ObjectRequest) -> Result<Response<AnswerBody>, Refusal> {
        self.count("put");
        let generation = request.header("x-goog-if-generation-match");
        let condition = match (request.header("if-none-match"), request.header("if-match"), generation) {
            (Some("*"), ..) | (.., Some("0")) => Condition::Absent,
            (_, Some(e_tag), _) => Condition::ETag(e_tag.to_owned()),
            (.., Some(generation)) => Condition::Generation(generation.parse().map_err(|_| (400, "InvalidArgument"))?),
            _ => Condition::None,
        };
        let stored = self.state().put(&request.path, request.body.clone(), &condition)?;
        Ok(described(&stored, 200))
    }

    fn put_part(&self, request: &ObjectRequest, upload: &str) -> Result<Response<AnswerBody>, Refusal> {
        self.count(if request.header(CRC64).is_some() { "part with crc64" } else { "part" });
        let number = request.query("partNumber").and_then(|number| number.parse().ok()).ok_or((400, "InvalidPart"))?;
        let stored = self.state().part(&request.path, upload, number, request.body.clone())?;
        Ok(described(&stored, 200))
    }

    fn complete(&self, request: &ObjectRequest, upload: &str) -> Result<Response<AnswerBody>, Refusal> {
        self.count("complete");
        let text = request.text();
        let parts: Option<Vec<(u32, String)>> = text
            .split("<Part>")
            .skip(1)
            .map(|part| {
                let e_tag = between(part, "ETag")?.replace("&quot;", "\"").replace("&#34;", "\"");
                Some((between(part, "PartNumber")?.parse().ok()?, e_tag))
            })
            .collect();
        let parts = parts.filter(|parts| !parts.is_empty()).ok_or((400, "MalformedXML"))?;
        let stored = self.state().complete(&request.path, upload, &parts)?;
        let e_tag = &stored.e_tag;
        let answer = format!("<CompleteMultipartUploadResult><ETag>{e_tag}</ETag></CompleteMultipartUploadResult>");
        let mut answer = xml(&answer);
        answer.headers_mut().insert("x-goog-generation", stored.generation.into());
        Ok(answer)
    }

    fn get(&self, request: &ObjectRequest) -> Result<Response<AnswerBody>, Refusal> {
        self.count(if request.method == Method::HEAD { "head" } else { "get" });
        let stored = self.state().get(&request.path).ok_or((404, "NoSuchKey"))?;
        let Some((start, end)) = request.header("range").and_then(|range| parse_range(range, stored.bytes)) else {
            let mut answer = described(&stored, 200);
            let is_head = request.method == Method::HEAD;
            answer.headers_mut().insert("content-length", stored.bytes.into());
            *answer.body_mut() = if is_head { whole(Bytes::new()) } else { pieces(stored.body.clone()) };
            return Ok(answer);
        };
        if start >= stored.bytes {
            return Err((416, "InvalidRange"));
        }
        let mut answer = described(&stored, 206);
        let range = format!("bytes {start}-{}/{}", end - 1, stored.bytes);
        answer.headers_mut().insert("content-range", range.parse().expect("a range is a header"));
        answer.headers_mut().insert("content-length", (end - start).into());
        *answer.body_mut() = pieces(cut(&stored.body, start, end));
        Ok(answer)
    }

    fn list(&self, request: &ObjectRequest) -> Response<AnswerBody> {
        self.count("list");
        let bucket = request.path.trim_end_matches('/');
        let prefix = format!("{bucket}/{}", request.query("prefix").unwrap_or_default());
        let after = request.query("continuation-token").or_else(|| request.query("start-after")).unwrap_or_default();
        let after = if after.is_empty() { String::new() } else { format!("{bucket}/{after}") };
        let (page, has_more) = self.state().list(&prefix, &after);
        let key = |path: &str| path[bucket.len() + 1..].to_owned();
        let mut text = format!("<ListBucketResult><IsTruncated>{has_more}</IsTruncated>");
        for (path, stored) in &page {
            text += &format!(
                "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{}</ETag>\
                 <Size>{}</Size></Contents>",
                key(path).replace('&', "&amp;").replace('<', "&lt;"),
                stored.e_tag,
                stored.bytes
            );
        }
        if let Some((last, _)) = page.last().filter(|_| has_more) {
            text += &format!("<NextContinuationToken>{}</NextContinuationToken>", key(last));
        }
        xml(&(text + "</ListBucketResult>"))
    }
}

/// Compares what a body says of itself with what came.
fn check_digests(request: &ObjectRequest, crc64: Crc64) -> Result<(), Refusal> {
    let sha256 = request.header("x-amz-content-sha256").filter(|hash| hash.len() == 64);
    if let Some(told) = sha256.filter(|_| !request.body.is_empty()) {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        request.body.iter().for_each(|piece| digest.update(piece));
        let found: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if told != found {
            return Err((400, "XAmzContentSHA256Mismatch"));
        }
    }
    if let Some(told) = request.header(CRC64).filter(|_| crc64 != Crc64::Ignored) {
        if crc64 == Crc64::Refused {
            return Err((400, "InvalidRequest"));
        }
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        request.body.iter().for_each(|piece| digest.update(piece));
        if told != BASE64_STANDARD.encode(digest.finalize().to_be_bytes()) {
            return Err((400, "BadDigest"));
        }
    }
    Ok(())
}

/// `bytes=first-last`: first, and the end.
fn parse_range(range: &str, bytes: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    Some((first, last.parse::<u64>().map_or(bytes, |last| bytes.min(last + 1))))
}

fn cut(body: &[Bytes], start: u64, end: u64) -> Vec<Bytes> {
    let mut at = 0;
    let mut pieces = Vec::new();
    for piece in body {
        let (from, to) = (start.max(at), end.min(at + piece.len() as u64));
        if from < to {
            pieces.push(piece.slice((from - at) as usize..(to - at) as usize));
        }
        at += piece.len() as u64;
    }
    pieces
}

fn pieces(body: Vec<Bytes>) -> AnswerBody {
    StreamBody::new(stream::iter(body.into_iter().map(|piece| Ok(Frame::data(piece))))).boxed()
}

fn described(stored: &Stored, code: u16) -> Response<AnswerBody> {
    let mut answer = status(code);
    let headers = answer.headers_mut();
    headers.insert("etag", stored.e_tag.parse().expect("a tag is a header"));
    headers.insert("x-goog-generation", stored.generation.into());
    headers.insert("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT".parse().expect("a date is a header"));
    answer
}

fn status(code: u16) -> Response<AnswerBody> {
    Response::builder().status(code).body(whole(Bytes::new())).expect("a status makes an answer")
}

fn xml(text: &str) -> Response<AnswerBody> {
    let mut answer = status(200);
    *answer.body_mut() = whole(Bytes::from(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}")));
    answer
}

fn refusal(code: u16, what: &str, is_head: bool) -> Response<AnswerBody> {
    let mut answer = xml(&format!("<Error><Code>{what}</Code><Message>The request was refused.</Message></Error>"));
    *answer.status_mut() = code.try_into().expect("a status");
    if is_head {
        *answer.body_mut() = whole(Bytes::new());
    }
    answer
}

fn between<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    text.split_once(&format!("<{tag}>"))?.1.split_once(&format!("</{tag}>")).map(|(inner, _)| inner)
}
