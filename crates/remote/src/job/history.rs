//! The history of a training beside its snapshots: what of it has grown is sent after each marker, and a machine that
//! goes on takes what it lacks.
//!
//! Invariant: a list of parts is named by the ownership that wrote it and by a number that grows, so that an older one
//! never stands for a newer one, however late it lands; of an older one, nothing is taken that is known already. What
//! is there and not here is named by the next list, too, until a machine has taken all of it. No snapshot waits for any
//! of it. Deliberately not here: what is in a part (ckptd-history), when it is sent
//! (`replication`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use ckptd_core::error::Error;
use ckptd_core::ids::RunId;
use ckptd_core::store::{Store, StoreLock};
use ckptd_history::travel::{HistoryIntake, MAX_PART_BYTES, TakenHistory, TravellingPart, part_numbers, read_part};

use super::error::{JobError, Result};
use super::place::RemoteJob;
use super::rate::RateLimit;
use crate::layout::{ContentHash, HistoryName, JobObject, Prefix};
use crate::records::{HistoryPartRecord, HistoryRecord, VERSION};

/// How long a session's begin may take for it; what did not come then comes at the next one.
const BRING_PATIENCE: Duration = Duration::from_secs(120);
/// How often the lists are asked for where the owner has replaced the one that was read.
const LOOKS: usize = 3;
/// And for a part that does not arrive as it was sent.
const TRIES: usize = 2;

/// What a process has found of the parts that it sends.
#[derive(Clone, Debug, Default)]
pub struct HistorySender {
    /// Packed parts, which never change.
    packed: BTreeMap<u64, HistoryPartRecord>,
    /// The parts that were sent last.
    sent: Option<Vec<HistoryPartRecord>>,
    /// The store has all that was there.
    has_all: bool,
    /// Otherwise, or where a part here cannot be read, the parts that were there at first.
    before: Option<Vec<HistoryPartRecord>>,
}

/// What is in `history/`.
#[derive(Debug, Default)]
struct HistoryListing {
    lists: BTreeSet<HistoryName>,
    parts: BTreeSet<ContentHash>,
}

impl HistoryListing {
    /// The parts of the newest list of the run, as far as they are there.
    async fn newest(&self, job: &RemoteJob, run_id: &RunId) -> Result<Vec<HistoryPartRecord>> {
        let Some(name) = self.lists.last() else { return Ok(Vec::new()) };
        let record = job.read::<HistoryRecord>(&JobObject::History(*name)).await?.map(|(record, _)| record);
        let of_run = record.filter(|record| record.run_id == *run_id).map_or_else(Vec::new, |record| record.parts);
        Ok(of_run.into_iter().filter(|part| self.parts.contains(&part.hash)).collect())
    }

    async fn of(job: &RemoteJob) -> Result<HistoryListing> {
        let mut listing = HistoryListing::default();
        for (object, _) in job.list(Prefix::History).await? {
            match object {
                JobObject::History(name) => drop(listing.lists.insert(name)),
                JobObject::HistoryPart(hash) => drop(listing.parts.insert(hash)),
                _ => {}
            }
        }
        Ok(listing)
    }
}

/// A part with what a list says of it.
fn recorded(part: &TravellingPart) -> HistoryPartRecord {
    let hash = ContentHash::from(*blake3::hash(&part.bytes).as_bytes());
    HistoryPartRecord { hash, bytes: part.bytes.len() as u64, is_packed: part.is_packed }
}

impl HistorySender {
    /// The store has all that is there.
    pub fn knows_all(&mut self) {
        self.has_all = true;
    }

