//! The names on disk, built and parsed in one place.
//!
//! Invariant: no other module spells a file name of the store. A name that does not parse here is not ours: it is
//! neither read nor deleted.

use crate::ids::SnapshotId;

/// Folders of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Whole, durable snapshots; a file enters by rename and never changes.
    Snapshots,
    /// Files that are being written; those left by a crash are removed at the next start.
    Staging,
    /// Damaged files, each with its reason in a text file beside it.
    Quarantine,
    /// What has been read back, and when.
    Receipts,
    /// One empty file per snapshot that the user wants kept.
    Pins,
    /// What happened in all sessions, step by step.
    History,
}

impl Folder {
    /// All of them.
    pub const ALL: [Folder; 6] =
        [Folder::Snapshots, Folder::Staging, Folder::Quarantine, Folder::Receipts, Folder::Pins, Folder::History];

    /// Its name below the store.
    pub const fn name(self) -> &'static str {
        match self {
            Folder::Snapshots => "snapshots",
            Folder::Staging => "staging",
            Folder::Quarantine => "quarantine",
            Folder::Receipts => "receipts",
            Folder::Pins => "pins",
            Folder::History => "history",
        }
    }
}

/// The file whose lock is the store's.
pub const LOCK: &str = "ckptd.lock";
/// The file whose lock a worker holds while it may write.
pub const WORKER_LOCK: &str = "worker.lock";
/// Which training the store belongs to.
pub const RUN: &str = "run.json";
/// The config of the job that ran in the store last.
pub const JOB: &str = "job.json";
/// What the store remembers of its remote: under which ownership its snapshots were taken.
pub const REMOTE: &str = "remote.json";
/// What of the last session is at its remote.
pub const REPLICATION: &str = "replication.json";
/// How far the upload of a snapshot is.
pub const UPLOAD: &str = "upload.json";
/// The sessions of the store, and what they taught.
pub const SESSIONS: &str = "sessions.json";
/// How far the session under way is.
pub const MARK: &str = "session.mark";
/// What was said in the sessions, and what was before that.
pub const LOG: &str = "session.log";
/// The older part of the log.
pub const OLD_LOG: &str = "session.log.old";

/// The status socket of the job, unless its config names another place.
pub const STATUS_SOCKET: &str = "status.sock";
/// What a reader of the job's page has to know, where the job's config names no file of its own.
pub const PAGE_TOKEN: &str = "page.token";
/// The folder of event files for TensorBoard.
pub const TENSORBOARD: &str = "tensorboard";
/// The folder of tokenised texts, unless the job's config names another one.
pub const CACHE: &str = "cache";

/// How the name of a part of the history ends that is complete and packed, and of one that still grows.
const PACKED_SUFFIX: &str = ".packed";
const GROWING_SUFFIX: &str = ".growing";

const PREFIX: &str = "step-";
/// How the name of a snapshot file ends, wherever it lies.
pub const SNAPSHOT_SUFFIX: &str = ".ckpt";
const STAGING_SUFFIX: &str = ".part";
const REASON_SUFFIX: &str = ".reason.txt";
/// Of every text file in quarantine, reasons included.
const TEXT_SUFFIX: &str = ".txt";

/// `step-000000001200`; with the sequence number where another file holds that name already.
pub fn snapshot_id(step: u64, seq: Option<u64>) -> SnapshotId {
    match seq {
        None => format!("{PREFIX}{step:012}").into(),
        Some(seq) => format!("{PREFIX}{step:012}.{seq}").into(),
    }
}

/// The file of a snapshot, `step-000000001200.ckpt`.
pub fn snapshot_file(id: &SnapshotId) -> String {
    format!("{id}{SNAPSHOT_SUFFIX}")
}

/// The file in `staging/` that becomes the snapshot `id`.
pub fn staging_file(id: &SnapshotId) -> String {
    format!("{id}{STAGING_SUFFIX}")
}

