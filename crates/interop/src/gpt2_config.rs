//! A GPT-2's shape, read from transformers' config.json: every field that changes the arithmetic is honoured or
//! refused by name. One reading for `[model] from`, import, check and generate. Deliberately not here: the tensors
//! (`gpt2_reading`).

use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{Role, TensorMeta};
use serde::{Deserialize, Serialize};

use crate::footprint::ModelShape;
use crate::gpt2_names::{BlockParameter, Gpt2Parameter};
use crate::python_json;

/// The presets of [`Gpt2Config::preset`].
pub const PRESETS: [&str; 5] = ["gpt2-mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"];

const MODEL_TYPE: &str = "gpt2";
const ARCHITECTURES: [&str; 1] = ["GPT2LMHeadModel"];
const DTYPE: &str = "float32";

/// The fields of transformers' `GPT2Config` that decide what a GPT2LMHeadModel computes, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpt2Config {
    pub vocab_size: i64,
    pub n_positions: i64,
    pub n_embd: i64,
    pub n_layer: i64,
    pub n_head: i64,
    /// Width of the MLP; 4 n_embd where it is null.
    pub n_inner: Option<i64>,
    pub activation_function: Activation,
    pub resid_pdrop: f64,
    pub embd_pdrop: f64,
    pub attn_pdrop: f64,
    pub layer_norm_epsilon: f64,
    pub initializer_range: f64,
    pub scale_attn_weights: bool,
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Computes the attention's scores in float32 when the rest is narrower: in float32 it changes nothing.
    pub reorder_and_upcast_attn: bool,
    pub tie_word_embeddings: bool,
}

/// The activations for which libtorch has exactly the operation, by the names that transformers gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast", alias = "gelu_python_tanh")]
    GeluTanh,
    /// x Phi(x).
    #[serde(rename = "gelu", alias = "gelu_python")]
    Gelu,
    #[serde(rename = "relu")]
    Relu,
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    #[serde(rename = "tanh")]
    Tanh,
}

impl Default for Gpt2Config {
    fn default() -> Gpt2Config {
        Gpt2Config {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluTanh,
            resid_pdrop: 0.1,
            embd_pdrop: 0.1,
            attn_pdrop: 0.1,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
            tie_word_embeddings: true,
        }
    }
}

impl Gpt2Config {
    /// The shape of a published GPT-2, or `gpt2-mini`: 2.6 M parameters and a context of 256, which learns visibly
    /// within a minute on two cores.
    pub fn preset(name: &str) -> Result<Gpt2Config> {
        let sized = |n_embd, n_layer, n_head| Gpt2Config { n_embd, n_layer, n_head, ..Gpt2Config::default() };
        match name {
            "gpt2" => Ok(sized(768, 12, 12)),
            "gpt2-medium" => Ok(sized(1024, 24, 16)),
            "gpt2-large" => Ok(sized(1280, 36, 20)),
            "gpt2-xl" => Ok(sized(1600, 48, 25)),
            "gpt2-mini" => Ok(Gpt2Config {
                vocab_size: 4096,
                n_positions: 256,
                resid_pdrop: 0.0,
                embd_pdrop: 0.0,
                attn_pdrop: 0.0,
                ..sized(192, 4, 6)
            }),
            _ => {
                Err(Error::Config(format!("[model] preset: {name:?} is unknown; choose one of {}", PRESETS.join(", "))))
            }
        }
    }

    /// Reads the text of a config.json. `origin` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field: another model type, a shape that makes no sense, or something this
    /// worker cannot compute exactly (cross-attention, quantised weights, pruned heads, an unknown activation).
    pub fn from_json(text: &str, origin: &str) -> Result<Gpt2Config> {
        let wrong = |what: String| Error::Config(format!("{origin}: {what}"));
        let mut json: serde_json::Value =
            python_json::parse(text.as_bytes()).map_err(|e| wrong(format!("not JSON: {e}")))?;
        if let Some(what) = refused(&json) {
            return Err(wrong(what));
        }
        if let Some(fields) = json.as_object_mut() {
            merge_aliases(fields).map_err(wrong)?;
        }
        let config: Gpt2Config = serde_json::from_value(json.clone()).map_err(|e| wrong(name_the_field(&json, &e)))?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// A config.json that transformers reads as this model.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        json["model_type"] = MODEL_TYPE.into();
        json["architectures"] = serde_json::json!(ARCHITECTURES);
        json["dtype"] = DTYPE.into();
        format!("{json:#}\n")
    }

