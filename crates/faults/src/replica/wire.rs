//! An object store in memory at the end of a wire: one request of a machine meets a fault, or the machine dies there.
//!
//! Invariant: after its death nothing of a machine reaches the store but what was sent before and lands late.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ckptd_remote::{
    Abilities, Created, ErrorKind, Head, Listed, MemoryStorage, Object, ObjectName, ObjectStorage, ObjectVersion,
    Operation, PartReceipt, RangeStream, Result, Swapped, UploadId,
};

/// What befalls a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFault {
    /// The machine dies before it is carried out.
    DiesBefore,
    /// The machine dies after it was carried out.
    DiesAfter,
    /// The machine dies, and it is carried out when somebody lets it land.
    LandsLate,
    /// An error is told, and nothing was done.
    Lost,
    /// It is done, and an error is told.
    AnswerLost,
    /// It is done, and a refusal is told: the client has sent it twice.
    ToldRefused,
    /// Nothing is done, and a refusal is told.
    RefusedForNothing,
    /// It is done with one bit changed.
    Flipped,
}

/// What a request is, as far as faults differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Read,
    Write,
    /// A write that the store may refuse.
    Conditional,
    /// A write of what is called by its hash.
    Data,
}

/// A request as it was seen.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    pub kind: RequestKind,
    pub what: String,
}

type LateWrite = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The wire of one machine.
pub struct FaultyWire {
    there: MemoryStorage,
    fault: Option<(usize, WireFault)>,
    seen: Mutex<Vec<SeenRequest>>,
    late: Mutex<Vec<LateWrite>>,
    is_dead: AtomicBool,
}

impl FaultyWire {
    /// The request number `fault.0` (from 0) meets `fault.1`.
    pub fn new(there: &MemoryStorage, fault: Option<(usize, WireFault)>) -> Arc<FaultyWire> {
        let (seen, late, is_dead) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Arc::new(FaultyWire { there: there.clone(), fault, seen, late, is_dead })
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<SeenRequest> {
        locked(&self.seen).clone()
    }

    /// The request that met the fault.
    pub fn hit(&self) -> Option<SeenRequest> {
        self.fault.and_then(|(at, _)| locked(&self.seen).get(at).cloned())
    }

    /// Whether the machine died.
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// What was sent before the machine's death is carried out now.
    pub async fn land(&self) {
        let late = std::mem::take(&mut *locked(&self.late));
        for write in late {
            write.await;
        }
    }

    fn next(&self, kind: RequestKind, what: &str, name: &str) -> Option<WireFault> {
        if self.is_dead() {
            self.die();
        }
        let mut seen = locked(&self.seen);
        seen.push(SeenRequest { kind, what: format!("{what} {name}") });
        self.fault.filter(|(at, _)| *at + 1 == seen.len()).map(|(_, fault)| fault)
    }

    /// Ends the thread, without a word.
    fn die(&self) -> ! {
        self.is_dead.store(true, Ordering::Relaxed);
        std::panic::resume_unwind(Box::new("the machine is dead"))
    }

    async fn carry_out<T: Send + 'static>(
        &self,
        fault: Option<WireFault>,
        work: impl Future<Output = Result<T>> + Send + 'static,
        refusal: Option<T>,
    ) -> Result<T> {
        let error = || self.there.error(Operation::Get, None, ErrorKind::Unreachable, "the wire is broken");
        match fault {
            None | Some(WireFault::Flipped) => work.await,
            Some(WireFault::DiesBefore) => self.die(),
            Some(WireFault::DiesAfter) => {
                drop(work.await);
                self.die()
            }
            Some(WireFault::LandsLate) => {
                locked(&self.late).push(Box::pin(async { drop(work.await) }));
                self.die()
            }
            Some(WireFault::Lost) => Err(error()),
            Some(WireFault::AnswerLost) => {
                drop(work.await);
                Err(error())
            }
            Some(WireFault::ToldRefused) => {
                drop(work.await);
                refusal.ok_or_else(error)
            }
            Some(WireFault::RefusedForNothing) => refusal.ok_or_else(error),
        }
    }
}

impl fmt::Debug for FaultyWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyWire").field("fault", &self.fault).finish_non_exhaustive()
    }
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

fn written(name: &ObjectName) -> RequestKind {
    let is_data = ["data/", "blobs/"].iter().any(|folder| name.as_str().starts_with(folder));
    if is_data { RequestKind::Data } else { RequestKind::Write }
}

