//! Going on from a snapshot.
//!
//! Invariant: either every tensor and the train state are restored exactly, under the settings that they came about
//! under, or the error names what differs. Deliberately not here: choosing the snapshot (the agent).

use std::collections::BTreeMap;

use ckptd_core::config::ComputePrecision;
use ckptd_core::ids::StateRoot;
use ckptd_core::protocol::MessageLevel;
use ckptd_core::settings::{SettingKey, TrainSettings};
use ckptd_core::snapshot::{Metrics, TrainState};
use ckptd_core::store::{ItemPart, Manifest, SnapshotReader};
use ckptd_core::{Error, Result};

use crate::capture::{TensorDestination, TrainingState};
use crate::data::DataChange;
use crate::events::EventSender;
use crate::gpt2::Gpt2Model;
use crate::probe::LogitsFingerprint;

/// The setting that says with which instructions products are computed in bf16: another set rounds otherwise.
pub(super) const BF16_KEY: &str = "processor.bf16";

/// What a fingerprint that is another one means.
pub(super) const OTHER_LOGITS: &str = "the same parameters give other logits here than where the snapshot was taken: \
                                       another kind of processor, device or libtorch";

/// What becomes of a resume under other settings than the snapshot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangedSettings {
    /// It ends with an error that names them.
    Refuse,
    /// It goes on with a warning: `--accept-changes`.
    Accept,
}

/// The snapshot that a session went on from.
#[derive(Clone, Debug)]
pub struct ResumedFrom {
    /// The train state as it was saved.
    pub train: TrainState,
    pub root: StateRoot,
    /// Of its file.
    pub file_hash: String,
    /// Of the model's logits, where it holds one.
    pub fingerprint: Option<String>,
}

/// Fills `state` from `snapshot`, reading on twice as many threads as compute.
///
/// # Errors
/// [`Error::Mismatch`] that names every tensor that differs; those of reading.
pub(super) fn restore(snapshot: &SnapshotReader, state: &mut TrainingState, threads: usize) -> Result<ResumedFrom> {
    let manifest = snapshot.manifest();
    fill_from(snapshot, state, threads)?;
    state.edit(|train, metrics| {
        let settings = std::mem::take(&mut train.settings);
        *train = TrainState { settings, arithmetic: train.arithmetic, ..manifest.train.clone() };
        // A fingerprint belongs to the snapshot that holds it; the next one has its own.
        *metrics = Metrics { probe: None, ..manifest.metrics.clone() };
    });
    Ok(ResumedFrom {
        train: manifest.train.clone(),
        root: manifest.root.clone(),
        file_hash: blake3::Hash::from_bytes(snapshot.file_hash()).to_hex().to_string(),
        fingerprint: manifest.metrics.probe.clone(),
    })
}

/// Fills the tensors of `state` alone.
///
/// # Errors
/// As [`restore`].
pub(super) fn fill_from(snapshot: &SnapshotReader, state: &mut TrainingState, threads: usize) -> Result<()> {
    let manifest = snapshot.manifest();
    state.fill(|destinations| {
        let wanted = match_tensors(manifest, destinations)
            .map_err(|what| Error::mismatch(snapshot.path(), format!("does not fit this training: {what}")))?;
        // Each of the threads waits for the device half of the time.
        snapshot.read_parts(wanted, 2 * threads.max(2))
    })
}

