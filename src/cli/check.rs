//! `ckptd check`

use std::path::{Path, PathBuf};

use super::console::Console;
use super::target::{CommandTarget, WithPassedOver};
use super::{exit_code, model_probe, output};
use ckptd_core::error::Result;
use ckptd_core::os::process::processors;
use ckptd_interop::check::{self, CheckReport, ProbeReport, TensorCheck};

/// Prove what a snapshot holds: statistics, and the distance from another snapshot, file or folder (exit code 1 where
/// something is not finite or differs).
#[derive(clap::Args)]
pub(super) struct CheckArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// latest, best, a step number or a file.
    snapshot: String,
    /// Another snapshot, a .pt or safetensors file, a bundle, or a model folder.
    #[arg(long, value_name = "SNAPSHOT|FILE|DIR")]
    against: Option<String>,
    /// A distance from the other is no failure: a fine-tuned model is far from its base. Exit code 1 only where
    /// something is not finite.
    #[arg(long, requires = "against")]
    may_differ: bool,
    /// Ask the worker what the model answers, too: the variance of its logits, and how far they are from the other's.
    #[arg(long)]
    outputs: bool,
    /// A line for each tensor.
    #[arg(long)]
    all: bool,
    /// An error where latest or best passes over a snapshot that is newer, or that cannot be read.
    #[arg(long)]
    strict: bool,
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &CheckArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let (entry, mut passed_over) = target.choose(&args.snapshot, args.strict)?;
    let against = match args.against.as_deref() {
        Some(path) if Path::new(path).exists() => Some(PathBuf::from(path)),
        Some(spec) => {
            let (other, more) = target.choose(spec, args.strict)?;
            passed_over.extend(more);
            Some(other.path)
        }
        None => None,
    };
    let console = Console::start()?;
    let threads = processors();
    let mut checked = check::check(&entry.path, against.as_deref(), threads, &console)?;
    if args.outputs {
        checked.probe = Some(model_probe::ask(&entry.path, against.as_deref(), &console)?);
    }
    drop(console);
    let document = WithPassedOver { document: &checked, passed_over: &passed_over };
    output::show(args.json, &document, |_| describe(&checked, args.all))?;
    let passes = checked.is_sound() && (args.may_differ || checked.equal != Some(false));
    Ok(if passes { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

fn describe(checked: &CheckReport, is_all: bool) -> String {
    let compared = checked.against.is_some();
    let mut head = vec!["TENSOR", "TYPE", "SHAPE", "NOT FINITE", "MEAN", "STD"];
    if compared {
        head.extend(["EPSILON", "LARGEST"]);
    }
    let is_shown = |tensor: &&TensorCheck| is_all || tensor.nonfinite > 0;
    let shown = checked.tensors.iter().filter(is_shown).take(if is_all { usize::MAX } else { output::FEW });
    let rows: Vec<Vec<String>> = shown.map(|tensor| row(tensor, compared)).collect();
    let table = if rows.is_empty() { String::new() } else { output::table(&head, &rows) + "\n" };
    let tensors = checked.tensors.len();
    let rest = if is_all { String::new() } else { format!("{tensors} tensors; --all shows each\n") };
    format!("{table}{}{rest}", summary(checked))
}

fn row(tensor: &TensorCheck, compared: bool) -> Vec<String> {
    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    let mut row = vec![
        format!("{} {}", tensor.role, tensor.name),
        tensor.dtype.to_string(),
        shape.join("x"),
        tensor.nonfinite.to_string(),
        format!("{:.4e}", tensor.mean),
        format!("{:.4e}", tensor.std),
    ];
    if compared {
        let number = |number: Option<f64>| match (tensor.equal, number) {
            (None, _) => "only here".to_owned(),
            (_, Some(number)) => format!("{number:.4e}"),
            (_, None) => "not finite".to_owned(),
        };
        row.push(number(tensor.epsilon));
        row.push(number(tensor.largest_difference));
    }
    row
}

fn summary(checked: &CheckReport) -> String {
    let mut lines = vec![
        format!("step {}, root {}", checked.step, checked.root),
        format!(
            "P = {} parameters, 4 P = {}; raw {}, S = {}, r = {:.4}",
            checked.parameters,
            output::size(checked.parameter_bytes),
            output::size(checked.raw_bytes),
            output::size(checked.file_bytes),
            checked.r
        ),
        format!("values that are not finite: {}", checked.nonfinite),
    ];
    if let Some(embedding) = &checked.embedding {
        let ones = if embedding.all_ones { ", all ones" } else { "" };
        let distance = embedding.distance.map_or(String::new(), |d| format!(", ||Delta E||_F = {d:.6e}"));
        lines.push(format!("embedding: mean {:.6}, std {:.6}{ones}{distance}", embedding.mean, embedding.std));
    }
    if let Some(against) = &checked.against {
        let epsilon = checked.epsilon.map_or("not finite".to_owned(), |epsilon| format!("{epsilon:.6e}"));
        let verdict = if checked.equal == Some(true) { "the same, bit for bit" } else { "not the same" };
        lines.push(format!("against {}: epsilon = {epsilon}; {verdict}", against.display()));
        for (what, names) in [("only here", &checked.only_here), ("only there", &checked.only_there)] {
            if let Some(first) = names.first() {
                lines.push(format!("{what}: {} tensors, the first {first}", names.len()));
            }
        }
    }
    lines.extend(checked.probe.as_ref().map(answers));
    lines.into_iter().map(|line| line + "\n").collect()
}

fn answers(probe: &ProbeReport) -> String {
    let number = |number: Option<f64>| number.map_or("not finite".to_owned(), |number| format!("{number:.6e}"));
    let delta = probe.delta.map_or(String::new(), |delta| format!(", delta = {delta:.6e}"));
    let saved = match probe.matches_saved {
        Some(true) => "; to the bit as when it was saved",
        Some(false) => "; NOT as when it was saved: another kind of processor or libtorch",
        None => "",
    };
    let (rows, positions) = (probe.rows, probe.positions);
    format!("logits of {rows} x {positions} tokens: sigma^2 = {}{delta}{saved}", number(probe.sigma2))
}
