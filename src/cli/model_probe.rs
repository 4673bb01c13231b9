//! The worker's part of `ckptd check`: what the model answers, computed by `ckptd-gpt2 probe`.

use std::ffi::OsStr;
use std::path::Path;

use super::worker_task::WorkerTask;
use ckptd_core::error::Result;
use ckptd_core::progress::ProgressSink;
use ckptd_interop::check::ProbeReport;

/// Asks the worker for the answers of the snapshot at `path`, and how far they are from those of `against`.
pub(super) fn ask(path: &Path, against: Option<&Path>, progress: &dyn ProgressSink) -> Result<ProbeReport> {
    let mut arguments = vec![OsStr::new("probe"), OsStr::new("--model"), path.as_os_str()];
    if let Some(against) = against {
        arguments.extend([OsStr::new("--against"), against.as_os_str()]);
    }
    let failed = "the worker cannot say what the model answers";
    WorkerTask { arguments: &arguments, doing: "asking the worker", failed }.run(progress)
}