/// Refuses to go on under other settings than the snapshot's, or with other data, unless that is accepted.
///
/// # Errors
/// [`Error::Mismatch`] that names every difference, those that spoil the model and those that do no harm apart.
pub(super) fn check_settings(
    snapshot: &SnapshotReader,
    now: &TrainSettings,
    data: &[DataChange],
    changed: ChangedSettings,
    events: &EventSender,
) -> Result<()> {
    let then = &snapshot.manifest().train.settings;
    let mut differences = Vec::new();
    // A state imported from other programs does not say under which settings it came about.
    if !then.is_empty() {
        // What stands for the data tells a reader nothing; `data` says it in words.
        let mut now = now.clone();
        now.set_key(SettingKey::DataContent, then.data_content().unwrap_or_default());
        differences = then.changes_of_arithmetic(&now);
    }
    let (harmless, mut others): (Vec<String>, Vec<String>) =
        differences.into_iter().partition(|difference| is_harmless(difference));
    let mut harmful = Vec::new();
    for change in data {
        match change {
            DataChange::Tokenizer(what) => harmful.push(what.clone()),
            DataChange::Data(what) => others.push(what.clone()),
        }
    }
    let list = [("", others), ("no harm: ", harmless), ("this spoils what the model has learned: ", harmful)];
    let list: Vec<String> = list
        .iter()
        .filter(|(_, differences)| !differences.is_empty())
        .map(|(label, differences)| format!("{label}{}", differences.join("; ")))
        .collect();
    if list.is_empty() {
        return Ok(());
    }
    let list = list.join("; ");
    if changed == ChangedSettings::Refuse {
        let what = format!("was trained with other settings ({list}); put them back, or go on with --accept-changes");
        return Err(Error::mismatch(snapshot.path(), what));
    }
    events.log(MessageLevel::Warn, format!("going on with other settings: {list}"));
    Ok(())
}

/// Whether the setting that a difference names changes the last bits alone.
fn is_harmless(difference: &str) -> bool {
    const HARMLESS: [&str; 3] = ["threads", "device", BF16_KEY];
    HARMLESS.iter().any(|key| difference.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
}

/// The manifest's index, the offset and the memory of each tensor, or what does not fit, as a list.
fn match_tensors<'a>(
    manifest: &Manifest,
    destinations: &'a mut [TensorDestination<'_>],
) -> Result<Vec<ItemPart<'a>>, String> {
    let mut wanted = Vec::with_capacity(destinations.len());
    let mut wrong = Vec::new();
    let mut left: BTreeMap<_, usize> =
        manifest.tensors.iter().enumerate().map(|(i, t)| ((t.meta.role, t.meta.name.clone()), i)).collect();
    for destination in destinations.iter_mut() {
        let meta = destination.meta;
        match left.remove(&(meta.role, meta.name.clone())) {
            Some(i) if manifest.tensors[i].meta == *meta => {
                wanted.push((i, destination.offset, &mut *destination.bytes));
            }
            Some(i) => {
                let has = &manifest.tensors[i].meta;
                wrong.push(format!(
                    "{} is {} {:?}, not {} {:?}",
                    meta.label(),
                    has.dtype,
                    has.shape,
                    meta.dtype,
                    meta.shape
                ));
            }
            None => wrong.push(format!("{} is missing", meta.label())),
        }
    }
    wrong.extend(left.into_keys().map(|(role, name)| format!("{role} {name} is not part of this training")));
    if wrong.is_empty() { Ok(wanted) } else { Err(wrong.join("; ")) }
}

/// Whether this model gives the logits with the fingerprint `saved`.
///
/// # Errors
/// Those of libtorch.
pub(super) fn gives_logits(
    saved: &str,
    (model, precision): (&Gpt2Model, ComputePrecision),
    state: &TrainingState,
) -> Result<bool> {
    Ok(LogitsFingerprint::of(model.config(), state.params(), model.device(), precision)?.hash() == saved)
}

/// Compares the logits of the restored model with the fingerprint in its snapshot, where it has one.
pub(super) fn check_fingerprint(
    snapshot: &SnapshotReader,
    (model, precision): (&Gpt2Model, ComputePrecision),
    state: &TrainingState,
    changed: ChangedSettings,
    events: &EventSender,
) -> Result<()> {
    let Some(saved) = &snapshot.manifest().metrics.probe else { return Ok(()) };
    if gives_logits(saved, (model, precision), state)? {
        events.log(MessageLevel::Info, "the model gives the same logits, bit for bit, as when the snapshot was taken");
        return Ok(());
    }
    if changed == ChangedSettings::Accept {
        events.log(MessageLevel::Warn, format!("going on although {OTHER_LOGITS}"));
        return Ok(());
    }
    let what = format!(
        "{OTHER_LOGITS}; the training would not go on to the same bits. To let it all the same, give --accept-changes"
    );
    Err(Error::mismatch(snapshot.path(), what))
}
