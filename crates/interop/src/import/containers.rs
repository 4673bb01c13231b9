//! Files of other containers than PyTorch's, read into the parts of a source: GGUF, `.npz`, llm.c's.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::parts::SourceParts;
use crate::gguf::{self, GgufFile, GgufValue, names as gguf_names};
use crate::gpt2_names::{BlockParameter, Gpt2Parameter};
use crate::limits::ReadLimits;
use crate::{llmc, names, npz};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Tensor, TensorMeta};

/// Arrays under the names of a state dict.
pub(super) fn npz(path: &Path, limits: &ReadLimits) -> Result<SourceParts> {
    Ok(SourceParts { tensors: npz::open(path, limits)?, ..SourceParts::default() })
}

/// A model of llm.c.
pub(super) fn llmc(path: &Path) -> Result<SourceParts> {
    let file = llmc::open(path)?;
    let tensors = file.tensors.into_iter().map(as_conv1d).collect();
    let mut parts = SourceParts { tensors, ..SourceParts::default() };
    parts.add_text(names::CONFIG, &file.config_json);
    Ok(parts)
}

/// A GPT-2 in GGUF, with its config and its tokenizer.
pub(super) fn gguf(path: &Path, limits: &ReadLimits) -> Result<SourceParts> {
    let refuse = |reason: String| Error::malformed(path, reason);
    let mut file = gguf::open(path, limits)?;
    match file.get("general.architecture").and_then(GgufValue::as_text) {
        Some("gpt2") => {}
        other => {
            let other = other.unwrap_or("no name");
            return Err(refuse(format!("a model of the architecture {other:?}; ckptd trains gpt2")));
        }
    }
    let tensors = std::mem::take(&mut file.tensors).into_iter().map(|tensor| {
        let parameter = gguf_names::parse(&tensor.meta.name)
            .ok_or_else(|| refuse(format!("the tensor {:?} is none of GPT-2's", tensor.meta.name)))?;
        let meta = TensorMeta { name: parameter.to_string(), ..tensor.meta };
        Ok(as_conv1d(Tensor { meta, bytes: tensor.bytes }))
    });
    let mut parts = SourceParts { tensors: tensors.collect::<Result<_>>()?, ..SourceParts::default() };
    let config = config(&file, &parts.tensors).map_err(refuse)?;
    parts.add_text(names::CONFIG, &format!("{:#}\n", Value::Object(config)));
    if let Some((vocabulary, merges)) = tokenizer(&file) {
        parts.add_text("vocab.json", &Value::Object(vocabulary).to_string());
        parts.add_text("merges.txt", &merges);
    } else if file.get("tokenizer.ggml.tokens").is_some() {
        parts.notes.push("its tokenizer is no byte-level BPE of GPT-2 and was left out; --model names another".into());
    }
    Ok(parts)
}

/// A weight of a linear layer, which these containers keep as `nn.Linear` does, as Conv1D does.
fn as_conv1d(tensor: Tensor) -> Tensor {
    use BlockParameter::{AttentionProjectionWeight, AttentionWeight, InnerProjectionWeight, InnerWeight};
    let linear = [AttentionWeight, AttentionProjectionWeight, InnerWeight, InnerProjectionWeight];
    let is_linear = match Gpt2Parameter::parse(&tensor.meta.name) {
        Some(Gpt2Parameter::Block { part, .. }) => linear.contains(&part),
        _ => false,
    };
    let (&[rows, columns], true) = (&tensor.meta.shape[..], is_linear) else { return tensor };
    let (bytes, size): (&[u8], usize) = ((*tensor.bytes).as_ref(), tensor.meta.dtype.size());
    let mut turned = vec![0; bytes.len()];
    for (place, element) in turned.chunks_exact_mut(size).enumerate() {
        let from = (place % rows as usize * columns as usize + place / rows as usize) * size;
        element.copy_from_slice(&bytes[from..from + size]);
    }
    Tensor::new(TensorMeta { shape: vec![columns, rows], ..tensor.meta }, turned)
}

