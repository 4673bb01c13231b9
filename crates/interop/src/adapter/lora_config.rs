//! adapter_config.json: the LoRA that it describes, as far as a merge depends on it.
//!
//! Invariant: a field that changes what a merge comes to, and is not understood, is refused by its name. Fields of
//! later versions of PEFT pass where they say nothing: null, false, empty.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::ordered_map::OrderedMap;
use crate::mapped::read_small;
use crate::{names, python_json};
use ckptd_core::error::{Error, Result};

const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Fields that no merge depends on, whatever they say. `fan_in_fan_out` is among them: PEFT goes by the kind of layer.
const NEUTRAL: [&str; 11] = [
    "auto_mapping",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "base_model_name_or_path",
];

/// Fields that are read below.
const READ: [&str; 16] = [
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
    "loftq_config",
];

/// Ways to begin a LoRA that leave the base model as it is; the others (PiSSA, OLoRA, ...) change it.
const PLAIN_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What an adapter says of itself.
#[derive(Debug)]
pub struct LoraConfig {
    pub(super) rank: u64,
    alpha: f64,
    rank_pattern: Vec<(Regex, u64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    is_rank_stabilised: bool,
    pub(super) has_up_bias: bool,
    pub(super) bias: BiasRule,
    pub(super) targets: TargetRule,
    pub(super) modules_to_save: Vec<String>,
    /// Modules that match the targets may be left out, by layer or by name.
    pub(super) is_partial: bool,
    pub(super) keeps_ties: bool,
}

/// Which biases of the base model were trained.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum BiasRule {
    None,
    All,
    LoraOnly,
}

/// The modules that have a LoRA.
#[derive(Debug)]
pub(super) enum TargetRule {
    /// Those that end with one of these.
    Ends(Vec<String>),
    /// Those that match all of this.
    Pattern(Regex),
    /// All linear layers but the head.
    AllLinear,
}

#[derive(Deserialize)]
struct RawConfig {
    r: u64,
    lora_alpha: f64,
    #[serde(default)]
    rank_pattern: Option<OrderedMap<u64>>,
    #[serde(default)]
    alpha_pattern: Option<OrderedMap<f64>>,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    lora_bias: Option<bool>,
    #[serde(default)]
    bias: Option<BiasRule>,
    target_modules: RawTargets,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    ensure_weight_tying: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTargets {
    Text(String),
    List(Vec<String>),
}

impl LoraConfig {
    /// Reads the one in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Malformed`] that names the field.
    pub fn read(dir: &Path) -> Result<LoraConfig> {
        let path = dir.join(names::ADAPTER_CONFIG);
        let bytes = read_small(&path, MAX_CONFIG_BYTES)?;
        parse(&bytes).map_err(|what| Error::malformed(path, what))
    }

    /// The rank of the LoRA of `module`.
    pub(super) fn rank_of(&self, module: &str) -> u64 {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// What the product of its two matrices is multiplied by.
    pub(super) fn scale_of(&self, module: &str) -> f64 {
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = self.rank_of(module) as f64;
        alpha / if self.is_rank_stabilised { rank.sqrt() } else { rank }
    }

    /// Whether `module` is one of `modules_to_save`.
    pub(super) fn saves(&self, module: &str) -> bool {
        self.modules_to_save.iter().any(|name| ends_with(module, name))
    }
}

/// The base model that the adapter in `dir` names, where it names one.
pub fn base_model(dir: &Path) -> Result<Option<PathBuf>> {
    let path = dir.join(names::ADAPTER_CONFIG);
    let config: Map<String, Value> = python_json::parse(&read_small(&path, MAX_CONFIG_BYTES)?)
        .map_err(|e| Error::malformed(&path, format!("not a JSON object: {e}")))?;
    let base = config.get("base_model_name_or_path").and_then(Value::as_str);
    Ok(base.filter(|base| !base.is_empty()).map(PathBuf::from))
}

impl TargetRule {
    /// Whether `module` is one of them, apart from rules that leave out some.
    pub(super) fn has(&self, module: &str) -> bool {
        match self {
            TargetRule::Ends(ends) => ends.iter().any(|end| ends_with(module, end)),
            TargetRule::Pattern(pattern) => pattern.is_match(module),
            TargetRule::AllLinear => module.contains(".attn.") || module.contains(".mlp."),
        }
    }
}

/// `module` is called `name`, or ends with it after a point.
pub(super) fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn first_match<V: Copy>(patterns: &[(Regex, V)], module: &str) -> Option<V> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

fn parse(bytes: &[u8]) -> Result<LoraConfig, String> {
    let fields: Map<String, Value> = python_json::parse(bytes).map_err(|e| format!("not a JSON object: {e}"))?;
    check_fields(&fields)?;
    let raw: RawConfig = python_json::parse(bytes).map_err(|e| format!("not the config of a LoRA: {e}"))?;
    if raw.r == 0 {
        return Err("r: it is 0; a LoRA has a rank of 1 or more".into());
    }
    let targets = match raw.target_modules {
        RawTargets::Text(text) if text == "all-linear" => TargetRule::AllLinear,
        RawTargets::Text(text) => TargetRule::Pattern(whole("target_modules", "", &text)?),
        RawTargets::List(list) => TargetRule::Ends(list),
    };
    let says = |key: &str| fields.get(key).is_some_and(|value| !is_empty(value));
    Ok(LoraConfig {
        rank: raw.r,
        alpha: raw.lora_alpha,
        rank_pattern: patterns("rank_pattern", raw.rank_pattern)?,
        alpha_pattern: patterns("alpha_pattern", raw.alpha_pattern)?,
        is_rank_stabilised: raw.use_rslora.unwrap_or(false),
        has_up_bias: raw.lora_bias.unwrap_or(false),
        bias: raw.bias.unwrap_or(BiasRule::None),
        targets,
        modules_to_save: raw.modules_to_save.unwrap_or_default(),
        is_partial: ["exclude_modules", "layers_to_transform"].iter().any(|key| says(key)),
        keeps_ties: raw.ensure_weight_tying.unwrap_or(false),
    })
}

fn check_fields(fields: &Map<String, Value>) -> Result<(), String> {
    match fields.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return Err(format!("peft_type: it is {}; LORA is what is merged", other.unwrap_or("not there"))),
    }
    match fields.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(Value::String(name)) if PLAIN_BEGINNINGS.contains(&name.as_str()) => {}
        Some(other) => {
            return Err(format!(
                "init_lora_weights: {other} has changed the base model too, which is not known here; save the adapter \
                 with path_initial_model_for_weight_conversion"
            ));
        }
    }
    // What LoftQ was asked for; it is at work with its own init_lora_weights only.
    let known = |name: &str| NEUTRAL.contains(&name) || READ.contains(&name) || name == "eva_config";
    match fields.iter().find(|(name, value)| !known(name) && !is_empty(value)) {
        None => Ok(()),
        Some((name, _)) if name == "use_dora" => {
            Err("use_dora: DoRA scales the columns of what it merges, which is not done here".into())
        }
        Some((name, value)) => {
            let value = value.to_string();
            let shown: String = value.chars().take(60).collect();
            Err(format!("{name}: it is {shown}, and what that does to a merge is not known here"))
        }
    }
}

