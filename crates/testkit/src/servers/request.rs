//! A request to an object store, taken apart.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request};

/// A request, read to its end.
pub struct ObjectRequest {
    pub method: Method,
    /// `bucket/key`, decoded.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    /// As it came.
    pub body: Vec<Bytes>,
}

impl ObjectRequest {
    /// Reads `request` to its end; none where it broke off.
    pub async fn read(request: Request<Incoming>) -> Option<ObjectRequest> {
        let (parts, mut incoming) = request.into_parts();
        let mut body = Vec::new();
        while let Some(frame) = incoming.frame().await {
            body.extend(frame.ok()?.into_data().ok());
        }
        let declared = parts.headers.get("content-length").and_then(|bytes| bytes.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|bytes| bytes != body.iter().map(Bytes::len).sum::<usize>()) {
            return None;
        }
        let path = decode(parts.uri.path().trim_start_matches('/'));
        let query = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = query.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let query = query.map(|(name, value)| (decode(name), decode(&value.replace('+', " ")))).collect();
        Some(ObjectRequest { method: parts.method, path, query, headers: parts.headers, body })
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The whole body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body.concat()).into_owned()
    }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}
