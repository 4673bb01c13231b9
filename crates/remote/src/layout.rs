//! The names of the objects of a job, built and parsed in one place.
//!
//! Invariant: no other module spells a name. A name that does not parse here is not ours: it is neither read nor
//! deleted. Names hold hexadecimal digits, lower-case words, `.`, `-` and `/` only, which no store changes, and numbers
//! are padded, so that a list is in the order of (epoch, sequence number).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use ckptd_core::store::layout::SNAPSHOT_SUFFIX;

use crate::names::ObjectName;

/// Which training the job is.
const RUN: &str = "run.json";
/// The job file, for a machine that has only the URL.
const JOB: &str = "job.json";
/// Who owns the job, on stores that swap.
const LEASE: &str = "lease.json";
const JSON: &str = ".json";
const BEAT: &str = ".beat";
const PART: &str = ".part";
/// Digits of an epoch and of a sequence number.
const DIGITS: usize = 12;
/// Digits of a file's hash in the name of a marker.
const SHORT_HASH: usize = 16;

/// A folder of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// Who owned the job, epoch by epoch.
    Epochs,
    /// Snapshot files.
    Data,
    /// Commit markers.
    Commits,
    /// Files that snapshots share, such as tokens.
    Blobs,
    /// Uploads under way.
    Uploads,
    /// Markers that retention took away, and files that no marker names.
    Trash,
    /// The history of the training.
    History,
}

impl Prefix {
    /// All of them.
    pub const ALL: [Prefix; 7] =
        [Prefix::Epochs, Prefix::Data, Prefix::Commits, Prefix::Blobs, Prefix::Uploads, Prefix::Trash, Prefix::History];

    /// Its name, without a slash.
    pub const fn name(self) -> &'static str {
        match self {
            Prefix::Epochs => "epochs",
            Prefix::Data => "data",
            Prefix::Commits => "commits",
            Prefix::Blobs => "blobs",
            Prefix::Uploads => "uploads",
            Prefix::Trash => "trash",
            Prefix::History => "history",
        }
    }

    fn parse(name: &str) -> Option<Prefix> {
        Prefix::ALL.into_iter().find(|prefix| prefix.name() == name)
    }
}

/// A BLAKE3 hash as 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash(String);

impl ContentHash {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, as a marker's name has them.
    pub fn short(&self) -> &str {
        &self.0[..SHORT_HASH]
    }
}

impl From<[u8; 32]> for ContentHash {
    fn from(hash: [u8; 32]) -> ContentHash {
        ContentHash(ckptd_core::store::format::hex(&hash))
    }
}

impl TryFrom<String> for ContentHash {
    type Error = String;
    fn try_from(text: String) -> Result<ContentHash, String> {
        if is_hex(&text, 64) { Ok(ContentHash(text)) } else { Err(format!("{text:?} is no hash of 64 digits")) }
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> String {
        hash.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a commit marker: `000000000007.000000000042.0123456789abcdef`. In the order of names the newest is last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MarkerName {
    /// Which ownership of the job wrote it.
    pub epoch: u64,
    /// The snapshot's place in the run.
    pub seq: u64,
    hash: String,
}

impl MarkerName {
    /// Of the file with this hash.
    pub fn new(epoch: u64, seq: u64, hash: &ContentHash) -> MarkerName {
        MarkerName { epoch, seq, hash: hash.short().to_owned() }
    }

    /// The first digits of the file's hash.
    pub fn short_hash(&self) -> &str {
        &self.hash
    }
}

impl fmt::Display for MarkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}.{:012}.{}", self.epoch, self.seq, self.hash)
    }
}

impl FromStr for MarkerName {
    type Err = String;
    fn from_str(text: &str) -> Result<MarkerName, String> {
        let wrong = || format!("{text:?} is no name of a commit marker");
        let mut parts = text.split('.');
        let (Some(epoch), Some(seq), Some(hash), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        match (number(epoch), number(seq), is_hex(hash, SHORT_HASH)) {
            (Some(epoch), Some(seq), true) => Ok(MarkerName { epoch, seq, hash: hash.to_owned() }),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for MarkerName {
    type Error = String;
    fn try_from(text: String) -> Result<MarkerName, String> {
        text.parse()
    }
}

impl From<MarkerName> for String {
    fn from(name: MarkerName) -> String {
        name.to_string()
    }
}

/// The name of a list of the parts of a history: `000000000007.000000000042`. Of two the greater one is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HistoryName {
    /// Which ownership of the job wrote it.
    pub epoch: u64,
    /// Counts the lists of an ownership.
    pub number: u64,
}

impl fmt::Display for HistoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}.{:012}", self.epoch, self.number)
    }
}

