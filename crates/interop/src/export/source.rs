//! A snapshot as exports see it: the model's tensors in the model's order, the optimiser's beside them.

use std::path::Path;

use crate::gpt2_names::{self, BlockParameter, Gpt2Parameter};
use crate::names::{self, MOMENTS};
use ckptd_core::dtype::{self, DType};
use ckptd_core::error::{Error, Result};
use ckptd_core::pipeline::ahead;
use ckptd_core::snapshot::{Role, TensorMeta};
use ckptd_core::store::read::{ChunkRun, ChunkRunReader};
use ckptd_core::store::{Manifest, SnapshotReader};

pub(super) struct ExportSource {
    reader: SnapshotReader,
    /// Parameters and buffers in the model's order, as indices into the manifest.
    model: Vec<usize>,
    threads: usize,
}

/// What an export writes as a whole.
pub(super) enum ExportPart {
    /// A tensor of the snapshot, as this type where that is another float type than its own.
    Tensor(TensorMeta, DType),
    /// The same with its two dimensions changed round: a weight of `Conv1D` as one of `nn.Linear`.
    Transposed(TensorMeta, DType),
    Bytes(Vec<u8>),
}

impl ExportPart {
    /// The tensor and its type, where it is one.
    fn tensor(&self) -> Option<(&TensorMeta, DType)> {
        match self {
            ExportPart::Tensor(meta, dtype) | ExportPart::Transposed(meta, dtype) => Some((meta, *dtype)),
            ExportPart::Bytes(_) => None,
        }
    }

    /// How many bytes it is.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            ExportPart::Bytes(bytes) => bytes.len() as u64,
            part => part.tensor().map_or(0, |(meta, dtype)| meta.elements().unwrap_or(0) * dtype.size() as u64),
        }
    }
}

impl ExportSource {
    /// Opens the snapshot at `path`; every chunk that is read is checked against its hash.
    pub(super) fn open(path: &Path, threads: usize) -> Result<ExportSource> {
        // It was written past the page cache, and is read once.
        let reader = SnapshotReader::open_past_cache(path)?;
        let tensors = &reader.manifest().tensors;
        let of_model = |i: &usize| matches!(tensors[*i].meta.role, Role::Param | Role::Buffer);
        let mut model: Vec<usize> = (0..tensors.len()).filter(of_model).collect();
        model.sort_by(|&a, &b| gpt2_names::order(&tensors[a].meta.name, &tensors[b].meta.name));
        let twice = model.windows(2).find(|pair| tensors[pair[0]].meta.name == tensors[pair[1]].meta.name);
        if let Some(pair) = twice {
            let name = &tensors[pair[0]].meta.name;
            return Err(Error::mismatch(
                path,
                format!("{name} is both a parameter and a buffer; no format can say that"),
            ));
        }
        Ok(ExportSource { reader, model, threads })
    }

    pub(super) fn manifest(&self) -> &Manifest {
        self.reader.manifest()
    }

    pub(super) fn path(&self) -> &Path {
        self.reader.path()
    }

    /// Parameters and buffers, in the model's order.
    pub(super) fn model(&self) -> Vec<&TensorMeta> {
        self.model.iter().map(|&i| self.meta(i)).collect()
    }

    /// Parameters alone, in the model's order.
    pub(super) fn params(&self) -> Vec<&TensorMeta> {
        self.model().into_iter().filter(|meta| meta.role == Role::Param).collect()
    }

    /// The moments that the snapshot holds.
    pub(super) fn moments(&self) -> Vec<Role> {
        let held = |role: &Role| self.manifest().tensors.iter().any(|tensor| tensor.meta.role == *role);
        MOMENTS.into_iter().filter(held).collect()
    }

    /// Whether an export with this float type still holds the model to the bit.
    pub(super) fn is_exact_as(&self, dtype: Option<DType>) -> bool {
        self.model().iter().all(|meta| exported_dtype(meta, dtype) == meta.dtype)
    }

    /// Whether the head's weights are the embedding's.
    pub(super) fn is_tied(&self) -> bool {
        gpt2_names::is_tied(self.model.iter().map(|&i| self.meta(i).name.as_str()))
    }

    fn meta(&self, index: usize) -> &TensorMeta {
        &self.reader.manifest().tensors[index].meta
    }

