//! The folder of `torch.distributed.checkpoint`: the state dict that `get_state_dict` gives, flattened.

use std::path::Path;

use super::options::ExportOptions;
use super::source::{ExportPart, ExportSource};
use super::target::ExportFolder;
use super::torch::{self, PtStorages};
use crate::dcp::{self, DcpContent, DcpItem};
use crate::export_record;
use crate::torch_pt::pickler::PtObject;
use crate::{gpt2_names, names, output};
use ckptd_core::error::Result;
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::format::FileRecord;

/// Fills the folder `dir`, which is there and empty. Returns the bytes of its tensors and of its files.
pub(super) fn write(
    source: &ExportSource,
    dir: &Path,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<(u64, u64)> {
    let mut storages = PtStorages::default();
    let model = torch::state_dict(source, options.dtype, &mut storages);
    let object = if options.with_optimizer {
        by_name(torch::checkpoint(source, model, options, &mut storages)?, source)
    } else {
        PtObject::dict([("model", model)])
    };
    let mut items = Vec::new();
    flatten(&mut Vec::new(), object, &mut items);
    let parts = storages.contents;
    let tensor_bytes = parts.iter().map(ExportPart::bytes).sum();
    progress.begin("tensors", tensor_bytes);
    let mut folder = ExportFolder::new(dir);
    let path = folder.path(dcp::DATA);
    let metadata = folder.part(dcp::DATA, |file| {
        dcp::write(file, &path, &items, |take| {
            source.stream(&parts, &mut |number, piece| {
                take(number, piece)?;
                progress.advance(piece.len() as u64)
            })
        })
    })?;
    folder.file(dcp::METADATA, &metadata)?;
    let record = |name: &String| {
        let path = folder.path(name);
        let bytes = std::fs::metadata(&path).map(|found| found.len());
        let bytes = bytes.map_err(|e| ckptd_core::error::Error::io("looking at", path, e))?;
        Ok(FileRecord { name: name.clone(), bytes, hash: String::new() })
    };
    let records = folder.names().iter().map(record).collect::<Result<Vec<_>>>()?;
    folder.file(names::FILES_RECORD, &export_record::files_json(records)?)?;
    output::sync(dir, folder.names())?;
    Ok((tensor_bytes, folder.bytes()?))
}

/// The optimiser's state with the names of the parameters in place of their numbers, as `get_state_dict` has it.
fn by_name(checkpoint: PtObject, source: &ExportSource) -> PtObject {
    let params = source.params();
    let (order, _) = gpt2_names::optimizer_order(&params);
    let name = |object: PtObject| match object {
        PtObject::Int(number) => match usize::try_from(number).ok().and_then(|number| order.get(number)) {
            Some(&param) => PtObject::str(params[param].name.as_str()),
            None => PtObject::Int(number),
        },
        other => other,
    };
    let group = |(key, value): (PtObject, PtObject)| match value {
        PtObject::List(numbers) if key == PtObject::str("params") => {
            (key, PtObject::List(numbers.into_iter().map(name).collect()))
        }
        other => (key, other),
    };
    let groups = |object| match object {
        PtObject::Dict(items) => PtObject::Dict(items.into_iter().map(group).collect()),
        other => other,
    };
    let optimizer = |(key, value): (PtObject, PtObject)| match value {
        PtObject::Dict(state) if key == PtObject::str("state") => {
            (key, PtObject::Dict(state.into_iter().map(|(number, state)| (name(number), state)).collect()))
        }
        PtObject::List(items) => (key, PtObject::List(items.into_iter().map(groups).collect())),
        other => (key, other),
    };
    let entry = |(key, value): (PtObject, PtObject)| match value {
        PtObject::Dict(items) if key == PtObject::str("optimizer") => {
            (key, PtObject::Dict(items.into_iter().map(optimizer).collect()))
        }
        other => (key, other),
    };
    match checkpoint {
        PtObject::Dict(items) => PtObject::Dict(items.into_iter().map(entry).collect()),
        other => other,
    }
}

/// The entries of `object`, which is at `path`, as `flatten_state_dict` makes them: dicts always become entries, lists
/// where a dict or a tensor is in them.
fn flatten(path: &mut Vec<PtObject>, object: PtObject, items: &mut Vec<DcpItem>) {
    let mut inner = |key: PtObject, value: PtObject| {
        path.push(key);
        flatten(path, value, items);
        path.pop();
    };
    match object {
        PtObject::Dict(pairs) | PtObject::OrderedDict(pairs) => {
            pairs.into_iter().for_each(|(key, value)| inner(key, value));
        }
        PtObject::List(values) if !is_one_entry(&values) => {
            values.into_iter().enumerate().for_each(|(place, value)| inner(PtObject::Int(place as i64), value));
        }
        PtObject::Tensor(slot) => {
            let content = DcpContent::Tensor { number: slot.storage, dtype: slot.dtype, shape: slot.shape };
            items.push(DcpItem { path: path.clone(), content });
        }
        other => items.push(DcpItem { path: path.clone(), content: DcpContent::Object(other) }),
    }
}

/// Whether a list stays whole.
fn is_one_entry(values: &[PtObject]) -> bool {
    values.iter().all(|value| match value {
        PtObject::Dict(_) | PtObject::OrderedDict(_) | PtObject::Tensor(_) => false,
        PtObject::List(values) => is_one_entry(values),
        _ => true,
    })
}