/// The config.json that the header and the shapes make.
fn config(file: &GgufFile, tensors: &[Tensor]) -> Result<Map<String, Value>, String> {
    let number = |key: &str| {
        let value = file.get(&format!("gpt2.{key}")).and_then(GgufValue::as_u64);
        value.ok_or_else(|| format!("its header has no gpt2.{key}"))
    };
    let shape = |parameter: Gpt2Parameter| {
        let name = parameter.to_string();
        let found = tensors.iter().find(|tensor| tensor.meta.name == name);
        found
            .map(|tensor| tensor.meta.shape.clone())
            .ok_or_else(|| format!("it has no {}", gguf_names::name(parameter)))
    };
    let (width, inner) = (number("embedding_length")?, number("feed_forward_length")?);
    let vocabulary = shape(Gpt2Parameter::TokenEmbedding)?.first().copied();
    let positions = shape(Gpt2Parameter::PositionEmbedding)?.first().copied();
    shape(Gpt2Parameter::Block { layer: 0, part: BlockParameter::InnerWeight })?;
    let epsilon = file.get("gpt2.attention.layer_norm_epsilon").and_then(GgufValue::as_f64).unwrap_or(1e-5);
    let tied = !tensors.iter().any(|tensor| tensor.meta.name == Gpt2Parameter::Head.to_string());
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
        "n_positions": positions, "n_ctx": positions, "vocab_size": vocabulary, "n_layer": number("block_count")?,
        "n_head": number("attention.head_count")?, "n_embd": width, "layer_norm_epsilon": epsilon,
        "n_inner": (inner != 4 * width).then_some(inner), "tie_word_embeddings": tied || is_head_embedding(tensors),
    });
    let Value::Object(mut config) = config else { return Ok(Map::new()) };
    for (key, ours) in [("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")] {
        if let Some(id) = file.get(&format!("tokenizer.ggml.{key}")).and_then(GgufValue::as_u64) {
            config.insert(ours.into(), json!(id));
        }
    }
    Ok(config)
}

/// Whether the head has the values of the embedding, which some converters write twice.
fn is_head_embedding(tensors: &[Tensor]) -> bool {
    let find = |parameter: Gpt2Parameter| {
        let name = parameter.to_string();
        tensors.iter().find(move |tensor| tensor.meta.name == name)
    };
    match (find(Gpt2Parameter::Head), find(Gpt2Parameter::TokenEmbedding)) {
        (Some(head), Some(embedding)) => embedding.has_values_of(head),
        _ => false,
    }
}

/// vocab.json and merges.txt of a byte-level BPE; `None` for another tokenizer.
fn tokenizer(file: &GgufFile) -> Option<(Map<String, Value>, String)> {
    const UNUSED: u64 = 5;
    let text = |key: &str| file.get(&format!("tokenizer.ggml.{key}")).and_then(GgufValue::as_text);
    let list = |key: &str| file.get(&format!("tokenizer.ggml.{key}")).and_then(GgufValue::as_array);
    if text("model") != Some("gpt2") || !matches!(text("pre"), None | Some("gpt-2" | "default")) {
        return None;
    }
    let kinds = list("token_type").unwrap_or_default();
    let is_used = |id: usize| kinds.get(id).and_then(GgufValue::as_u64) != Some(UNUSED);
    let tokens = list("tokens")?.iter().enumerate().filter(|(id, _)| is_used(*id));
    let ids: BTreeMap<&str, usize> = tokens.filter_map(|(id, token)| Some((token.as_text()?, id))).collect();
    let merges: Vec<&str> = list("merges")?.iter().filter_map(GgufValue::as_text).collect();
    let vocabulary = ids.into_iter().map(|(token, id)| (token.to_owned(), json!(id))).collect();
    Some((vocabulary, format!("#version: 0.2\n{}\n", merges.join("\n"))))
}
