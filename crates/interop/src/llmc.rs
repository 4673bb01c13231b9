//! The model files of llm.c (`gpt2_124M.bin`): a header of 256 numbers, then all parameters one after the other, those
//! of one kind of all blocks together.
//!
//! Invariant: the file is exactly as long as its header says; tensors are taken in place.

use std::path::Path;

use serde_json::json;

use crate::gpt2_names::{BlockParameter, Gpt2Parameter};
use crate::mapped::MappedFile;
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor, TensorMeta};

/// The first number of every file.
pub const MAGIC: [u8; 4] = 20_240_326_u32.to_le_bytes();
const HEADER_NUMBERS: usize = 256;
/// No GPT-2 has more of anything.
const MAX_SIZE: u64 = 1 << 24;

/// A file's tensors, weights of linear layers as [out, in], and the text of the config.json that its header makes.
pub struct LlmcFile {
    pub tensors: Vec<Tensor>,
    pub config_json: String,
}

struct Header {
    dtype: DType,
    positions: u64,
    vocabulary: u64,
    layers: u64,
    heads: u64,
    width: u64,
    /// Rows of the embedding; those beyond the vocabulary are never looked up.
    padded: u64,
}

/// Opens the file at `path`.
///
/// # Errors
/// [`Error::Malformed`] for another version and for a file of another length than its header says.
pub fn open(path: &Path) -> Result<LlmcFile> {
    let mapped = MappedFile::open(path)?;
    let refuse = |reason: String| Error::malformed(path, reason);
    let header = header(mapped.bytes()).map_err(refuse)?;
    let mut at = 4 * HEADER_NUMBERS as u64;
    let mut tensors = Vec::new();
    for (parameters, shape) in header.runs() {
        for (parameter, rows) in parameters {
            let elements: u64 = shape.iter().product();
            // The padding is left out.
            let mut kept = shape.clone();
            kept[0] = rows;
            let meta = TensorMeta { role: Role::Param, name: parameter.to_string(), dtype: header.dtype, shape: kept };
            let bytes = meta.bytes().unwrap_or(u64::MAX);
            let end = at.checked_add(elements * header.dtype.size() as u64);
            let region = end.filter(|end| *end <= mapped.len()).and_then(|_| mapped.region(at..at.checked_add(bytes)?));
            let bytes = region.ok_or_else(|| refuse(format!("it ends before {parameter}; the file is cut")))?;
            at = end.unwrap_or(u64::MAX);
            tensors.push(Tensor { meta, bytes });
        }
    }
    if at != mapped.len() {
        return Err(refuse(format!("it has {} bytes, and its header describes {at}", mapped.len())));
    }
    Ok(LlmcFile { tensors, config_json: header.config_json() })
}

fn header(bytes: &[u8]) -> Result<Header, String> {
    let head = bytes.get(..4 * HEADER_NUMBERS).ok_or("it ends within its header; the file is cut")?;
    let number = |place: usize| {
        let number: [u8; 4] = head[4 * place..4 * place + 4].try_into().unwrap_or_default();
        u64::from(u32::from_le_bytes(number))
    };
    let dtype = match number(1) {
        1 | 3 => DType::F32,
        5 => DType::BF16,
        version => return Err(format!("an llm.c model of version {version}; versions 1, 3 and 5 are read")),
    };
    let padded = if number(1) == 1 { number(3) } else { number(7) };
    let (positions, vocabulary, layers, heads, width) = (number(2), number(3), number(4), number(5), number(6));
    let header = Header { dtype, positions, vocabulary, layers, heads, width, padded };
    let sizes = [positions, vocabulary, layers, heads, width, padded];
    if sizes.iter().any(|size| *size == 0 || *size > MAX_SIZE) || padded < vocabulary || layers > bytes.len() as u64 {
        return Err(format!("its header describes no GPT-2: {sizes:?}"));
    }
    Ok(header)
}

/// Parameters that follow each other in the file, each with the rows of it that count, and the shape of each there.
type ParameterRun = (Vec<(Gpt2Parameter, u64)>, Vec<u64>);

impl Header {
    /// The parameters in the order of the file, each with the rows of it that count, and the shape that it takes there.
    fn runs(&self) -> Vec<ParameterRun> {
        let width = self.width;
        let one = |parameter, rows: u64, shape: Vec<u64>| (vec![(parameter, rows)], shape);
        let mut runs = vec![
            one(Gpt2Parameter::TokenEmbedding, self.vocabulary, vec![self.padded, width]),
            one(Gpt2Parameter::PositionEmbedding, self.positions, vec![self.positions, width]),
        ];
        for part in BlockParameter::ALL {
            let shape = match part {
                BlockParameter::AttentionWeight => vec![3 * width, width],
                BlockParameter::AttentionBias => vec![3 * width],
                BlockParameter::AttentionProjectionWeight => vec![width, width],
                BlockParameter::InnerWeight => vec![4 * width, width],
                BlockParameter::InnerBias => vec![4 * width],
                BlockParameter::InnerProjectionWeight => vec![width, 4 * width],
                _ => vec![width],
            };
            let block = |layer| (Gpt2Parameter::Block { layer, part }, shape[0]);
            runs.push(((0..self.layers).map(block).collect(), shape));
        }
        runs.push(one(Gpt2Parameter::FinalNormWeight, width, vec![width]));
        runs.push(one(Gpt2Parameter::FinalNormBias, width, vec![width]));
        runs
    }

    fn config_json(&self) -> String {
        let config = json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
            "n_positions": self.positions, "n_ctx": self.positions, "vocab_size": self.vocabulary,
            "n_layer": self.layers, "n_head": self.heads, "n_embd": self.width, "layer_norm_epsilon": 1e-5,
            // llm.c has no dropout.
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        });
        format!("{config:#}\n")
    }
}