/// One bit in the middle is another one: in a snapshot file, of a chunk.
fn flipped(body: Bytes, fault: Option<WireFault>) -> Bytes {
    if fault != Some(WireFault::Flipped) {
        return body;
    }
    let mut bytes = body.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

#[async_trait]
impl ObjectStorage for FaultyWire {
    fn place(&self) -> &str {
        self.there.place()
    }

    /// It compares no digests: what is sent has to be read back.
    fn abilities(&self) -> Abilities {
        Abilities { digests: false, ..self.there.abilities() }
    }

    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created> {
        let fault = self.next(RequestKind::Conditional, "create", name.as_str());
        let (there, name) = (self.there.clone(), name.clone());
        let work = async move { there.create(&name, body).await };
        self.carry_out(fault, work, Some(Created::AlreadyThere)).await
    }

    async fn swap(&self, name: &ObjectName, expected: &ObjectVersion, body: Bytes) -> Result<Swapped> {
        let fault = self.next(RequestKind::Conditional, "swap", name.as_str());
        let (there, name, expected) = (self.there.clone(), name.clone(), expected.clone());
        let work = async move { there.swap(&name, &expected, body).await };
        self.carry_out(fault, work, Some(Swapped::Changed)).await
    }

    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion> {
        let fault = self.next(written(name), "put", name.as_str());
        let (there, name, body) = (self.there.clone(), name.clone(), flipped(body, fault));
        self.carry_out(fault, async move { there.put(&name, body).await }, None).await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>> {
        let fault = self.next(RequestKind::Read, "get", name.as_str());
        let (there, name) = (self.there.clone(), name.clone());
        self.carry_out(fault, async move { there.get(&name, max_bytes).await }, None).await
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream> {
        let fault = self.next(RequestKind::Read, "range of", name.as_str());
        let (there, name) = (self.there.clone(), name.clone());
        self.carry_out(fault, async move { there.read_range(&name, range).await }, None).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<Head>> {
        let fault = self.next(RequestKind::Read, "head", name.as_str());
        let (there, name) = (self.there.clone(), name.clone());
        self.carry_out(fault, async move { there.head(&name).await }, None).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let fault = self.next(RequestKind::Read, "list", prefix);
        let (there, prefix) = (self.there.clone(), prefix.to_owned());
        self.carry_out(fault, async move { there.list(&prefix).await }, None).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let fault = self.next(RequestKind::Write, "delete", name.as_str());
        let (there, name) = (self.there.clone(), name.clone());
        self.carry_out(fault, async move { there.delete(&name).await }, None).await
    }

    async fn begin_upload(&self, name: &ObjectName, part_bytes: u64) -> Result<UploadId> {
        let fault = self.next(RequestKind::Write, "begin", name.as_str());
        let (there, name) = (self.there.clone(), name.clone());
        self.carry_out(fault, async move { there.begin_upload(&name, part_bytes).await }, None).await
    }

    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let fault = self.next(RequestKind::Data, "part of", name.as_str());
        let (there, name, upload, body) = (self.there.clone(), name.clone(), upload.clone(), flipped(body, fault));
        let work = async move { there.upload_part(&name, &upload, index, part_bytes, body).await };
        self.carry_out(fault, work, None).await
    }

    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion> {
        let fault = self.next(RequestKind::Write, "complete", name.as_str());
        let (there, name, upload, parts) = (self.there.clone(), name.clone(), upload.clone(), parts.to_vec());
        self.carry_out(fault, async move { there.complete_upload(&name, &upload, &parts).await }, None).await
    }

    async fn abort_upload(&self, name: &ObjectName, upload: &UploadId) -> Result<()> {
        let fault = self.next(RequestKind::Write, "abort", name.as_str());
        let (there, name, upload) = (self.there.clone(), name.clone(), upload.clone());
        self.carry_out(fault, async move { there.abort_upload(&name, &upload).await }, None).await
    }

    async fn sweep(&self, idle: Duration) -> Result<u64> {
        let fault = self.next(RequestKind::Write, "sweep", "");
        let there = self.there.clone();
        self.carry_out(fault, async move { there.sweep(idle).await }, None).await
    }

    async fn checks_digests(&self, _scratch: &ObjectName) -> Result<bool> {
        Ok(false)
    }
}
