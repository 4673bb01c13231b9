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
/// A and B are files, or what a name means in the store: latest, best or a step number.
#[derive(clap::Args)]
pub(super) struct CompareArgs {
    /// The store's folder, or the job file, and the two snapshots; the store can be left out where both are files.
    #[arg(value_names = ["STORE|CONFIG", "A", "B"], num_args = 2..=3, required = true)]
    snapshots: Vec<String>,
    /// The store, as an earlier release had it.
    #[arg(long, value_name = "STORE|CONFIG", hide = true)]
    store: Option<PathBuf>,
    /// A line for each tensor that differs.
    #[arg(long)]
    all: bool,
    /// An error where latest or best passes over a snapshot that is newer, or that cannot be read.
    #[arg(long)]
    strict: bool,
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &CompareArgs) -> Result<u8> {
    let (store, pair) = args.sides()?;
    let target = store.as_deref().map(CommandTarget::open).transpose()?;
    let mut passed_over = Vec::new();
    let mut open = |spec: &str| match (&target, Path::new(spec)) {
        (_, path) if path.is_file() => SnapshotReader::open(path),
        (Some(target), _) => {
            let (entry, more) = target.choose(spec, args.strict)?;
            passed_over.extend(more);
            SnapshotReader::open(&entry.path)
        }
        (None, _) => Err(Error::NotFound(format!(
            "{spec} is no file; give two snapshots' files, or the store before them: ckptd compare STORE {} {}",
            pair[0], pair[1]
        ))),
    };
    let console = Console::start()?;
    let (a, b) = (open(pair[0])?, open(pair[1])?);
    let comparison = compare::compare(a, b, processors(), &console)?;
    drop(console);
    let document = WithPassedOver { document: &comparison, passed_over: &passed_over };
    output::show(args.json, &document, |_| describe(&comparison, args.all))?;
    Ok(if comparison.identical { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

impl CompareArgs {
    /// The store, where one is given, and the two snapshots.
    fn sides(&self) -> Result<(Option<PathBuf>, [&str; 2])> {
        match (self.snapshots.as_slice(), &self.store) {
            ([a, b], store) => Ok((store.clone(), [a, b])),
            ([store, a, b], None) => Ok((Some(store.into()), [a, b])),
            _ => Err(Error::Other("give the store once: ckptd compare STORE A B".into())),
        }
    }
}

fn describe(comparison: &CompareReport, is_all: bool) -> String {
    let mut text = format!("A {}\nB {}\n", comparison.a.display(), comparison.b.display());
    if comparison.identical {
        let tensors = comparison.tensors.len();
        text.push_str(&format!("identical: {tensors} tensors and the train state, bit for bit; ||A-B||_2 = 0\n"));
        return text;
    }
    for (side, names) in [("A", &comparison.only_in_a), ("B", &comparison.only_in_b)] {
        text.extend(output::few(names, is_all).into_iter().map(|name| format!("only in {side}: {name}\n")));
    }
    for (name, [a, b]) in &comparison.train_state {
        text.push_str(&format!("train state {name}: {a} against {b}\n"));
    }
    let mut different: Vec<&TensorComparison> = comparison.tensors.iter().filter(|t| !t.identical).collect();
    let count = different.len();
    if !is_all {
        // Those that cannot be subtracted, then the farthest.
        let distance = |t: &TensorComparison| if t.l2.is_nan() { f64::INFINITY } else { t.l2 };
        different.sort_by(|a, b| distance(b).total_cmp(&distance(a)));
        different.truncate(output::FEW);
    }
    let rows: Vec<Vec<String>> = different
        .iter()
        .map(|t| match &t.mismatch {
            Some(mismatch) => vec![t.tensor.clone(), mismatch.clone()],
            None => vec![t.tensor.clone(), format!("{:.6e}", t.l2), format!("{:.6e}", t.largest_difference)],
        })
        .collect();
    if !rows.is_empty() {
        let head = if rows.len() < count { "FARTHEST" } else { "TENSOR" };
        text.push_str(&output::table(&[head, "||A-B||_2", "LARGEST"], &rows));
    }
    let rest = if rows.len() < count { "; --all shows each" } else { "" };
    text + &format!(
        "{count} of {} tensors differ, first {}; ||A-B||_2 = {:.6e}, largest difference {:.6e}{rest}\n",
        comparison.tensors.len(),
        comparison.first_difference.as_deref().unwrap_or("none"),
        comparison.l2,
        comparison.largest_difference,
    )
}
