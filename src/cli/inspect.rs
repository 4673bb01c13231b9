//! `ckptd inspect`

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::target::{CommandTarget, WithPassedOver};
use super::{exit_code, output};
use ckptd_core::error::Result;
use ckptd_core::ids::SnapshotId;
use ckptd_core::store::format::{FileRecord, TensorRecord};
use ckptd_core::store::read::ChunkStat;
use ckptd_core::store::{Manifest, SnapshotReader};

/// Characters of a setting that are shown.
const LONGEST_VALUE: usize = 100;

/// Show what is in a snapshot: manifest, tensors, sizes and ratios.
#[derive(clap::Args)]
pub(super) struct InspectArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// latest, best, a step number or a file.
    snapshot: String,
    /// An error where latest or best passes over a snapshot that is newer, or that cannot be read.
    #[arg(long)]
    strict: bool,
    #[arg(long)]
    json: bool,
}

/// `--json`: the manifest, and with each tensor and file how it is stored.
#[derive(Serialize)]
struct InspectedSnapshot<'a> {
    id: &'a SnapshotId,
    path: PathBuf,
    bytes: u64,
    ratio: f64,
    #[serde(flatten)]
    manifest: &'a Manifest,
    stored: Vec<StoredItem<'a>>,
}

#[derive(Default, Serialize)]
struct StoredItem<'a> {
    name: &'a str,
    /// "file" for a carried file.
    role: &'a str,
    raw_bytes: u64,
    encoded_bytes: u64,
    ratio: f64,
    /// Chunks by their coding.
    codings: BTreeMap<&'static str, u64>,
}

pub(super) fn execute(args: &InspectArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let (entry, passed_over) = target.choose(&args.snapshot, args.strict)?;
    let reader = SnapshotReader::open(&entry.path)?;
    let manifest = reader.manifest();
    let document = InspectedSnapshot {
        id: &entry.id,
        path: std::path::absolute(&entry.path).unwrap_or_else(|_| entry.path.clone()),
        bytes: reader.file_bytes(),
        ratio: output::ratio(manifest.raw_bytes, reader.file_bytes()),
        manifest,
        stored: stored(manifest, &reader.chunk_stats()?),
    };
    let with_passed_over = WithPassedOver { document: &document, passed_over: &passed_over };
    output::show(args.json, &with_passed_over, |_| describe(&document))?;
    Ok(exit_code::DONE)
}

fn stored<'a>(manifest: &'a Manifest, chunks: &[ChunkStat]) -> Vec<StoredItem<'a>> {
    let of_tensor =
        |t: &'a TensorRecord| StoredItem { name: &t.meta.name, role: t.meta.role.name(), ..StoredItem::default() };
    let of_file = |f: &'a FileRecord| StoredItem { name: &f.name, role: "file", ..StoredItem::default() };
    let mut items: Vec<StoredItem> =
        manifest.tensors.iter().map(of_tensor).chain(manifest.files.iter().map(of_file)).collect();
    for chunk in chunks {
        if let Some(item) = items.get_mut(chunk.item) {
            item.raw_bytes += chunk.raw;
            item.encoded_bytes += chunk.encoded;
            *item.codings.entry(chunk.coding).or_default() += 1;
        }
    }
    for item in &mut items {
        item.ratio = output::ratio(item.raw_bytes, item.encoded_bytes);
    }
    items
}

fn describe(document: &InspectedSnapshot) -> String {
    let Manifest { train, metrics, provenance, .. } = document.manifest;
    let loss = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    let mut text = format!(
        "{}  {}\n{}, {} of {} raw\nroot {}\nrun {}, snapshot {}, {}, taken {} ({}){}\n\
         step {}, {} tokens seen, epoch {} at {}, train loss {}, validation loss {}\n\
         ckptd {}, libtorch {}, {} on {}\n",
        document.id,
        document.path.display(),
        output::size(document.bytes),
        output::percent(document.bytes, document.manifest.raw_bytes),
        output::size(document.manifest.raw_bytes),
        document.manifest.root,
        document.manifest.run_id,
        document.manifest.seq,
        if document.manifest.healthy { "healthy" } else { "UNHEALTHY: not all values are finite" },
        document.manifest.created_at,
        provenance.reason,
        document.manifest.parent.as_ref().map_or_else(String::new, |parent| format!(", after {parent}")),
        train.step,
        train.tokens_seen,
        train.epoch,
        train.position,
        loss(metrics.train_loss),
        loss(metrics.val_loss),
        provenance.ckptd,
        provenance.libtorch,
        provenance.device,
        provenance.host,
    );
    if !train.arithmetic.is_first() {
        text.push_str(&format!("  arithmetic = {}\n", train.arithmetic));
    }
    for (name, value) in train.settings.iter() {
        // Whole states of a script's random generators stand there, too.
        let beginning: String = value.chars().take(LONGEST_VALUE).collect();
        let more = if beginning.len() < value.len() { format!("... ({} bytes)", value.len()) } else { String::new() };
        text.push_str(&format!("  {name} = {beginning}{more}\n"));
    }
    let tensors = document.manifest.tensors.iter().map(|t| (t.meta.dtype.name(), format!("{:?}", t.meta.shape)));
    let kinds = tensors.chain(std::iter::repeat(("-", "-".to_owned())));
    let rows: Vec<Vec<String>> = document
        .stored
        .iter()
        .zip(kinds)
        .map(|(item, (dtype, shape))| {
            let codings: Vec<String> = item.codings.iter().map(|(coding, n)| format!("{n} {coding}")).collect();
            vec![
                item.role.to_owned(),
                item.name.to_owned(),
                dtype.to_owned(),
                shape,
                output::size(item.raw_bytes),
                output::percent(item.encoded_bytes, item.raw_bytes),
                codings.join(", "),
            ]
        })
        .collect();
    text + &output::table(&["ROLE", "NAME", "DTYPE", "SHAPE", "SIZE", "OF RAW", "CHUNKS"], &rows)
}
