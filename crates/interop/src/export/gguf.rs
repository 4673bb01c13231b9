//! The GGUF file: the weights as llama.cpp's converter lays them out, and the tokenizer where the snapshot carries one.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use super::options::ExportOptions;
use super::shape::ExportShape;
use super::source::{ExportPart, ExportSource, exported_dtype, is_linear};
use crate::gguf::{self, GgufValue, names as gguf_names};
use crate::gpt2_names::Gpt2Parameter;
use crate::names;
use crate::safetensors::TensorSpec;
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::TensorMeta;

pub(super) fn write(
    source: &ExportSource,
    file: &mut File,
    path: &Path,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let shape = ExportShape::of(source, "GGUF")?;
    let (mut specs, mut parts) = (Vec::new(), Vec::new());
    for meta in source.model() {
        let (spec, part) = tensor(meta, options.dtype).map_err(|what| Error::mismatch(source.path(), what))?;
        specs.push(spec);
        parts.push(part);
    }
    let mut values = model_values(&shape, options.dtype);
    values.extend(tokenizer_values(source, &shape)?);
    let total = specs.iter().map(TensorSpec::bytes).sum();
    progress.begin("tensors", total);
    gguf::write(file, path, &values, &specs, |take| {
        source.stream(&parts, &mut |index, piece| {
            take(index, piece)?;
            progress.advance(piece.len() as u64)
        })
    })?;
    Ok(total)
}

/// How one tensor lies in the file. What has one dimension, and the positions, stay as they are: llama.cpp adds them to
/// float32.
fn tensor(meta: &TensorMeta, dtype: Option<DType>) -> Result<(TensorSpec, ExportPart), String> {
    let parameter = Gpt2Parameter::parse(&meta.name)
        .ok_or_else(|| format!("{} is no tensor of GPT-2, so GGUF has no name for it; export it as hf", meta.name))?;
    let narrow = meta.shape.len() >= 2 && parameter != Gpt2Parameter::PositionEmbedding;
    let dtype = if narrow { exported_dtype(meta, dtype) } else { meta.dtype };
    let mut shape = meta.shape.clone();
    let part = if is_linear(meta) {
        shape.reverse();
        ExportPart::Transposed(meta.clone(), dtype)
    } else {
        ExportPart::Tensor(meta.clone(), dtype)
    };
    Ok((TensorSpec { name: gguf_names::name(parameter), dtype, shape }, part))
}

fn model_values(shape: &ExportShape, dtype: Option<DType>) -> Vec<(&'static str, GgufValue)> {
    let number = |number: u64| GgufValue::U32(u32::try_from(number).unwrap_or(u32::MAX));
    let file_type = match dtype {
        Some(DType::F16) => 1,
        Some(DType::BF16) => 32,
        _ => 0,
    };
    vec![
        ("general.architecture", GgufValue::Text("gpt2".into())),
        ("general.type", GgufValue::Text("model".into())),
        ("general.file_type", GgufValue::U32(file_type)),
        ("gpt2.block_count", number(shape.layers)),
        ("gpt2.context_length", number(shape.positions)),
        ("gpt2.embedding_length", number(shape.width)),
        ("gpt2.feed_forward_length", number(shape.inner)),
        ("gpt2.attention.head_count", number(shape.heads)),
        ("gpt2.attention.layer_norm_epsilon", GgufValue::F32(shape.epsilon as f32)),
    ]
}

/// The byte-level BPE of the carried tokenizer.json; nothing for another kind of tokenizer, which GGUF's `gpt2` is not.
fn tokenizer_values(source: &ExportSource, shape: &ExportShape) -> Result<Vec<(&'static str, GgufValue)>> {
    let Some(json) = source.carried(names::TOKENIZER)? else { return Ok(Vec::new()) };
    let Ok(tokenizer) = serde_json::from_slice::<Value>(&json) else { return Ok(Vec::new()) };
    let Some((tokens, kinds)) = tokens(&tokenizer, shape.vocabulary as usize) else { return Ok(Vec::new()) };
    let merges = tokenizer["model"]["merges"].as_array().into_iter().flatten();
    let merge = |merge: &Value| match merge {
        Value::Array(pair) => pair.iter().map(|part| part.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" "),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    let merges = merges.map(|pair| GgufValue::Text(merge(pair))).collect();
    let mut values = vec![
        ("tokenizer.ggml.model", GgufValue::Text("gpt2".into())),
        ("tokenizer.ggml.pre", GgufValue::Text("gpt-2".into())),
        ("tokenizer.ggml.tokens", GgufValue::Array(tokens.into_iter().map(GgufValue::Text).collect())),
        ("tokenizer.ggml.token_type", GgufValue::Array(kinds.into_iter().map(GgufValue::I32).collect())),
        ("tokenizer.ggml.merges", GgufValue::Array(merges)),
    ];
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", "eos_token_id"),
        ("tokenizer.ggml.padding_token_id", "pad_token_id"),
    ] {
        if let Some(id) = shape.config.get(id).and_then(Value::as_u64).filter(|id| *id < shape.vocabulary) {
            values.push((key, GgufValue::U32(id as u32)));
        }
    }
    Ok(values)
}

/// All tokens by their ids, as many as the model knows, with their kinds.
fn tokens(tokenizer: &Value, count: usize) -> Option<(Vec<String>, Vec<i32>)> {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;
    const UNUSED: i32 = 5;
    let model = tokenizer.get("model")?;
    let is_byte_level = tokenizer["pre_tokenizer"].to_string().contains("ByteLevel");
    if model.get("type").and_then(Value::as_str) != Some("BPE") || !is_byte_level {
        return None;
    }
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; count];
    let mut set = |id: Option<u64>, token: &str, kind: i32| {
        if let Some(id) = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < count) {
            tokens[id] = token.to_owned();
            kinds[id] = kind;
        }
    };
    for (token, id) in model.get("vocab")?.as_object()? {
        set(id.as_u64(), token, NORMAL);
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"].as_bool() == Some(true) { CONTROL } else { USER_DEFINED };
        set(added["id"].as_u64(), added["content"].as_str().unwrap_or_default(), kind);
    }
    Some((tokens, kinds))
}
