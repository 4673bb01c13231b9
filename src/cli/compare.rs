//! `ckptd compare`: whether two snapshots hold the same state, and how far apart they are.

use std::path::{Path, PathBuf};

use super::console::Console;
use super::target::{CommandTarget, WithPassedOver};
use super::{exit_code, output};
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::processors;
use ckptd_core::store::SnapshotReader;
use ckptd_interop::compare::{self, CompareReport, TensorComparison};

/// Compare two snapshots tensor by tensor; exit code 1 if anything differs.
///
/// A and B are files, or with --store also latest, best or a step number.
#[derive(clap::Args)]
pub(super) struct CompareArgs {
    a: String,
    b: String,
    /// The store's folder, or the job file, that names like `latest` refer to.
    #[arg(long, value_name = "STORE|CONFIG")]
    store: Option<PathBuf>,
    /// An error where latest or best passes over a snapshot that is newer, or that cannot be read.
    #[arg(long)]
    strict: bool,
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &CompareArgs) -> Result<u8> {
    let target = args.store.as_deref().map(CommandTarget::open).transpose()?;
    let mut passed_over = Vec::new();
    let mut open = |spec: &str| match (&target, Path::new(spec)) {
        (_, path) if path.is_file() => SnapshotReader::open(path),
        (Some(target), _) => {
            let (entry, more) = target.choose(spec, args.strict)?;
            passed_over.extend(more);
            SnapshotReader::open(&entry.path)
        }
        (None, _) => Err(Error::NotFound(format!(
            "{spec} is no file; give a snapshot's file, or --store STORE with a name such as latest"
        ))),
    };
    let console = Console::start()?;
    let (a, b) = (open(&args.a)?, open(&args.b)?);
    let comparison = compare::compare(a, b, processors(), &console)?;
    drop(console);
    let document = WithPassedOver { document: &comparison, passed_over: &passed_over };
    output::show(args.json, &document, |_| describe(&comparison))?;
    Ok(if comparison.identical { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

fn describe(comparison: &CompareReport) -> String {
    let mut text = format!("A {}\nB {}\n", comparison.a.display(), comparison.b.display());
    if comparison.identical {
        return text
            + &format!(
                "identical: {} tensors and the train state, bit for bit; ||A-B||_2 = 0\n",
                comparison.tensors.len()
            );
    }
    for name in &comparison.only_in_a {
        text.push_str(&format!("only in A: {name}\n"));
    }
    for name in &comparison.only_in_b {
        text.push_str(&format!("only in B: {name}\n"));
    }
    for (name, [a, b]) in &comparison.train_state {
        text.push_str(&format!("train state {name}: {a} against {b}\n"));
    }
    let different: Vec<&TensorComparison> = comparison.tensors.iter().filter(|t| !t.identical).collect();
    let rows: Vec<Vec<String>> = different
        .iter()
        .map(|t| match &t.mismatch {
            Some(mismatch) => vec![t.tensor.clone(), mismatch.clone()],
            None => vec![t.tensor.clone(), format!("{:.6e}", t.l2), format!("{:.6e}", t.largest_difference)],
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&output::table(&["TENSOR", "||A-B||_2", "LARGEST"], &rows));
    }
    text + &format!(
        "{} of {} tensors differ, first {}; ||A-B||_2 = {:.6e}, largest difference {:.6e}\n",
        different.len(),
        comparison.tensors.len(),
        comparison.first_difference.as_deref().unwrap_or("none"),
        comparison.l2,
        comparison.largest_difference,
    )
}
