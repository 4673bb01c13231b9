//! From an optimiser's state as a source has it to the moments of the model's parameters, the step, and the record of
//! its groups.

use std::collections::HashMap;

use super::optimizer_kind::{self, KindHints};
use super::optimizer_order::{self, OptimizedParameter};
use super::optimizer_state::{ParameterKey, Scalar, SourceOptimizer, StateEntry, StateValue, scalar};
use crate::gpt2_reading::transposed;
use crate::plain::PlainValue;
use crate::source_record::{GroupRecord, OptimizerRecord};
use ckptd_core::config::OptimizerKind;
use ckptd_core::dtype::{self, DType};
use ckptd_core::snapshot::{Role, Tensor, TensorMeta};

/// What an optimiser has kept.
#[derive(Debug, Default)]
pub(super) struct OptimizerMoments {
    /// Under their parameters' names, in the layout of the snapshot.
    pub tensors: Vec<Tensor>,
    /// Steps that the optimiser has made, where it counts them.
    pub step: Option<StepCount>,
    /// Which one it is, and its groups.
    pub record: Option<OptimizerRecord>,
}

/// A count of steps as an optimiser keeps it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StepCount {
    pub steps: u64,
    /// Where its type ends to count in ones: 2^24 for float32, 256 for bfloat16.
    pub counts_to: u64,
}

impl StepCount {
    /// Whether it is `steps`, as far as it can say.
    pub(super) fn is(self, steps: u64) -> bool {
        self.steps == steps || steps > self.counts_to && self.steps >= self.counts_to
    }
}

/// Reads `state` for `params`, which are in the model's order.
///
/// # Errors
/// A clause that names the optimiser, the parameter and what does not fit.
pub(super) fn read(
    state: &SourceOptimizer,
    params: &[OptimizedParameter],
    hints: KindHints<'_>,
) -> Result<OptimizerMoments, String> {
    let kind = optimizer_kind::kind(state, hints)?;
    let assigned = optimizer_order::assign(state, params)?;
    let groups = state.groups.iter().zip(&assigned).map(|(group, places)| GroupRecord {
        parameters: places.iter().map(|&place| params[place].meta.name.clone()).collect(),
        options: PlainValue::Dict(
            group.options.iter().map(|(key, value)| (PlainValue::Text(key.clone()), value.clone())).collect(),
        ),
    });
    let record = Some(OptimizerRecord { kind, groups: groups.collect() });
    let mut moments = OptimizerMoments { record, ..OptimizerMoments::default() };
    let mut entries: HashMap<&ParameterKey, &StateEntry> = HashMap::new();
    for (key, entry) in &state.entries {
        if entries.insert(key, entry).is_some() {
            return Err(format!("{key} occurs twice"));
        }
    }
    let is_stateless = state.entries.iter().all(|(_, entry)| entry.iter().all(|(_, value)| is_none(value)));
    let has_momentum =
        |key: &str| state.groups.iter().any(|g| g.option(key).and_then(PlainValue::as_float) != Some(0.0));
    if is_stateless {
        if kind == OptimizerKind::Sgd && has_momentum("momentum") {
            moments.tensors = params.iter().map(|param| zeros(Role::MomentumBuffer, &param.meta)).collect();
        }
        return Ok(moments);
    }
    let keys = state.groups.iter().flat_map(|group| &group.params);
    for (key, &place) in keys.zip(assigned.iter().flatten()) {
        let (param, name) = (&params[place], &params[place].meta.name);
        let entry = entries.remove(key).ok_or_else(|| {
            format!("nothing for {key}, which is {name}: it had no gradient so far, and ckptd trains all parameters")
        })?;
        moments.add(param, entry).map_err(|what| format!("{key}, which is {name}: {what}"))?;
    }
    match entries.keys().next() {
        Some(key) => Err(format!("{key} is in no group")),
        None => Ok(moments),
    }
}

fn is_none(value: &StateValue) -> bool {
    matches!(value, StateValue::Plain(PlainValue::None))
}