    /// Sends what the history of `store` has and the remote lacks, as the ownership `epoch`; nothing where nothing has
    /// come since. What no list names any longer is removed while `may_write`.
    pub async fn send(
        &mut self,
        job: &RemoteJob,
        store: &Store,
        epoch: u64,
        rate: &RateLimit,
        may_write: impl Fn() -> bool,
    ) -> Result<()> {
        let (Some(run_id), numbers) = (store.run_id()?, part_numbers(store)?) else { return Ok(()) };
        if numbers.is_empty() {
            return Ok(());
        }
        let (mut parts, mut bodies, mut has_read_all) = (BTreeMap::new(), BTreeMap::new(), true);
        for number in numbers {
            if let Some(known) = self.packed.get(&number) {
                parts.insert(number, known.clone());
                continue;
            }
            // Damaged ones go as far as they are whole; what cannot be read stays out.
            let part = match read_part(store, number) {
                Ok(Some(part)) => part,
                Ok(None) => continue,
                Err(_) => {
                    has_read_all = false;
                    continue;
                }
            };
            let record = recorded(&part);
            if part.is_packed {
                self.packed.insert(number, record.clone());
            } else {
                bodies.insert(record.hash.clone(), Bytes::from(part.bytes));
            }
            parts.insert(number, record);
            tokio::task::yield_now().await;
        }
        let own: Vec<HistoryPartRecord> = parts.values().cloned().collect();
        if self.sent.as_ref() == Some(&own) {
            return Ok(());
        }
        let listing = HistoryListing::of(job).await?;
        // What is there may be the only copy.
        if !(self.has_all && has_read_all) && self.before.is_none() {
            self.before = Some(listing.newest(job, &run_id).await?);
        }
        for part in own.iter().filter(|part| !listing.parts.contains(&part.hash)) {
            let body = match bodies.get(&part.hash) {
                Some(body) => body.clone(),
                None => self.packed_body(store, part)?,
            };
            rate.wait_for(part.bytes).await;
            job.storage().put(&JobObject::HistoryPart(part.hash.clone()).name(), body).await?;
        }
        let parts = self.beside_those_before(store, parts)?;
        let record = HistoryRecord { version: VERSION, run_id, parts };
        let newest = listing.lists.range(..).rev().find(|name| name.epoch == epoch);
        let name = HistoryName { epoch, number: newest.map_or(1, |name| name.number + 1) };
        job.put(&JobObject::History(name), &record).await?;
        clear(job, &listing, name, &record, may_write).await?;
        self.sent = Some(own);
        Ok(())
    }

    /// The store's `own` parts by their numbers, each at its place among those that were there before.
    fn beside_those_before(
        &self,
        store: &Store,
        mut own: BTreeMap<u64, HistoryPartRecord>,
    ) -> Result<Vec<HistoryPartRecord>> {
        let before = self.before.as_deref().unwrap_or_default();
        let here = LocalParts::of(store, before)?;
        let mut parts = Vec::new();
        for part in before {
            match here.numbers.get(&part.hash) {
                Some(number) => parts.extend(own.remove(number)),
                None => parts.push(part.clone()),
            }
        }
        parts.extend(own.into_values());
        Ok(parts)
    }

    /// The content of a packed part. Where it cannot be read any longer, the next try goes without it.
    fn packed_body(&mut self, store: &Store, wanted: &HistoryPartRecord) -> Result<Bytes> {
        let number = self.packed.iter().find(|(_, part)| *part == wanted).map(|(number, _)| *number);
        self.packed.retain(|_, part| part != wanted);
        let part = number.map_or(Ok(None), |number| read_part(store, number))?;
        let part = part.filter(|part| recorded(part) == *wanted);
        let part = part.ok_or_else(|| JobError::other("a part of the history was changed while it was sent"))?;
        self.packed.extend(number.map(|number| (number, wanted.clone())));
        Ok(part.bytes.into())
    }
}

/// Removes what was there before the list `name`, whose content is `record`.
async fn clear(
    job: &RemoteJob,
    before: &HistoryListing,
    name: HistoryName,
    record: &HistoryRecord,
    may_write: impl Fn() -> bool,
) -> Result<()> {
    // Where a newer owner writes, what it needs is its own affair.
    if before.lists.iter().any(|other| *other > name) {
        return Ok(());
    }
    let lists = before.lists.iter().map(|list| JobObject::History(*list));
    let named: BTreeSet<&ContentHash> = record.parts.iter().map(|part| &part.hash).collect();
    let parts = before.parts.iter().filter(|hash| !named.contains(hash)).cloned().map(JobObject::HistoryPart);
    for object in lists.chain(parts) {
        if !may_write() {
            return Ok(());
        }
        job.delete(&object).await?;
    }
    Ok(())
}

/// Takes what the store lacks of the history that is there, in bounded time.
///
/// # Errors
/// Those of the requests and of the store. What came before them stays.
pub async fn bring_history(job: &RemoteJob, store: &Store, lock: &StoreLock) -> Result<TakenHistory> {
    match tokio::time::timeout(BRING_PATIENCE, bring(job, store, lock)).await {
        Ok(brought) => brought,
        Err(_) => Err(JobError::other(format!(
            "{}: the history of the training took too long to come; the next session takes the rest",
            job.place()
        ))),
    }
}

