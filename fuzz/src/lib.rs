//! What the fuzz targets do with an input. tests/fuzz_inputs.rs does the same with the seeds and with every input that
//! was ever found to break something.
//!
//! The first byte chooses: 0 is a file as it stands; 1 is what lies behind the checksums of one, which are put right
//! here, since mutations alone would never get past them. Deliberately not here: what is right or wrong about an input.
//! A target fails by a panic, by too much time or memory, and where something is left behind.

use std::fs;
use std::path::{Path, PathBuf};

use ckptd::daemon::status::StatusRequest;
use ckptd::notices::{aws, azure, gcp, slurm};
use ckptd_core::config::Config;
use ckptd_core::progress::NoProgress;
use ckptd_core::protocol::{self, AgentCommand, WorkerEvent};
use ckptd_core::store::SnapshotReader;
use ckptd_core::store::format::{self, HEAD_BYTES, RECORD_BYTES};
use ckptd_core::store::trailer::Trailer;
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::output::OverwriteRule;
use ckptd_interop::{bundle, import};

#[path = "../../tests/support/craft.rs"]
#[allow(clippy::expect_used)]
pub mod craft;

/// A folder for the inputs of one target, in memory where that is possible: files are written and unpacked by the
/// thousand, each of them synced.
pub struct Sandbox(tempfile::TempDir);

impl Default for Sandbox {
    fn default() -> Sandbox {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        #[allow(clippy::expect_used)]
        Sandbox(dir.expect("a folder to work in"))
    }
}

impl Sandbox {
    fn lay(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("input");
        #[allow(clippy::expect_used)]
        fs::write(&path, bytes).expect("the input is written");
        path
    }