impl OptimizerMoments {
    fn add(&mut self, param: &OptimizedParameter, entry: &StateEntry) -> Result<(), String> {
        for (key, value) in entry {
            let role = match key.as_str() {
                "exp_avg" => Role::ExpAvg,
                "exp_avg_sq" => Role::ExpAvgSq,
                "momentum_buffer" => Role::MomentumBuffer,
                "step" => {
                    let step = step(value)?;
                    if *self.step.get_or_insert(step) != step {
                        return Err("another number of steps than the parameters before it".into());
                    }
                    continue;
                }
                _ => return Err(format!("{key:?} is nothing that AdamW or SGD keeps")),
            };
            let tensor = match value {
                StateValue::Tensor(tensor) => self::tensor(role, param, tensor)?,
                // SGD before its first step with momentum.
                StateValue::Plain(PlainValue::None) => zeros(role, &param.meta),
                StateValue::Plain(_) => return Err(format!("its {key} is no tensor")),
                StateValue::Other(kind) => return Err(format!("its {key} is {kind}")),
            };
            self.tensors.push(tensor);
        }
        Ok(())
    }
}

fn tensor(role: Role, param: &OptimizedParameter, tensor: &Tensor) -> Result<Tensor, String> {
    if tensor.meta.shape != param.source_shape {
        return Err(format!(
            "its {role} has the shape {:?}, the parameter {:?}",
            tensor.meta.shape, param.source_shape
        ));
    }
    let tensor = if param.is_turned { transposed(tensor) } else { tensor.clone() };
    let meta = TensorMeta { role, name: param.meta.name.clone(), ..tensor.meta };
    widen(Tensor { meta, bytes: tensor.bytes })
}

/// A tensor as float32, exactly.
pub(super) fn widen(tensor: Tensor) -> Result<Tensor, String> {
    let dtype = tensor.meta.dtype;
    match dtype {
        DType::F32 => Ok(tensor),
        DType::F16 | DType::BF16 => {
            let bytes = dtype::convert((*tensor.bytes).as_ref(), dtype, DType::F32).unwrap_or_default();
            Ok(Tensor::new(TensorMeta { dtype: DType::F32, ..tensor.meta }, bytes))
        }
        _ => Err(format!(
            "{} is {dtype}; a training state is float32, and only narrower floats become that exactly",
            tensor.meta.label()
        )),
    }
}

pub(super) fn zeros(role: Role, param: &TensorMeta) -> Tensor {
    let bytes = param.elements().unwrap_or(0) as usize * DType::F32.size();
    Tensor::new(TensorMeta { role, dtype: DType::F32, ..param.clone() }, vec![0; bytes])
}

/// AdamW's counter: a number, or a tensor of one.
fn step(value: &StateValue) -> Result<StepCount, String> {
    /// The largest whole number up to which doubles have all.
    const MOST: f64 = (1u64 << 53) as f64;
    let (number, counts_to) = match value {
        StateValue::Tensor(tensor) => match scalar(tensor) {
            Some(Scalar::Int(number)) => (number as f64, u64::MAX),
            Some(Scalar::Float(number, DType::F32)) => (number, 1 << 24),
            Some(Scalar::Float(number, DType::F16)) => (number, 1 << 11),
            Some(Scalar::Float(number, DType::BF16)) => (number, 1 << 8),
            Some(Scalar::Float(number, _)) => (number, u64::MAX),
            None => return Err(format!("its step is a tensor of {} {:?}", tensor.meta.dtype, tensor.meta.shape)),
        },
        StateValue::Plain(value) => (value.as_float().ok_or("its step is no number")?, u64::MAX),
        StateValue::Other(kind) => return Err(format!("its step is {kind}")),
    };
    if number >= 0.0 && number.fract() == 0.0 && number < MOST {
        Ok(StepCount { steps: number as u64, counts_to })
    } else {
        Err(format!("its step is {number}"))
    }
}