/// Whether a field says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Patterns of modules: each matches a name, or its end after a point.
fn patterns<V>(field: &str, map: Option<OrderedMap<V>>) -> Result<Vec<(Regex, V)>, String> {
    let compiled =
        map.unwrap_or_default().0.into_iter().map(|(text, value)| Ok((whole(field, r"(?:.*\.)?", &text)?, value)));
    compiled.collect()
}

/// `text` as a pattern of a whole name, after `before`.
fn whole(field: &str, before: &str, text: &str) -> Result<Regex, String> {
    Regex::new(&format!("^{before}(?:{text})$")).map_err(|_| {
        format!("{field}: {text:?} is no pattern that is understood here; PEFT saves a list of names, too")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(more: &str) -> Result<LoraConfig, String> {
        let head = r#""peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["c_attn"]"#;
        parse(format!("{{{head}{more}}}").as_bytes())
    }

    #[test]
    fn ranks_and_scales_are_those_of_the_first_pattern_that_matches() {
        let more =
            r#", "rank_pattern": {"h.1.attn.c_attn": 2, "c_attn": 8}, "alpha_pattern": {"^transformer\\.h\\.0.*": 32}"#;
        let lora = config(more).unwrap();
        let (first, second) = ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn");
        assert_eq!((lora.rank_of(first), lora.scale_of(first)), (8, 32.0 / 8.0));
        assert_eq!((lora.rank_of(second), lora.scale_of(second)), (2, 16.0 / 2.0));
        assert_eq!(lora.scale_of("transformer.h.1.mlp.c_fc"), 4.0);
        assert_eq!(config(r#", "use_rslora": true"#).unwrap().scale_of("x"), 16.0 / 2.0);
    }

    #[test]
    fn a_field_that_is_not_understood_is_refused_by_its_name_and_an_empty_one_passes() {
        for (more, name) in [
            (r#", "use_dora": true"#, "use_dora"),
            (r#", "layer_replication": [[0, 1]]"#, "layer_replication"),
            (r#", "use_something_new": {"a": 1}"#, "use_something_new"),
            (r#", "init_lora_weights": "pissa""#, "init_lora_weights"),
            (r#", "rank_pattern": {"(?=x)": 1}"#, "rank_pattern"),
        ] {
            assert!(config(more).unwrap_err().starts_with(name), "{more}");
        }
        assert!(config(r#", "use_dora": false, "something_new": null, "init_lora_weights": "gaussian""#).is_ok());
        assert!(parse(br#"{"peft_type": "IA3"}"#).unwrap_err().contains("IA3"));
    }

    #[test]
    fn targets_are_names_or_a_pattern() {
        assert!(ends_with("transformer.h.0.attn.c_proj", "attn.c_proj"));
        assert!(!ends_with("transformer.h.0.attn.c_proj", "proj"));
        let lora = config("").unwrap();
        assert!(lora.targets.has("transformer.h.0.attn.c_attn") && !lora.targets.has("transformer.h.0.mlp.c_fc"));
        let text = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ".*\\.h\\.1\\..*c_fc"}"#;
        let lora = parse(text).unwrap();
        assert!(lora.targets.has("transformer.h.1.mlp.c_fc") && !lora.targets.has("transformer.h.0.mlp.c_fc"));
    }
}
