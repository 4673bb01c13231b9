//! What a training runs on: device, threads, and the arithmetic that this worker computes.
//!
//! Invariant: a resume keeps the threads and the arithmetic of its snapshot, or says that it does not.
//! Deliberately not here: settings that a job file names (`restore` compares them).

use ckptd_core::arithmetic::ArithmeticNumber;
use ckptd_core::config::{ComputePrecision, Config};
use ckptd_core::os::process::processors;
use ckptd_core::protocol::MessageLevel;
use ckptd_core::store::SnapshotReader;
use ckptd_core::{Error, Result};
use tch::Device;

use super::restore::ChangedSettings;
use crate::events::EventSender;
use crate::gpt2::Bf16Products;
use crate::ranks::processor_flags;
use crate::reduction::ARITHMETIC;
use crate::{process, torch};

const NO_INSTRUCTIONS: &str = "none";

/// Where and how a training is computed.
pub(super) struct TrainingMachine {
    pub device: Device,
    /// Threads of one operation, at least 1.
    pub threads: usize,
    pub arithmetic: ArithmeticNumber,
    /// The instructions for products in bf16, where the training has such products on the processor.
    pub bf16: Option<String>,
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
        let arithmetic = choose_arithmetic(snapshot, changed, events)?;
        let recorded = snapshot.and_then(|snapshot| snapshot.manifest().train.settings.threads());
        let threads = choose_threads(config.job.threads, recorded, changed, events);
        TrainingMachine::of(config, threads, arithmetic, events)
    }

    /// That of another rank than 0, which has settled device, threads and arithmetic.
    ///
    /// # Errors
    /// [`Error::Config`] for a device that is not there, or an arithmetic that is not known.
    pub(super) fn as_on_rank_zero(config: &Config, arithmetic: ArithmeticNumber) -> Result<TrainingMachine> {
        let known = ARITHMETIC.going_on(arithmetic);
        let arithmetic = known.map_err(|unknown| Error::Config(format!("rank 0's training {unknown}")))?;
        TrainingMachine::of(config, config.job.threads, arithmetic, &EventSender::unheard())
    }

    fn of(
        config: &Config,
        threads: usize,
        arithmetic: ArithmeticNumber,
        events: &EventSender,
    ) -> Result<TrainingMachine> {
        let device = torch::open_device(&config.job.device)?;
        let threads = process::set_threads(threads)?;
        let has_products = config.train.precision == ComputePrecision::Bf16 && device == Device::Cpu;
        let bf16 = has_products.then(|| bf16_instructions(&processor_flags()));
        if bf16.as_deref().is_some_and(|instructions| instructions.starts_with(NO_INSTRUCTIONS)) {
            let what =
                "this processor has no bf16 instructions: [train] precision = \"bf16\" is slower here than float32";
            events.log(MessageLevel::Warn, what);
        }
        Ok(TrainingMachine { device, threads, arithmetic, bf16 })
    }
}

/// Those that libtorch's library for products (oneDNN) chooses by, from the processor's flags, and what bounds its
/// choice.
fn bf16_instructions(flags: &str) -> String {
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    let known = [("amx_bf16", "amx"), ("avx512_bf16", "avx512_bf16"), ("bf16", "arm_bf16")];
    let mut path = known.iter().find(|(flag, _)| has(flag)).map_or(NO_INSTRUCTIONS, |(_, name)| name).to_owned();
    if Bf16Products::on(Device::Cpu) == Bf16Products::Widened {
        path.push_str(", float32");
    } else if path == NO_INSTRUCTIONS && has("avx512bw") {
        // Emulated.
        path.push_str(", avx512");
    }
    for name in ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"] {
        if let Ok(bound) = std::env::var(name) {
            path.push_str(&format!(", {name}={bound}"));
        }
    }
    path
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
    snapshot: Option<&SnapshotReader>,
    changed: ChangedSettings,
    events: &EventSender,
) -> Result<ArithmeticNumber> {
    let new = ARITHMETIC.newest;
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