    /// Adds what of the model changes the arithmetic, and what config.json says of it besides.
    pub fn record(&self, settings: &mut TrainSettings) {
        // A field that comes later has to be given to `add_later` with the value that reproduces the model without it.
        let Gpt2Config {
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner,
            activation_function,
            resid_pdrop,
            embd_pdrop,
            attn_pdrop,
            layer_norm_epsilon,
            initializer_range,
            scale_attn_weights,
            scale_attn_by_inverse_layer_idx,
            reorder_and_upcast_attn,
            tie_word_embeddings,
        } = self;
        let mut section = settings.section("model");
        section.add("vocab_size", vocab_size);
        section.add("n_positions", n_positions);
        section.add("n_embd", n_embd);
        section.add("n_layer", n_layer);
        section.add("n_head", n_head);
        section.add("n_inner", n_inner);
        section.add("activation_function", activation_function);
        section.add("resid_pdrop", resid_pdrop);
        section.add("embd_pdrop", embd_pdrop);
        section.add("attn_pdrop", attn_pdrop);
        section.add("layer_norm_epsilon", layer_norm_epsilon);
        section.add("initializer_range", initializer_range);
        section.add("scale_attn_weights", scale_attn_weights);
        section.add("scale_attn_by_inverse_layer_idx", scale_attn_by_inverse_layer_idx);
        section.add("reorder_and_upcast_attn", reorder_and_upcast_attn);
        section.add("tie_word_embeddings", tie_word_embeddings);
        // Of the config.json that snapshots carry: constants, and part of every root so far.
        section.add("model_type", &MODEL_TYPE);
        section.add("architectures", &ARCHITECTURES);
        section.add("dtype", &DTYPE);
    }

    /// The same model with all three dropouts at `p`.
    pub fn with_dropout(self, p: f64) -> Gpt2Config {
        Gpt2Config { resid_pdrop: p, embd_pdrop: p, attn_pdrop: p, ..self }
    }

    pub fn inner(&self) -> i64 {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// What the scores of `layer` (from 0) are multiplied by before the softmax.
    pub fn attention_scale(&self, layer: usize) -> f64 {
        let scale = if self.scale_attn_weights { ((self.n_embd / self.n_head) as f64).powf(-0.5) } else { 1.0 };
        if self.scale_attn_by_inverse_layer_idx { scale / (layer as f64 + 1.0) } else { scale }
    }

    /// The parameters, named, shaped and ordered as in transformers' `state_dict`. A tied lm_head is not among them.
    pub fn parameters(&self) -> Vec<TensorMeta> {
        Gpt2Parameter::all(self.n_layer as u64, self.tie_word_embeddings)
            .map(|parameter| TensorMeta {
                role: Role::Param,
                name: parameter.to_string(),
                dtype: DType::F32,
                shape: self.shape(parameter),
            })
            .collect()
    }

    /// The shape of one of its parameters.
    pub fn shape(&self, parameter: Gpt2Parameter) -> Vec<u64> {
        use BlockParameter::*;
        let (width, inner) = (self.n_embd as u64, self.inner() as u64);
        let part = match parameter {
            Gpt2Parameter::TokenEmbedding | Gpt2Parameter::Head => return vec![self.vocab_size as u64, width],
            Gpt2Parameter::PositionEmbedding => return vec![self.n_positions as u64, width],
            Gpt2Parameter::FinalNormWeight | Gpt2Parameter::FinalNormBias => return vec![width],
            Gpt2Parameter::Block { part, .. } => part,
        };
        match part {
            Norm1Weight | Norm1Bias | Norm2Weight | Norm2Bias => vec![width],
            // Conv1D keeps its weight as [in, out].
            AttentionWeight => vec![width, 3 * width],
            AttentionBias => vec![3 * width],
            AttentionProjectionWeight => vec![width, width],
            InnerWeight => vec![width, inner],
            InnerBias => vec![inner],
            InnerProjectionWeight => vec![inner, width],
            AttentionProjectionBias | InnerProjectionBias => vec![width],
        }
    }

    /// How many parameters there are.
    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().filter_map(TensorMeta::elements).sum()
    }

