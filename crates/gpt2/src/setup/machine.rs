//! What a training runs on: device, threads, and the arithmetic that this worker computes.
//!
//! Invariant: a resume keeps the threads and the arithmetic of its snapshot, or says that it does not.
//! Deliberately not here: settings that a job file names (`restore` compares them).

use ckptd_core::arithmetic::ArithmeticNumber;
use ckptd_core::config::Config;
use ckptd_core::os::process::processors;
use ckptd_core::protocol::MessageLevel;
use ckptd_core::store::SnapshotReader;
use ckptd_core::{Error, Result};
use tch::Device;

use super::restore::ChangedSettings;
use crate::events::EventSender;
use crate::reduction::{ARITHMETIC, begins_with};
use crate::{process, torch};

/// Where and how a training is computed.
pub(super) struct TrainingMachine {
    pub device: Device,
    /// Threads of one operation, at least 1.
    pub threads: usize,
    pub arithmetic: ArithmeticNumber,
}

impl TrainingMachine {
    /// Chooses for `config` and the snapshot to go on from, and sets libtorch's threads.
    ///
    /// # Errors
    /// [`Error::Config`] for a device that is not there, [`Error::Mismatch`] for an arithmetic that is not known.
    pub(super) fn choose(
        config: &Config,
        snapshot: Option<&SnapshotReader>,
        changed: ChangedSettings,
        events: &EventSender,
    ) -> Result<TrainingMachine> {
        let arithmetic = choose_arithmetic(config, snapshot, changed, events)?;
        let device = torch::open_device(&config.job.device)?;
        let recorded = snapshot.and_then(|snapshot| snapshot.manifest().train.settings.threads());
        let threads = process::set_threads(choose_threads(config.job.threads, recorded, changed, events))?;
        Ok(TrainingMachine { device, threads, arithmetic })
    }
}

/// 0 (automatic) takes a resume's own number, so that it stays exact on a machine of another size.
fn choose_threads(asked: usize, recorded: Option<usize>, changed: ChangedSettings, events: &EventSender) -> usize {
    let here = processors();
    match recorded {
        Some(recorded) if asked == 0 && changed == ChangedSettings::Refuse => {
            if recorded != here {
                events.log(
                    MessageLevel::Info,
                    format!(
                        "going on with {recorded} threads as before, so that the result stays exact; \
                         this machine has {here} processors ([job] threads = {here} with --accept-changes uses them)"
                    ),
                );
            }
            recorded
        }
        _ => asked,
    }
}

/// The snapshot's own arithmetic; that of a training that begins, where there is none or changes are accepted.
fn choose_arithmetic(
    config: &Config,
    snapshot: Option<&SnapshotReader>,
    changed: ChangedSettings,
    events: &EventSender,
) -> Result<ArithmeticNumber> {
    let new = begins_with(config.train.grad_accumulation);
    // A state imported from other programs was computed under none of ours.
    let Some(snapshot) = snapshot.filter(|snapshot| !snapshot.manifest().train.settings.is_empty()) else {
        return Ok(new);
    };
    let recorded = snapshot.manifest().train.arithmetic;
    match (ARITHMETIC.going_on(recorded), changed) {
        (Ok(number), ChangedSettings::Refuse) => Ok(number),
        (Ok(number), ChangedSettings::Accept) => {
            if number != new {
                let what = format!("going on with arithmetic {new}, and no more with the snapshot's, {number}");
                events.log(MessageLevel::Warn, what);
            }
            Ok(new)
        }
        (Err(unknown), ChangedSettings::Refuse) => {
            let what =
                format!("{unknown}; use the release that took it, or go on to another result with --accept-changes");
            Err(Error::mismatch(snapshot.path(), what))
        }
        (Err(unknown), ChangedSettings::Accept) => {
            events.log(MessageLevel::Warn, format!("going on with arithmetic {new}: the snapshot {unknown}"));
            Ok(new)
        }
    }
}