/// The id in the name of a snapshot's file, or `None` where it is not one.
pub fn parse_snapshot_file(name: &str) -> Option<SnapshotId> {
    let id = name.strip_suffix(SNAPSHOT_SUFFIX)?;
    let (step, seq) = match id.strip_prefix(PREFIX)?.split_once('.') {
        None => (id.strip_prefix(PREFIX)?, None),
        Some((step, seq)) => (step, Some(seq)),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let known = step.len() >= 12 && digits(step) && step.parse::<u64>().is_ok();
    (known && seq.is_none_or(|s| digits(s) && s.parse::<u64>().is_ok())).then(|| id.into())
}

/// The step in the id of a snapshot.
pub fn step_of(id: &SnapshotId) -> Option<u64> {
    let step = id.as_str().strip_prefix(PREFIX)?;
    step.split_once('.').map_or(step, |(step, _)| step).parse().ok()
}

/// The step and the sequence number in the id of a snapshot, 0 where there is none: the later of two names is greater.
pub fn order_of(id: &SnapshotId) -> (u64, u64) {
    let seq = id.as_str().split_once('.').and_then(|(_, seq)| seq.parse().ok());
    (step_of(id).unwrap_or(0), seq.unwrap_or(0))
}

/// The file in `receipts/` that says that a snapshot was read back.
pub fn receipt_file(id: &SnapshotId) -> String {
    format!("{id}.json")
}

/// The file that pins a snapshot.
pub fn pin_file(id: &SnapshotId) -> &str {
    id.as_str()
}

/// The name in quarantine of a file `name`, of which `n` others lie there already.
pub fn set_aside(name: &str, n: u64) -> String {
    if n == 0 { name.to_owned() } else { format!("{name}.{n}") }
}

/// The id in the name of a snapshot's file, also of one that was set aside.
pub fn parse_set_aside(name: &str) -> Option<SnapshotId> {
    let numbered = || name.rsplit_once('.').filter(|(_, n)| n.parse::<u64>().is_ok()).map(|(name, _)| name);
    parse_snapshot_file(name).or_else(|| parse_snapshot_file(numbered()?))
}

/// The id of a quarantined file: its name without what quarantine and its suffix added.
pub fn quarantined_id(name: &str) -> SnapshotId {
    name.split_once(SNAPSHOT_SUFFIX).map_or(name, |(id, _)| id).into()
}

/// The reason beside a quarantined file.
pub fn reason_file(quarantined: &str) -> String {
    format!("{quarantined}{REASON_SUFFIX}")
}

/// Whether a file in quarantine says why another one lies there. Users may leave notes of their own beside it.
pub fn is_reason_file(name: &str) -> bool {
    name.ends_with(TEXT_SUFFIX)
}

/// A part of the history: the parts follow each other by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistoryPart {
    /// Which part.
    pub number: u64,
    /// It is complete and packed; else it still grows.
    pub is_packed: bool,
}

/// The file of a part of the history, `00000007.growing`.
pub fn history_file(part: HistoryPart) -> String {
    format!("{:08}{}", part.number, if part.is_packed { PACKED_SUFFIX } else { GROWING_SUFFIX })
}

/// The part in the name of a file of the history, or `None` where it is not one.
pub fn parse_history_file(name: &str) -> Option<HistoryPart> {
    let part = [(PACKED_SUFFIX, true), (GROWING_SUFFIX, false)].into_iter().find_map(|(suffix, is_packed)| {
        Some(HistoryPart { number: name.strip_suffix(suffix)?.parse().ok()?, is_packed })
    })?;
    (history_file(part) == name).then_some(part)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_as_they_are_built() {
        for (step, seq) in [(0, None), (1200, None), (u64::MAX, Some(7)), (999_999_999_999, Some(0))] {
            let id = snapshot_id(step, seq);
            assert_eq!(parse_snapshot_file(&snapshot_file(&id)), Some(id));
        }
        assert_eq!(snapshot_file(&snapshot_id(1200, None)), "step-000000001200.ckpt");
        for part in [(0, false), (7, true), (123_456_789, false)] {
            let part = HistoryPart { number: part.0, is_packed: part.1 };
            assert_eq!(parse_history_file(&history_file(part)), Some(part));
        }
        for name in ["7.packed", "+0000007.packed", "00000007.packed.tmp", "00000007", ".growing"] {
            assert_eq!(parse_history_file(name), None, "{name}");
        }
    }

    #[test]
    fn a_name_that_only_resembles_a_snapshot_is_not_one() {
        for name in [
            "step-1200.ckpt",
            "step-000000001200",
            "step-000000001200.ckpt.tmp",
            "xstep-000000001200.ckpt",
            "step-00000000120x.ckpt",
            "step-000000001200..ckpt",
            "step-000000001200.1.2.ckpt",
            "step-+00000001200.ckpt",
            "step-99999999999999999999999.ckpt",
        ] {
            assert_eq!(parse_snapshot_file(name), None, "{name}");
        }
    }
}
