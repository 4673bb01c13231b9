//! A request to an object store, taken apart.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request};

/// What a body may say that it has at most, for its room to be made before it comes.
const MAX_ROOM: usize = 64 << 20;

/// A request, read to its end.
pub struct ObjectRequest {
    pub method: Method,
    /// `bucket/key`, decoded.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    /// In one piece, but for one whose length was not said.
    pub body: Vec<Bytes>,
}

impl ObjectRequest {
    /// Reads `request` to its end; none where it broke off.
    pub async fn read(request: Request<Incoming>) -> Option<ObjectRequest> {
        let (parts, mut incoming) = request.into_parts();
        let declared = parts.headers.get("content-length").and_then(|bytes| bytes.to_str().ok()?.parse::<usize>().ok());
        let mut body = Vec::new();
        // A piece that came holds on to the whole buffer that it came in, so it is copied.
        let mut last = BytesMut::with_capacity(declared.unwrap_or(0).min(MAX_ROOM));
        while let Some(frame) = incoming.frame().await {
            let Ok(piece) = frame.ok()?.into_data() else { continue };
            if piece.len() > last.capacity() - last.len() {
                let room = piece.len().max(MAX_ROOM.min(2 * last.len()));
                body.push(std::mem::replace(&mut last, BytesMut::with_capacity(room)).freeze());
            }
            last.extend_from_slice(&piece);
        }
        body.push(last.freeze());
        body.retain(|piece| !piece.is_empty());
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