async fn bring(job: &RemoteJob, store: &Store, lock: &StoreLock) -> Result<TakenHistory> {
    let mut looks = LOOKS;
    loop {
        looks -= 1;
        let listing = HistoryListing::of(job).await?;
        let Some(name) = listing.lists.last() else { return Ok(TakenHistory::default()) };
        let object = JobObject::History(*name);
        let record = match job.read::<HistoryRecord>(&object).await? {
            Some((record, _)) => record,
            None if looks > 0 => continue,
            None => return Ok(TakenHistory::default()),
        };
        job.require_version(record.version, &object)?;
        if store.run_id()?.as_ref() != Some(&record.run_id) {
            return Err(Error::damaged(job.path_of(&object), "is of another training than the job").into());
        }
        let here = LocalParts::of(store, &record.parts)?;
        if here.has_all(&record) {
            return Ok(TakenHistory::default());
        }
        match take(job, &record, &here, (store, lock)).await? {
            Some(taken) => return Ok(taken),
            None if looks > 0 => {}
            None => return Err(Error::damaged(job.path_of(&object), "names parts that are not there").into()),
        }
    }
}

/// `None`: a part was replaced meanwhile.
async fn take(
    job: &RemoteJob,
    record: &HistoryRecord,
    here: &LocalParts,
    (store, lock): (&Store, &StoreLock),
) -> Result<Option<TakenHistory>> {
    let mut intake = HistoryIntake::begin(store, lock, Timestamp::now().as_millisecond())?;
    for part in &record.parts {
        let object = JobObject::HistoryPart(part.hash.clone());
        let (is_packed, place) = (part.is_packed, job.path_of(&object));
        let is_right = |bytes: &[u8]| *blake3::hash(bytes).to_hex() == *part.hash.as_str();
        let mut bytes = here.read(store, part)?.unwrap_or_default();
        for _ in 0..TRIES {
            if is_right(&bytes) {
                break;
            }
            // Where it was damaged on its way, it is not the next time.
            let Some(found) = job.storage().get(&object.name(), MAX_PART_BYTES).await? else { return Ok(None) };
            bytes = found.body.to_vec();
        }
        if !is_right(&bytes) {
            intake.lacks(format!("{place} is not what was sent there; its part of the history is not taken"));
            continue;
        }
        intake.take(&TravellingPart { is_packed, bytes }, &place)?;
    }
    Ok(Some(intake.finish()))
}

/// Which parts of a list the store has, byte by byte: as they are, or as the beginning of a file that has grown since.
#[derive(Debug, Default)]
struct LocalParts {
    numbers: BTreeMap<ContentHash, u64>,
}

impl LocalParts {
    fn of(store: &Store, parts: &[HistoryPartRecord]) -> Result<LocalParts> {
        let mut numbers = BTreeMap::new();
        if parts.is_empty() {
            return Ok(LocalParts { numbers });
        }
        for number in part_numbers(store)? {
            let Some(part) = read_part(store, number).unwrap_or_default() else { continue };
            let lengths: BTreeSet<u64> = parts
                .iter()
                .filter(|there| there.is_packed == part.is_packed)
                .filter(|there| if part.is_packed { there.bytes == part.bytes.len() as u64 } else { true })
                .map(|there| there.bytes)
                .collect();
            for length in lengths {
                let Some(beginning) = usize::try_from(length).ok().and_then(|length| part.bytes.get(..length)) else {
                    continue;
                };
                numbers.insert(ContentHash::from(*blake3::hash(beginning).as_bytes()), number);
            }
        }
        Ok(LocalParts { numbers })
    }

    fn has_all(&self, record: &HistoryRecord) -> bool {
        record.parts.iter().all(|part| self.numbers.contains_key(&part.hash))
    }

    fn read(&self, store: &Store, part: &HistoryPartRecord) -> Result<Option<Vec<u8>>> {
        let Some(number) = self.numbers.get(&part.hash) else { return Ok(None) };
        let Some(mut found) = read_part(store, *number)? else { return Ok(None) };
        found.bytes.truncate(usize::try_from(part.bytes).unwrap_or(usize::MAX));
        Ok(Some(found.bytes))
    }
}
