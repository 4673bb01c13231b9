//! Which optimiser a state is of, by what its groups and entries say.
//!
//! Invariant: only a state whose every mark is that of an optimiser that ckptd has is taken; any other is named. What
//! the marks leave open is asked for. Deliberately not here: the state's tensors.

use super::optimizer_state::{SourceOptimizer, StateValue};
use super::options::FreshOptimizer;
use crate::plain::PlainValue;
use ckptd_core::config::OptimizerKind;

/// What else says which optimiser it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KindHints<'a> {
    /// The user.
    pub asked: Option<FreshOptimizer>,
    /// `optim` of the source's TrainingArguments.
    pub argument: Option<&'a str>,
}

/// An option of a group or an entry of the state that no optimiser of ours has, and whose it is.
const MARKS: [(&str, &str); 33] = [
    ("__bnb_optimizer_quant_state__", "an optimiser of bitsandbytes"),
    ("state1", "an optimiser of bitsandbytes"),
    ("weight_lr_power", "a schedule-free optimiser"),
    ("train_mode", "a schedule-free optimiser"),
    ("momentum_decay", "NAdam"),
    ("mu_product", "NAdam"),
    ("exp_inf", "Adamax"),
    ("exp_avg_sq_row", "Adafactor"),
    ("scale_parameter", "Adafactor"),
    ("beta2_decay", "Adafactor"),
    ("row_var", "Adafactor"),
    ("ns_steps", "Muon"),
    ("ns_coefficients", "Muon"),
    ("square_avg", "RMSprop"),
    ("centered", "RMSprop"),
    ("lr_decay", "Adagrad"),
    ("sum", "Adagrad"),
    ("etas", "Rprop"),
    ("lambd", "ASGD"),
    ("acc_delta", "Adadelta"),
    ("rho", "Adadelta or Sophia"),
    ("hessian", "Sophia"),
    ("correct_bias", "the AdamW that transformers had before version 5"),
    ("bias_correction", "FusedAdam of apex or DeepSpeed"),
    ("d_coef", "Prodigy"),
    ("history_size", "LBFGS"),
    ("max_exp_avg_sq", "AMSGrad"),
    ("exp_avg_diff", "Adan"),
    ("grad_averaging", "LAMB or NovoGrad"),
    ("trust_clip", "LAMB or LARS"),
    ("trust_coefficient", "LARS"),
    ("precondition_frequency", "SOAP"),
    ("preconditioner", "Shampoo"),
];

/// The optimiser of `state`.
///
/// # Errors
/// A clause that names it, or asks which one it is.
pub(super) fn kind(state: &SourceOptimizer, hints: KindHints<'_>) -> Result<OptimizerKind, String> {
    if let Some(name) = marked(state) {
        return Err(not_ours(name));
    }
    let has = |key: &str| state.groups.iter().all(|group| group.option(key).is_some());
    let kind = if has("betas") {
        adam(state, hints)?;
        OptimizerKind::Adamw
    } else if has("momentum") && has("dampening") {
        sgd(state)?;
        OptimizerKind::Sgd
    } else {
        let first = state.groups.first();
        let keys = first.map(|group| group.options.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", "));
        return Err(not_ours(&format!("an optimiser whose groups have {}", keys.unwrap_or_default())));
    };
    check_entries(state, kind)?;
    let asked =
        hints.asked.map(|asked| if asked == FreshOptimizer::AdamW { OptimizerKind::Adamw } else { OptimizerKind::Sgd });
    match asked {
        Some(asked) if asked != kind => Err(format!("it is of {}, and --optimizer says another one", name(kind))),
        _ => Ok(kind),
    }
}

fn name(kind: OptimizerKind) -> &'static str {
    match kind {
        OptimizerKind::Adamw => "AdamW",
        OptimizerKind::Sgd => "SGD",
    }
}

fn not_ours(name: &str) -> String {
    format!("it is {name}, which ckptd does not have; it has AdamW, and SGD with plain momentum")
}

fn marked(state: &SourceOptimizer) -> Option<&'static str> {
    let is_marked = |key: &str| {
        let in_group = state.groups.iter().any(|group| group.option(key).is_some());
        in_group || state.entries.iter().any(|(_, entry)| entry.iter().any(|(name, _)| name == key))
    };
    MARKS.iter().find(|(key, _)| is_marked(key)).map(|(_, name)| *name)
}

/// Whether an option is set in some group.
fn is_set(state: &SourceOptimizer, key: &str) -> bool {
    let set = |value: &PlainValue| match value {
        PlainValue::Bool(truth) => *truth,
        value => value.as_float().is_some_and(|number| number != 0.0),
    };
    state.groups.iter().any(|group| group.option(key).is_some_and(set))
}

fn adam(state: &SourceOptimizer, hints: KindHints<'_>) -> Result<(), String> {
    let has = |key: &str| state.groups.iter().all(|group| group.option(key).is_some());
    if !has("eps") {
        return Err(not_ours("Lion (its groups have betas and no eps)"));
    }
    if is_set(state, "amsgrad") {
        return Err(not_ours("AMSGrad (amsgrad is True)"));
    }
    if is_set(state, "maximize") {
        return Err(not_ours("AdamW that maximizes (maximize is True)"));
    }
    if !has("amsgrad") {
        return Err(not_ours("RAdam (its groups have betas and eps, and no amsgrad)"));
    }
    if !is_set(state, "weight_decay") {
        // Without decay Adam and AdamW are the same.
        return Ok(());
    }
    let decoupled = |group: &super::optimizer_state::SourceGroup| {
        group.option("decoupled_weight_decay").and_then(PlainValue::as_bool)
    };
    if state.groups.iter().any(|group| decoupled(group) == Some(false)) {
        return Err(not_ours("Adam with L2 weight decay (decoupled_weight_decay is False)"));
    }
    let by_argument = hints.argument.is_some_and(|name| name.starts_with("adamw_torch"));
    if has("decoupled_weight_decay") || by_argument || hints.asked == Some(FreshOptimizer::AdamW) {
        return Ok(());
    }
    Err("it is AdamW, or Adam with L2 weight decay: PyTorch without decoupled_weight_decay writes both \
         alike. Where it is AdamW, say so with --optimizer adamw"
        .into())
}

fn sgd(state: &SourceOptimizer) -> Result<(), String> {
    for (key, name) in [
        ("nesterov", "SGD with Nesterov's momentum (nesterov is True)"),
        ("dampening", "SGD with dampening"),
        ("maximize", "SGD that maximizes (maximize is True)"),
    ] {
        if is_set(state, key) {
            return Err(not_ours(name));
        }
    }
    Ok(())
}

/// The entries have what the optimiser keeps, as plain tensors.
fn check_entries(state: &SourceOptimizer, kind: OptimizerKind) -> Result<(), String> {
    let kept: &[&str] = match kind {
        OptimizerKind::Adamw => &["step", "exp_avg", "exp_avg_sq"],
        OptimizerKind::Sgd => &["momentum_buffer"],
    };
    for (key, entry) in &state.entries {
        for (field, value) in entry {
            if !kept.contains(&field.as_str()) {
                return Err(format!("{key}: {field:?} is nothing that {} keeps", name(kind)));
            }
            if let StateValue::Other(class) = value {
                return Err(not_ours(&format!("an optimiser that keeps its {field} as {class}")));
            }
        }
    }
    Ok(())
}