    /// Removes what the target may have made, and nothing else may be there.
    fn sweep(&self, allowed: &str) {
        let made = self.0.path().join(allowed);
        if made.is_dir() {
            let _ = fs::remove_dir_all(&made);
        }
        let _ = fs::remove_file(self.0.path().join("input"));
        let left: Vec<_> = fs::read_dir(self.0.path()).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Reads `bytes` as a user's `ckptd import` would.
    fn load(&self, bytes: &[u8]) {
        let path = self.lay(bytes);
        let (store, limits) = (self.0.path().join("store"), ReadLimits::default());
        let options = import::LoadOptions { target: Some(&store), ..import::LoadOptions::new(&limits) };
        let loaded = import::load(&path, &options, &NoProgress);
        drop(loaded);
        self.sweep("none");
    }
}

pub fn pt(sandbox: &Sandbox, input: &[u8]) {
    match input.split_first() {
        Some((1, pickle)) => sandbox.load(&craft::torch(pickle)),
        Some((_, file)) => sandbox.load(file),
        None => {}
    }
}

pub fn safetensors(sandbox: &Sandbox, input: &[u8]) {
    match input.split_first() {
        // The header up to a zero byte, then the data.
        Some((1, rest)) => {
            let (header, data) = rest.split_at(rest.iter().position(|&b| b == 0).unwrap_or(rest.len()));
            let length = (header.len() as u64).to_le_bytes();
            sandbox.load(&[&length[..], header, data.get(1..).unwrap_or_default()].concat());
        }
        Some((_, file)) => sandbox.load(file),
        None => {}
    }
}

pub fn bundle(sandbox: &Sandbox, input: &[u8]) {
    let (Some(mode), file) = (input.first(), input.get(1..).unwrap_or_default()) else { return };
    let file = if *mode == 1 { craft::zst(file) } else { file.to_vec() };
    let path = sandbox.lay(&file);
    let _ = bundle::unpack(
        &path,
        &sandbox.0.path().join("out"),
        OverwriteRule::Refuse,
        &ReadLimits::default(),
        &NoProgress,
    );
    sandbox.sweep("out");
    sandbox.load(&file);
}

pub fn snapshot(sandbox: &Sandbox, input: &[u8]) {
    let file = match input.split_first() {
        Some((1, parts)) => sealed(parts),
        Some((_, file)) => file.to_vec(),
        None => return,
    };
    let path = sandbox.lay(&file);
    if let Ok(reader) = SnapshotReader::open(&path) {
        let _ = (reader.check_all(1, &NoProgress), reader.read_snapshot(), reader.chunk_stats());
    }
    sandbox.sweep("none");
    sandbox.load(&file);
}

/// A job file; what is accepted travels to the worker as JSON and has to arrive as it was.
pub fn config(_: &Sandbox, input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(config) = Config::parse(text, Path::new("/jobs/job.toml")) {
        let json = serde_json::to_string(&config).unwrap_or_default();
        assert_eq!(serde_json::from_str::<Config>(&json).ok().as_ref(), Some(&config), "{json}");
    }
}

/// A line between agent and worker, of either direction by the first byte; what parses is written and parses again.
pub fn protocol(_: &Sandbox, input: &[u8]) {
    let Some((direction, Ok(text))) = input.split_first().map(|(first, rest)| (first, std::str::from_utf8(rest)))
    else {
        return;
    };
    match direction {
        0 => again::<AgentCommand>(text),
        _ => again::<WorkerEvent>(text),
    }
}

fn again<T: serde::de::DeserializeOwned + serde::Serialize>(text: &str) {
    if let Ok(message) = protocol::parse::<T>(text.trim()) {
        let line = protocol::line(&message);
        assert_eq!(protocol::parse::<T>(&line).map(|message| protocol::line(&message)), Ok(line));
    }
}

/// What a client may say to the status socket.
pub fn status(_: &Sandbox, input: &[u8]) {
    let _ = StatusRequest::parse(input);
}

/// What a source of notices may answer, the source by the first byte.
pub fn notice(_: &Sandbox, input: &[u8]) {
    let Some((source, body)) = input.split_first() else { return };
    match source {
        0 => drop(aws::parse_action(body)),
        1 => drop(aws::parse_rebalance(body)),
        2 => drop(aws::parse_token(body)),
        3 => drop(azure::parse_events(body).map(|events| azure::judge(&events, "vm_0"))),
        4 => drop(azure::parse_name(body)),
        5 => drop(gcp::parse_preempted(body)),
        6 => drop(gcp::parse_maintenance(body)),
        _ => drop(slurm::parse_end(&String::from_utf8_lossy(body), &jiff::tz::TimeZone::UTC)),
    }
}

/// The snapshot file of these parts with all its hashes right: two little-endian u32, the bytes of the chunks and of
/// their table, then chunks, table and manifest.
pub fn sealed(parts: &[u8]) -> Vec<u8> {
    let length = |at: usize| parts.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let body = parts.get(8..).unwrap_or_default();
    let (chunks, rest) = body.split_at(length(0).min(body.len()));
    let table_bytes = length(4).min(rest.len()) / RECORD_BYTES * RECORD_BYTES;
    let (table, manifest) = rest.split_at(table_bytes);
    let mut records = format::parse_table(table);
    let mut at = 0usize;
    for record in &mut records {
        let end = at.saturating_add(record.encoded as usize);
        if let Some(bytes) = chunks.get(at..end) {
            // The hash of a whole item is plain BLAKE3, as that of stored bytes is.
            record.encoded_hash = format::chunk_hash(bytes, 0, true);
        }
        at = end;
    }
    let table = format::table_bytes(&records);
    let version = format::parse_manifest(manifest, Path::new("parts")).map_or(1, |manifest| manifest.format);
    let trailer = Trailer::new(version, (HEAD_BYTES + chunks.len()) as u64, &table, manifest);
    [&format::head(version)[..], chunks, &table, manifest, &trailer.to_bytes()].concat()
}

/// The parts of a snapshot file, for [`snapshot`].
pub fn parts_of(file: &[u8]) -> Option<Vec<u8>> {
    let tail = file.last_chunk()?;
    let trailer = Trailer::parse(tail, file.len() as u64, Path::new("a seed")).ok()?;
    let chunks = file.get(HEAD_BYTES..trailer.table.start as usize)?;
    let table = file.get(trailer.table.start as usize..trailer.table.end as usize)?;
    let manifest = file.get(trailer.manifest.start as usize..trailer.manifest.end as usize)?;
    let lengths = [chunks.len() as u32, table.len() as u32].map(u32::to_le_bytes);
    Some([&[1][..], lengths.as_flattened(), chunks, table, manifest].concat())
}