    /// Hands the bytes of `parts` to `take` in their order, each in one piece or more, with the part's index. What
    /// comes next is read and decoded meanwhile.
    pub(super) fn stream(&self, parts: &[ExportPart], take: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let mut whole = Vec::new();
        let mut take = |index: usize, piece: &[u8]| match &parts[index] {
            // Its rows are spread over all of it, so it is put together first.
            ExportPart::Transposed(meta, dtype) => {
                whole.extend_from_slice(piece);
                if (whole.len() as u64) < parts[index].bytes() {
                    return Ok(());
                }
                take(index, &transposed(&std::mem::take(&mut whole), &meta.shape, dtype.size()))
            }
            _ => take(index, piece),
        };
        let mut orders = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let pieces = match part.tensor() {
                Some((meta, _)) => self.reader.runs(self.find(meta)?),
                None => Vec::new(),
            };
            if pieces.is_empty() {
                orders.push((index, None))
            } else {
                orders.extend(pieces.into_iter().map(|piece| (index, Some(piece))))
            }
        }
        let make = |reader: &mut ChunkRunReader, (index, piece): &(usize, Option<ChunkRun>), mut memory: Vec<u8>| {
            memory.resize(piece.as_ref().map_or(0, |piece| piece.bytes), 0);
            match (&parts[*index], piece) {
                (ExportPart::Tensor(meta, dtype) | ExportPart::Transposed(meta, dtype), Some(piece)) => {
                    reader.read(piece, &mut memory)?;
                    self.convert(memory, meta, *dtype)
                }
                (ExportPart::Bytes(bytes), _) => Ok(bytes.clone()),
                (_, None) => Ok(memory),
            }
        };
        // Each thread waits for the device half of the time.
        ahead(&orders, 2 * self.threads, || self.reader.run_reader(), make, |(index, _), bytes| take(*index, bytes))
    }

    fn find(&self, meta: &TensorMeta) -> Result<usize> {
        let mut tensors = self.manifest().tensors.iter();
        let index = tensors.position(|tensor| tensor.meta.role == meta.role && tensor.meta.name == meta.name);
        index.ok_or_else(|| Error::mismatch(self.path(), format!("the snapshot has no {} of {}", meta.role, meta.name)))
    }

    fn convert(&self, bytes: Vec<u8>, meta: &TensorMeta, dtype: DType) -> Result<Vec<u8>> {
        if meta.dtype == dtype {
            Ok(bytes)
        } else {
            dtype::convert(&bytes, meta.dtype, dtype).ok_or_else(|| {
                Error::mismatch(self.path(), format!("{} is {}, which cannot become {dtype}", meta.name, meta.dtype))
            })
        }
    }

    pub(super) fn carried(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.reader.read_file(name)
    }

    /// The text of the model's config.json, where the snapshot carries one.
    pub(super) fn config_json(&self) -> Result<Option<String>> {
        let Some(bytes) = self.carried(names::CONFIG)? else { return Ok(None) };
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| Error::mismatch(self.path(), "the config.json that it carries is not UTF-8"))
    }
}

/// The row-major matrix `bytes` of this shape with rows and columns changed round.
fn transposed(bytes: &[u8], shape: &[u64], size: usize) -> Vec<u8> {
    let [rows, columns] = [0, 1].map(|i| shape.get(i).map_or(1, |&length| length as usize));
    let mut out = vec![0; bytes.len()];
    for (place, element) in out.chunks_exact_mut(size).enumerate() {
        let from = ((place % rows) * columns + place / rows) * size;
        element.copy_from_slice(&bytes[from..from + size]);
    }
    out
}

/// Whether `Conv1D` keeps the tensor as [in, out], where `nn.Linear` has [out, in].
pub(super) fn is_linear(meta: &TensorMeta) -> bool {
    use BlockParameter::{AttentionProjectionWeight, AttentionWeight, InnerProjectionWeight, InnerWeight};
    let linear = [AttentionWeight, AttentionProjectionWeight, InnerWeight, InnerProjectionWeight];
    match Gpt2Parameter::parse(&meta.name) {
        Some(Gpt2Parameter::Block { part, .. }) => linear.contains(&part) && meta.shape.len() == 2,
        _ => false,
    }
}

/// What a tensor becomes where floats are asked for as `dtype`: other types stay what they are.
pub(super) fn exported_dtype(meta: &TensorMeta, dtype: Option<DType>) -> DType {
    match dtype {
        Some(dtype) if matches!(meta.dtype, DType::F32 | DType::F16 | DType::BF16) => dtype,
        _ => meta.dtype,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], &[2, 3], 1), [1, 4, 2, 5, 3, 6]);
        assert_eq!(transposed(&[1, 1, 2, 2, 3, 3, 4, 4], &[4, 1], 2), [1, 1, 2, 2, 3, 3, 4, 4]);
    }
}