    /// Its sizes, for an estimate of its memory.
    pub fn sizes(&self) -> ModelShape {
        // Checked sizes are positive.
        let size = |n: i64| n.unsigned_abs();
        ModelShape {
            layers: size(self.n_layer),
            heads: size(self.n_head),
            width: size(self.n_embd),
            inner: size(self.inner()),
            vocabulary: size(self.vocab_size),
            positions: size(self.n_positions),
            drops_attention: self.attn_pdrop > 0.0,
        }
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.inner()),
        ];
        for (field, value) in sizes {
            if !(1..=1 << 24).contains(&value) {
                return Err(format!("{field} is {value}; it must be from 1 to {}", 1 << 24));
            }
        }
        if self.n_embd % self.n_head != 0 {
            return Err(format!("n_embd ({}) is not a multiple of n_head ({})", self.n_embd, self.n_head));
        }
        let dropouts =
            [("resid_pdrop", self.resid_pdrop), ("embd_pdrop", self.embd_pdrop), ("attn_pdrop", self.attn_pdrop)];
        for (field, p) in dropouts {
            if !(0.0..1.0).contains(&p) {
                return Err(format!("{field} is {p}; it must be from 0 to below 1"));
            }
        }
        for (field, value) in
            [("layer_norm_epsilon", self.layer_norm_epsilon), ("initializer_range", self.initializer_range)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{field} is {value}; it must be positive"));
            }
        }
        Ok(())
    }
}

/// The other names under which transformers takes some fields.
const ALIASES: [(&str, &str); 4] = [
    ("max_position_embeddings", "n_positions"),
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
];

/// Gives each field its own name; one that is there under both names must say the same under both.
fn merge_aliases(fields: &mut serde_json::Map<String, serde_json::Value>) -> Result<(), String> {
    for (alias, name) in ALIASES {
        let Some(value) = fields.remove(alias) else { continue };
        match fields.get(name) {
            Some(other) if *other != value => {
                return Err(format!("{alias} is {value}, but {name}, which is the same, is {other}; remove one"));
            }
            _ => fields.insert(name.to_owned(), value),
        };
    }
    Ok(())
}

/// What in a config.json asks for another arithmetic than this model's, if anything.
fn refused(json: &serde_json::Value) -> Option<String> {
    let Some(fields) = json.as_object() else { return Some("not a JSON object".into()) };
    let set = |field: &str| fields.get(field).filter(|value| !is_empty(value));
    if let Some(model) = set("model_type").filter(|model| model.as_str() != Some("gpt2")) {
        return Some(format!("model_type is {model}; this worker trains \"gpt2\""));
    }
    ["add_cross_attention", "quantization_config", "pruned_heads", "is_encoder_decoder"]
        .iter()
        .find_map(|field| set(field).map(|value| format!("{field} is {value}, which this worker does not support")))
}

/// null, false, 0 and empty collections leave a feature off.
fn is_empty(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => true,
        serde_json::Value::Bool(on) => !on,
        serde_json::Value::Number(n) => n.as_f64() == Some(0.0),
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Array(list) => list.is_empty(),
        serde_json::Value::Object(fields) => fields.is_empty(),
    }
}

/// serde's message with the field that it is about: each is tried alone.
fn name_the_field(json: &serde_json::Value, error: &serde_json::Error) -> String {
    let alone = json.as_object().into_iter().flatten().find_map(|(field, value)| {
        let one = serde_json::json!({ field: value });
        serde_json::from_value::<Gpt2Config>(one).err().map(|error| format!("{field} is {value}: {error}"))
    });
    alone.unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_keys_are_those_of_config_json_as_the_first_release_had_them() {
        for name in PRESETS {
            let preset = Gpt2Config::preset(name).unwrap();
            assert_eq!(ModelShape::of_preset(name), Some(preset.sizes()), "{name}");
            assert_eq!(preset.sizes().parameters(), preset.parameter_count(), "{name}");
        }
        for shape in [Gpt2Config::preset("gpt2-mini").unwrap(), Gpt2Config::default().with_dropout(0.25)] {
            let mut settings = TrainSettings::default();
            shape.record(&mut settings);
            let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&shape.to_json()).unwrap();
            let expected: TrainSettings =
                json.iter().map(|(key, value)| (format!("model.{key}"), value.to_string())).collect();
            assert_eq!(settings, expected);
            assert_eq!(settings.iter().count(), 19);
        }
    }

    #[test]
    fn a_field_may_have_either_of_its_names_or_both_if_they_agree() {
        let read =
            |json: &str| Gpt2Config::from_json(json, "config.json").map(|config| (config.n_embd, config.n_layer));
        assert_eq!(read(r#"{"hidden_size": 48, "num_hidden_layers": 3}"#).unwrap(), (48, 3));
        assert_eq!(read(r#"{"hidden_size": 48, "n_embd": 48, "n_layer": 3}"#).unwrap(), (48, 3));
        let refusal = read(r#"{"hidden_size": 48, "n_embd": 60}"#).unwrap_err().to_string();
        assert!(refusal.contains("hidden_size is 48") && refusal.contains("n_embd"), "{refusal}");
    }
}
