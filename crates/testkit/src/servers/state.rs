//! What an object store keeps, and the rules by which it changes: every change in one step.

use std::collections::BTreeMap;

use bytes::Bytes;

/// What becomes of a body with a CRC-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crc64 {
    Compared,
    Ignored,
    /// The server does not know it, and says so.
    Refused,
}

/// How the server deviates from a good one.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// How far its clock is ahead of this machine's, in seconds. Signatures may be 15 minutes old.
    pub clock_ahead_s: i64,
    /// Refuses everything with this error code.
    pub denies_with: Option<&'static str>,
    /// Refuses writes, as a quota does.
    pub refuses_writes: Option<Refusal>,
    /// Takes no access key but this one: to it all others have expired.
    pub only_key: Option<&'static str>,
    /// Takes conditional writes for plain ones.
    pub ignores_conditions: bool,
    /// Compares the digests of bodies.
    pub checks_digests: bool,
    pub crc64: Crc64,
    /// Refuses writes beyond so many bytes.
    pub max_bytes: u64,
    /// Names in each answer to a list.
    pub page: usize,
    /// The buckets' lifecycle rules, or why they are not shown.
    pub lifecycle: Result<&'static str, Refusal>,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            clock_ahead_s: 0,
            denies_with: None,
            refuses_writes: None,
            only_key: None,
            ignores_conditions: false,
            checks_digests: true,
            crc64: Crc64::Compared,
            max_bytes: u64::MAX,
            page: 1000,
            lifecycle: Err((404, "NoSuchLifecycleConfiguration")),
        }
    }
}

/// An object, in the pieces in which it came. Nothing is hashed for its tag.
#[derive(Clone, Debug)]
pub struct Stored {
    pub body: Vec<Bytes>,
    pub bytes: u64,
    pub e_tag: String,
    pub generation: u64,
}

#[derive(Debug, Default)]
struct Upload {
    path: String,
    parts: BTreeMap<u32, Stored>,
}

/// What a write is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    None,
    Absent,
    ETag(String),
    Generation(u64),
}

/// A refusal: HTTP status and error code.
pub type Refusal = (u16, &'static str);

const PRECONDITION: Refusal = (412, "PreconditionFailed");
const NO_UPLOAD: Refusal = (404, "NoSuchUpload");
/// All parts but the last have at least so many bytes.
const MIN_PART_BYTES: u64 = 5 << 20;

/// Everything that is kept.
#[derive(Debug, Default)]
pub struct State {
    pub behaviour: Behaviour,
    objects: BTreeMap<String, Stored>,
    uploads: BTreeMap<String, Upload>,
    count: u64,
}

impl State {
    fn store(&mut self, body: Vec<Bytes>) -> Stored {
        self.count += 1;
        let bytes = body.iter().map(|piece| piece.len() as u64).sum();
        Stored { body, bytes, e_tag: format!("\"{:016x}\"", self.count), generation: self.count }
    }

    /// Bytes of all objects and parts.
    pub fn bytes(&self) -> u64 {
        let parts = self.uploads.values().flat_map(|upload| upload.parts.values());
        self.objects.values().chain(parts).map(|stored| stored.bytes).sum()
    }

    /// Uploads that were begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    pub fn get(&self, path: &str) -> Option<Stored> {
        self.objects.get(path).cloned()
    }

    /// Changes one bit of an object where it is.
    pub fn flip(&mut self, path: &str, at: usize) {
        let stored = self.objects.get_mut(path).expect("the object is there");
        let mut body = stored.body.concat();
        body[at] ^= 1;
        stored.body = vec![body.into()];
    }

    /// Every path, in order.
    pub fn paths(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    pub fn clear(&mut self) {
        self.objects.clear();
        self.uploads.clear();
    }

    pub fn put(&mut self, path: &str, body: Vec<Bytes>, condition: &Condition) -> Result<Stored, Refusal> {
        let now = self.objects.get(path);
        match condition {
            _ if self.behaviour.ignores_conditions => {}
            Condition::Absent if now.is_some() => return Err(PRECONDITION),
            Condition::ETag(_) if now.is_none() => return Err((404, "NoSuchKey")),
            Condition::ETag(e_tag) if now.is_some_and(|now| now.e_tag != *e_tag) => return Err(PRECONDITION),
            Condition::Generation(generation) if now.is_none_or(|now| now.generation != *generation) => {
                return Err(PRECONDITION);
            }
            _ => {}
        }
        let stored = self.store(body);
        if self.bytes() + stored.bytes > self.behaviour.max_bytes {
            return Err((507, "XMinioStorageFull"));
        }
        self.objects.insert(path.to_owned(), stored.clone());
        Ok(stored)
    }

    pub fn delete(&mut self, path: &str) {
        self.objects.remove(path);
    }

    /// A page of paths below `prefix` after `after`, and whether there are more.
    pub fn list(&self, prefix: &str, after: &str) -> (Vec<(String, Stored)>, bool) {
        let mut found = self.objects.iter().filter(|(path, _)| path.starts_with(prefix) && path.as_str() > after);
        let page = found.by_ref().take(self.behaviour.page).map(|(path, stored)| (path.clone(), stored.clone()));
        let page: Vec<_> = page.collect();
        (page, found.next().is_some())
    }

    pub fn begin(&mut self, path: &str) -> String {
        self.count += 1;
        let id = format!("upload-{}", self.count);
        self.uploads.insert(id.clone(), Upload { path: path.to_owned(), parts: BTreeMap::new() });
        id
    }

    pub fn part(&mut self, path: &str, upload: &str, number: u32, body: Vec<Bytes>) -> Result<Stored, Refusal> {
        if self.uploads.get(upload).is_none_or(|upload| upload.path != path) {
            return Err(NO_UPLOAD);
        }
        let stored = self.store(body);
        if self.bytes() + stored.bytes > self.behaviour.max_bytes {
            return Err((507, "XMinioStorageFull"));
        }
        let parts = &mut self.uploads.get_mut(upload).ok_or(NO_UPLOAD)?.parts;
        parts.insert(number, stored.clone());
        Ok(stored)
    }

    /// `parts`: number and tag of each, as the client names them.
    pub fn complete(&mut self, path: &str, upload: &str, parts: &[(u32, String)]) -> Result<Stored, Refusal> {
        let sent = self.uploads.get(upload).filter(|upload| upload.path == path).ok_or(NO_UPLOAD)?;
        let mut body = Vec::new();
        for (at, (number, e_tag)) in parts.iter().enumerate() {
            let part = sent.parts.get(number).filter(|part| part.e_tag.trim_matches('"') == e_tag.trim_matches('"'));
            let part = part.ok_or((400, "InvalidPart"))?;
            if at + 1 < parts.len() && part.bytes < MIN_PART_BYTES {
                return Err((400, "EntityTooSmall"));
            }
            body.extend(part.body.iter().cloned());
        }
        self.uploads.remove(upload);
        let stored = self.store(body);
        self.objects.insert(path.to_owned(), stored.clone());
        Ok(stored)
    }

    /// Whether there was such an upload.
    pub fn abort(&mut self, upload: &str) -> bool {
        self.uploads.remove(upload).is_some()
    }
}