impl HistoryName {
    fn parse(text: &str) -> Option<HistoryName> {
        let (epoch, count) = text.split_once('.')?;
        Some(HistoryName { epoch: number(epoch)?, number: number(count)? })
    }
}

/// An object of a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobObject {
    /// Which training this is; created once.
    Run,
    /// The job file.
    Job,
    /// The lease, swapped.
    Lease,
    /// Who took an epoch, and from where it goes on; created once.
    Epoch(u64),
    /// The sign of life of an epoch's owner, on stores that do not swap.
    Beat(u64),
    /// A snapshot file.
    Data(ContentHash),
    /// That a snapshot is here and was checked; created once.
    Commit(MarkerName),
    /// A file that snapshots share.
    Blob(ContentHash),
    /// An upload under way.
    Upload(ContentHash),
    /// A marker that retention took away.
    Trash(MarkerName),
    /// That no marker names a file in `blobs/` any longer, and since when.
    Unnamed(ContentHash),
    /// Of which parts the history consists; created once.
    History(HistoryName),
    /// A part of the history.
    HistoryPart(ContentHash),
}

impl JobObject {
    /// The name, as stores take it.
    pub fn name(&self) -> ObjectName {
        ObjectName::built(self.path())
    }

    /// The name below the job's URL.
    pub fn path(&self) -> String {
        let below = |prefix: Prefix, name: String| format!("{}/{name}", prefix.name());
        match self {
            JobObject::Run => RUN.into(),
            JobObject::Job => JOB.into(),
            JobObject::Lease => LEASE.into(),
            JobObject::Epoch(epoch) => below(Prefix::Epochs, format!("{epoch:012}{JSON}")),
            JobObject::Beat(epoch) => below(Prefix::Epochs, format!("{epoch:012}{BEAT}")),
            JobObject::Data(hash) => below(Prefix::Data, format!("{hash}{SNAPSHOT_SUFFIX}")),
            JobObject::Commit(marker) => below(Prefix::Commits, format!("{marker}{JSON}")),
            JobObject::Blob(hash) => below(Prefix::Blobs, hash.to_string()),
            JobObject::Upload(hash) => below(Prefix::Uploads, format!("{hash}{JSON}")),
            JobObject::Trash(marker) => below(Prefix::Trash, format!("{marker}{JSON}")),
            JobObject::Unnamed(hash) => below(Prefix::Trash, format!("{hash}{JSON}")),
            JobObject::History(name) => below(Prefix::History, format!("{name}{JSON}")),
            JobObject::HistoryPart(hash) => below(Prefix::History, format!("{hash}{PART}")),
        }
    }

    /// What a name below the job's URL means; `None` where it is not ours.
    pub fn parse(path: &str) -> Option<JobObject> {
        let Some((prefix, name)) = path.split_once('/') else {
            return match path {
                RUN => Some(JobObject::Run),
                JOB => Some(JobObject::Job),
                LEASE => Some(JobObject::Lease),
                _ => None,
            };
        };
        let hash = |name: &str| ContentHash::try_from(name.to_owned()).ok();
        let marker = || name.strip_suffix(JSON)?.parse().ok();
        match Prefix::parse(prefix)? {
            Prefix::Epochs => match name.strip_suffix(BEAT) {
                Some(epoch) => number(epoch).map(JobObject::Beat),
                None => number(name.strip_suffix(JSON)?).map(JobObject::Epoch),
            },
            Prefix::Data => hash(name.strip_suffix(SNAPSHOT_SUFFIX)?).map(JobObject::Data),
            Prefix::Commits => marker().map(JobObject::Commit),
            Prefix::Blobs => hash(name).map(JobObject::Blob),
            Prefix::Uploads => hash(name.strip_suffix(JSON)?).map(JobObject::Upload),
            Prefix::Trash => match marker() {
                Some(marker) => Some(JobObject::Trash(marker)),
                None => hash(name.strip_suffix(JSON)?).map(JobObject::Unnamed),
            },
            Prefix::History => match name.strip_suffix(PART) {
                Some(part) => hash(part).map(JobObject::HistoryPart),
                None => HistoryName::parse(name.strip_suffix(JSON)?).map(JobObject::History),
            },
        }
    }
}

