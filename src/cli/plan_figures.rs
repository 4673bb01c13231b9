//! What this machine does per second: a snapshot until it is durable, read back, and bytes over the loopback.
//!
//! Invariant: what is written is removed again. Deliberately not here: what it means for a training (`session::scale`).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;
use ckptd_core::os::process::processors;
use ckptd_core::progress::NoProgress;
use ckptd_core::snapshot::{Metrics, Provenance, Role, Snapshot, Tensor, TensorBytes, TensorMeta, TrainState};
use ckptd_core::store::{CommitOptions, CommitPace, Store, commit};

/// Values of one tensor, and how many tensors a snapshot has.
const VALUES: usize = 4 << 20;
const TENSORS: usize = 16;
/// What is sent at a time.
const BLOCK: usize = 1 << 20;

/// Figures of this machine, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct MeasuredFigures {
    pub raw_bytes: u64,
    pub stored_bytes: u64,
    pub commit_seconds: f64,
    pub read_back_seconds: f64,
    pub loopback_bytes_per_second: f64,
}

/// A folder that goes with this.
struct TriedStore(PathBuf);

impl Drop for TriedStore {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures, with a store of its own below `folder`.
///
/// # Errors
/// Those of a commit, and of the loopback.
pub(super) fn measure(folder: &Path) -> Result<MeasuredFigures> {
    let tried = TriedStore(folder.join(format!(".ckptd-plan-{}", RunId::random()?)));
    let store = Store::create(&tried.0)?;
    let lock = store.lock("ckptd plan")?;
    let snapshot = snapshot();
    let run = store.begin_run(&lock, RunId::random)?;
    let options = CommitOptions { threads: processors(), pace: CommitPace::Alone, ..CommitOptions::new(&run, 1) };
    let began = Instant::now();
    let committed = commit(&store, &lock, snapshot, &options)?;
    let commit_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    store.verify(&store.find("latest")?, processors(), &NoProgress)?;
    Ok(MeasuredFigures {
        raw_bytes: committed.raw_bytes,
        stored_bytes: committed.bytes,
        commit_seconds,
        read_back_seconds: began.elapsed().as_secs_f64(),
        loopback_bytes_per_second: loopback()?,
    })
}

/// Values as those of a trained model: about normal, each chunk of its own.
fn snapshot() -> Snapshot {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut values = Vec::with_capacity(4 * VALUES);
    for _ in 0..VALUES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: f32 = (0..4).map(|part| f32::from((state >> (16 * part)) as u16) / 65536.0 - 0.5).sum();
        values.extend((0.035 * sum).to_le_bytes());
    }
    let bytes: TensorBytes = Arc::new(values);
    let tensor = |index: usize| Tensor {
        meta: TensorMeta {
            role: Role::Param,
            name: format!("tensor.{index:02}"),
            dtype: DType::F32,
            shape: vec![VALUES as u64],
        },
        bytes: bytes.clone(),
    };
    Snapshot {
        tensors: (0..TENSORS).map(tensor).collect(),
        train: TrainState::default(),
        metrics: Metrics::default(),
        provenance: Provenance::default(),
        files: Vec::new(),
    }
}

/// Bytes per second from one thread to another one, over TCP, both ways at once.
fn loopback() -> Result<f64> {
    let failed = |e: std::io::Error| Error::Other(format!("measuring the loopback: {e}"));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let there = std::thread::spawn(move || exchange(&TcpStream::connect(address)?));
    let (here, _) = listener.accept().map_err(failed)?;
    let began = Instant::now();
    exchange(&here).map_err(failed)?;
    let ended = there.join().map_err(|_| Error::Other("measuring the loopback: a thread died".into()))?;
    ended.map_err(failed)?;
    Ok((VALUES * 4 * TENSORS) as f64 / began.elapsed().as_secs_f64())
}

/// Sends as much as it receives.
fn exchange(stream: &TcpStream) -> std::io::Result<()> {
    let (mut sending, mut receiving) = (stream.try_clone()?, stream.try_clone()?);
    let blocks = VALUES * 4 * TENSORS / BLOCK;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let block = vec![1u8; BLOCK];
            (0..blocks).try_for_each(|_| sending.write_all(&block))
        });
        let mut block = vec![0u8; BLOCK];
        (0..blocks).try_for_each(|_| receiving.read_exact(&mut block))?;
        sender.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread died")))
    })
}
