//! A snapshot's GPT-2 for formats that describe the model in their own way: sizes from the tensors, the rest from its
//! config.json.

use serde_json::{Map, Value};

use super::source::ExportSource;
use crate::gpt2_names::{BlockParameter, Gpt2Parameter};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::TensorMeta;

/// What the formats ask for.
pub(super) struct ExportShape {
    pub layers: u64,
    pub heads: u64,
    pub width: u64,
    pub positions: u64,
    pub vocabulary: u64,
    pub inner: u64,
    pub epsilon: f64,
    pub dropout: f64,
    pub config: Map<String, Value>,
}

impl ExportShape {
    /// Of the snapshot, for the format `format`, which has one kind of GPT-2 only.
    ///
    /// # Errors
    /// [`Error::Mismatch`] that names what the format cannot say.
    pub(super) fn of(source: &ExportSource, format: &str) -> Result<ExportShape> {
        let refuse = |what: String| Error::mismatch(source.path(), what);
        let text = source.config_json()?.ok_or_else(|| {
            refuse(format!("it carries no config.json, which says how {format} is to describe it; export it as pt"))
        })?;
        let config: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| refuse(format!("the config.json that it carries is no JSON object: {e}")))?;
        let found = |parameter: Gpt2Parameter| {
            let name = parameter.to_string();
            source.model().into_iter().find(|meta| meta.name == name).map(|meta| meta.shape.clone())
        };
        let size = |parameter: Gpt2Parameter, dimension: usize| {
            let size = found(parameter).and_then(|shape| shape.get(dimension).copied());
            size.ok_or_else(|| {
                refuse(format!("it has no {parameter}, so {format} cannot describe it; export it as pt"))
            })
        };
        let number = |names: [&str; 2], or: f64| {
            names.iter().find_map(|name| config.get(*name).and_then(Value::as_f64)).unwrap_or(or)
        };
        let first = |part| Gpt2Parameter::Block { layer: 0, part };
        let shape = ExportShape {
            layers: layers(&source.model()),
            heads: number(["n_head", "num_attention_heads"], 12.0) as u64,
            width: size(Gpt2Parameter::TokenEmbedding, 1)?,
            positions: size(Gpt2Parameter::PositionEmbedding, 0)?,
            vocabulary: size(Gpt2Parameter::TokenEmbedding, 0)?,
            inner: size(first(BlockParameter::InnerWeight), 1)?,
            epsilon: number(["layer_norm_epsilon", "layer_norm_eps"], 1e-5),
            dropout: number(["resid_pdrop", "resid_pdrop"], 0.1),
            config,
        };
        shape
            .check()
            .map(|()| shape)
            .map_err(|what| refuse(format!("{what}, which {format} cannot say; export it as hf")))
    }

    /// What others take for granted of a GPT-2.
    fn check(&self) -> Result<(), String> {
        let text = |key: &str| self.config.get(key).and_then(Value::as_str);
        match text("activation_function").unwrap_or("gelu_new") {
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => {}
            other => return Err(format!("its config.json has activation_function {other:?}")),
        }
        let flag = |key: &str| self.config.get(key).and_then(Value::as_bool);
        if flag("scale_attn_weights") == Some(false) {
            return Err("its config.json has scale_attn_weights false".into());
        }
        if flag("scale_attn_by_inverse_layer_idx") == Some(true) {
            return Err("its config.json has scale_attn_by_inverse_layer_idx true".into());
        }
        Ok(())
    }
}

fn layers(model: &[&TensorMeta]) -> u64 {
    let layer = |meta: &&TensorMeta| match Gpt2Parameter::parse(&meta.name) {
        Some(Gpt2Parameter::Block { layer, .. }) => Some(layer + 1),
        _ => None,
    };
    model.iter().filter_map(layer).max().unwrap_or(0)
}