/// A padded number; one that has outgrown the padding has no zeros before it.
fn number(text: &str) -> Option<u64> {
    let padded = text.len() == DIGITS || text.len() > DIGITS && !text.starts_with('0');
    (padded && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash() -> ContentHash {
        ContentHash::from([0xa7; 32])
    }

    #[test]
    fn names_are_as_documented() {
        let marker = MarkerName::new(7, 42, &hash());
        let names = [
            (JobObject::Run, "run.json"),
            (JobObject::Job, "job.json"),
            (JobObject::Lease, "lease.json"),
            (JobObject::Epoch(7), "epochs/000000000007.json"),
            (JobObject::Beat(7), "epochs/000000000007.beat"),
            (JobObject::Commit(marker.clone()), "commits/000000000007.000000000042.a7a7a7a7a7a7a7a7.json"),
            (JobObject::Trash(marker), "trash/000000000007.000000000042.a7a7a7a7a7a7a7a7.json"),
            (JobObject::History(HistoryName { epoch: 7, number: 42 }), "history/000000000007.000000000042.json"),
        ];
        for (name, path) in names {
            assert_eq!(name.path(), path);
            assert_eq!(JobObject::parse(path), Some(name));
        }
    }

    #[test]
    fn what_only_resembles_a_name_is_not_ours() {
        let hex = "a7".repeat(32);
        for name in [
            "run.json/".to_owned(),
            "/run.json".into(),
            "Run.json".into(),
            "epochs/7.json".into(),
            "epochs/0000000000007.json".into(),
            "epochs/+00000000007.json".into(),
            "epochs/99999999999999999999999.json".into(),
            format!("data/{hex}"),
            format!("data/{hex}.ckpt#1"),
            format!("data/x/{hex}.ckpt"),
            format!("data/{}.ckpt", hex.to_uppercase()),
            format!("blobs/{hex}.json"),
            "commits/000000000007.000000000042.json".into(),
            "commits/000000000007.000000000042.a7a7a7a7a7a7a7a7".into(),
            "commits/000000000007.000000000042.a7a7a7a7a7a7a7a7.1.json".into(),
            "commits/other/data".into(),
            "other/000000000007.json".into(),
            String::new(),
        ] {
            assert_eq!(JobObject::parse(&name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn names_are_parsed_as_they_are_built_and_lists_are_in_order(
            bytes in any::<[u8; 32]>(), one in any::<(u64, u64)>(), other in any::<(u32, u32)>(),
        ) {
            let hash = ContentHash::from(bytes);
            let marker = MarkerName::new(one.0, one.1, &hash);
            for name in [
                JobObject::Epoch(one.0), JobObject::Beat(one.1), JobObject::Data(hash.clone()),
                JobObject::Commit(marker.clone()), JobObject::Blob(hash.clone()), JobObject::Upload(hash.clone()),
                JobObject::Trash(marker), JobObject::Unnamed(hash.clone()), JobObject::HistoryPart(hash.clone()),
                JobObject::History(HistoryName { epoch: one.0, number: one.1 }),
            ] {
                prop_assert_eq!(ObjectName::new(name.path()).unwrap(), name.name());
                prop_assert_eq!(JobObject::parse(&name.path()), Some(name));
            }
            let small = |n: u32| u64::from(n) % 100_000_000_000;
            let (a, b) = ((small(other.0), small(other.1)), (small(other.1), small(other.0)));
            let path = |(epoch, seq)| JobObject::Commit(MarkerName::new(epoch, seq, &hash)).path();
            prop_assert_eq!(path(a).cmp(&path(b)), a.cmp(&b));
        }

        #[test]
        fn no_text_makes_it_panic_and_what_parses_is_built_again(text in "[a-z0-9./#-]{0,90}") {
            if let Some(name) = JobObject::parse(&text) {
                prop_assert_eq!(name.path(), text);
            }
        }
    }
}
