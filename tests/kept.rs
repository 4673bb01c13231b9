//! Stores that release 0.1.0 left behind when it was killed: this build lists and verifies them, and its trainings end
//! in the bits in which that release's own ended.
//!
//! Expected roots were computed by that release, on an AMD EPYC with AVX-512. `PORTABLE` makes libtorch, MKL and oneDNN
//! compute the same bits on every x86-64 processor: that release gave the root of `adamw` on an emulated Haswell, too.
//! It knew nothing of oneDNN, whose gelu differs by instruction set: of `sgd` it gave 766aad6a..., as later builds did
//! there, and the root under `PORTABLE` is that of a later build.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ckptd_core::store::{SnapshotState, Store};

/// libtorch's kernels without vector instructions of their own, MKL's and oneDNN's without those of one processor.
const PORTABLE: [(&str, &str); 3] =
    [("ATEN_CPU_CAPABILITY", "default"), ("MKL_CBWR", "COMPATIBLE"), ("ONEDNN_MAX_CPU_ISA", "SSE41")];

/// A job, its kept snapshots (step, root), and the root of the whole training.
struct Kept {
    name: &'static str,
    snapshots: &'static [(u64, &'static str)],
    root_at_end: &'static str,
}

/// Dropout, accumulation, evaluation.
const ADAMW: Kept = Kept {
    name: "adamw",
    snapshots: &[
        (150, "7e87bed80d1818acdc9b9a529ec2305c6c32c70d11b1683f8054376e47da8a1f"),
        (100, "cd1a63594501271b3ea49a8f6931bedee9573892fd550ee34399920f8b6c7e73"),
    ],
    root_at_end: "455878b53fbf5474849c7f67b139186441a0e6cedc55f41817e730bcf1e28d14",
};
/// Momentum, clipping, a linear schedule, gelu, an MLP of its own width, level 3.
const SGD: Kept = Kept {
    name: "sgd",
    snapshots: &[(240, "2cf227f0c57c75d90bd746af94b27c273094eb36b4f6972107c6385d6dac32f0")],
    root_at_end: "706d28ed809a798091e2430f0b3d88d2f795d6f3b65ccda61c43503d57e2f4e0",
};
/// Text with a tokenizer, its token cache, a dropout of the job's own, a probe.
const TEXT: Kept = Kept {
    name: "text",
    snapshots: &[
        (160, "0cde966e4692611bd6ffab1226ba114f22adcb26aca8a4c76bfd9cf993c8044f"),
        (120, "bb98d7fd05c68071b49e152cfa31f64ae8186119514564b8216cfd9208eb79f4"),
    ],
    root_at_end: "2925ea253c01809fe08dcd4cdccb9125ba8e03b401ff3fe152ebb59a4027a15d",
};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn ckptd(command: &str, job: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ckptd")).arg(command).arg(job).envs(PORTABLE).output().unwrap()
}

fn goes_on_to_its_own_root(kept: &Kept) {
    let folder = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kept"), folder.path());
    let job: PathBuf = folder.path().join(kept.name).with_extension("toml");
    let store = Store::open(&folder.path().join(kept.name)).unwrap();

    let found = store.entries().unwrap();
    let manifests = found.iter().map(|entry| entry.manifest.as_ref().unwrap());
    let found: Vec<(u64, String)> = manifests.map(|m| (m.train.step, m.root.to_string())).collect();
    let expected: Vec<(u64, String)> = kept.snapshots.iter().map(|(step, root)| (*step, (*root).into())).collect();
    assert_eq!(found, expected);

    let verify = ckptd("verify", &job);
    assert_eq!(verify.status.code(), Some(0), "{}", String::from_utf8_lossy(&verify.stderr));

    let run = ckptd("run", &job);
    let log = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(0), "{log}");
    assert!(log.contains(&format!("resuming from step {}", kept.snapshots[0].0)), "{log}");
    let last = store.find("latest").unwrap();
    assert_eq!(last.state, SnapshotState::Verified);
    assert_eq!(last.manifest.unwrap().root.to_string(), kept.root_at_end, "{log}");
}

#[test]
fn a_kept_training_with_adamw_ends_in_its_own_root() {
    goes_on_to_its_own_root(&ADAMW);
}

#[test]
fn a_kept_training_with_sgd_ends_in_its_own_root() {
    goes_on_to_its_own_root(&SGD);
}

#[test]
fn a_kept_training_on_text_ends_in_its_own_root() {
    goes_on_to_its_own_root(&TEXT);
}
