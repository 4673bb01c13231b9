//! What a call of an allowed global gives: plain nodes, with every tensor held against its storage.

use std::sync::Arc;

use super::globals::Global;
use super::machine::{Id, Machine, Node};
use super::value::{Storage, TensorRef};
use crate::safetensors::MAX_DIMENSIONS;
use ckptd_core::dtype::DType;

/// `callee(*arguments)`.
pub(super) fn call(machine: &mut Machine, callee: Id, arguments: Id) -> Result<Id, String> {
    let global = global(machine, callee)?;
    let items = tuple(machine, arguments)?.to_vec();
    match global {
        // The type of a tensor subclass does not matter; what it is rebuilt from does.
        Global::RebuildFromType => match items.as_slice() {
            [function, _, arguments, ..] => {
                let function = self::global(machine, *function)?;
                let items = tuple(machine, *arguments)?.to_vec();
                construct(machine, function, &items)
            }
            _ => Err("a tensor without arguments".into()),
        },
        _ => construct(machine, global, &items),
    }
}

fn construct(machine: &mut Machine, global: Global, arguments: &[Id]) -> Result<Id, String> {
    match (global, arguments) {
        (Global::RebuildTensor | Global::RebuildTensorV2, [storage, offset, shape, stride, ..]) => {
            let tensor = tensor(machine, [*storage, *offset, *shape, *stride])?;
            Ok(machine.add(Node::Tensor(Arc::new(tensor))))
        }
        (Global::RebuildParameter, [tensor, ..]) => match machine.node(*tensor) {
            Node::Tensor(_) => Ok(*tensor),
            _ => Err("a parameter that is no tensor".into()),
        },
        (Global::Dict, [items]) => match machine.node(*items) {
            Node::Dict(_) => Ok(*items),
            _ => Err("a dict made of something that is no dict".into()),
        },
        (Global::Dict, []) | (Global::DefaultDict, [] | [_]) => Ok(machine.add(Node::Dict(Vec::new()))),
        (Global::Collection | Global::Size, [items]) => match machine.node(*items) {
            Node::List(_) | Node::Tuple(_) => Ok(*items),
            _ => Err("a collection made of something that is no list".into()),
        },
        (Global::Collection | Global::Size, []) => Ok(machine.add(Node::List(Vec::new()))),
        (Global::Opaque(kind), _) => Ok(machine.add(Node::Other(kind))),
        (Global::Class | Global::Storage(_) | Global::DType(_) | Global::RebuildFromType, _) => {
            Err("refusing to call a global that only names a type".into())
        }
        _ => Err("wrong arguments for a call".into()),
    }
}

/// The storage that a persistent id `("storage", type, key, location, elements)` names.
pub(super) fn storage(machine: &mut Machine, id: Id) -> Result<Arc<Storage>, String> {
    let [tag, kind, key, _, elements] = *tuple(machine, id)? else {
        return Err("a persistent id that names no storage".into());
    };
    let (Node::Str(tag), Node::Global(kind), Node::Str(key), Node::Int(elements)) =
        (machine.node(tag), machine.node(kind), machine.node(key), machine.node(elements))
    else {
        return Err("a persistent id that names no storage".into());
    };
    let (Global::Storage(dtype), "storage") = (*kind, &**tag) else {
        return Err("a persistent id that names no storage".into());
    };
    let elements = u64::try_from(*elements).map_err(|_| format!("storage {key} has a negative size"))?;
    let key = Arc::clone(key);
    if let Some(known) = machine.storages.get(&key) {
        return match known.dtype == dtype && known.elements == elements {
            true => Ok(Arc::clone(known)),
            false => Err(format!("storage {key} is described in two ways")),
        };
    }
    let bytes = (machine.storage_bytes)(&key).ok_or_else(|| format!("storage {key:?} is not in the archive"))?;
    if !fills(elements, dtype, bytes) {
        return Err(format!("storage {key} is to hold {elements} values of {dtype}, but its record has {bytes} bytes"));
    }
    let storage = Arc::new(Storage { key: Arc::clone(&key), dtype, elements });
    machine.storages.insert(key, Arc::clone(&storage));
    Ok(storage)
}

/// Whether so many elements take exactly `bytes`.
fn fills(elements: u64, dtype: DType, bytes: u64) -> bool {
    elements.checked_mul(dtype.size() as u64) == Some(bytes)
}

fn tensor(machine: &mut Machine, [storage, offset, shape, stride]: [Id; 4]) -> Result<TensorRef, String> {
    machine.tensors += 1;
    if machine.tensors > machine.limits.tensors {
        return Err(format!("more than {} tensors", machine.limits.tensors));
    }
    let Node::Storage(storage) = machine.node(storage) else { return Err("a tensor without a storage".into()) };
    let storage = Arc::clone(storage);
    let (shape, stride) = (sizes(machine, shape)?, sizes(machine, stride)?);
    let offset = size(machine, offset)?;
    if shape.len() != stride.len() {
        return Err(format!("a tensor of shape {shape:?} with the strides {stride:?}"));
    }
    let tensor = TensorRef { storage, offset, shape, stride };
    match fits(&tensor) {
        true => Ok(tensor),
        false => Err(format!(
            "a tensor of shape {:?}, strides {:?} from element {offset} does not lie within storage {}, which holds {}",
            tensor.shape, tensor.stride, tensor.storage.key, tensor.storage.elements
        )),
    }
}

/// Whether the first and the last element lie in the storage, and there are no more elements than the storage holds:
/// a stride of zero makes a tensor of any size from one value.
fn fits(tensor: &TensorRef) -> bool {
    let Some(elements) = tensor.shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size)) else { return false };
    if elements == 0 {
        return tensor.offset <= tensor.storage.elements;
    }
    let last = tensor
        .shape
        .iter()
        .zip(&tensor.stride)
        .try_fold(tensor.offset, |at, (&size, &stride)| at.checked_add((size - 1).checked_mul(stride)?));
    last.is_some_and(|last| last < tensor.storage.elements) && elements <= tensor.storage.elements
}

fn global(machine: &Machine, id: Id) -> Result<Global, String> {
    match machine.node(id) {
        Node::Global(global) => Ok(*global),
        _ => Err("a call of something that is no global".into()),
    }
}

fn tuple<'a>(machine: &'a Machine, id: Id) -> Result<&'a [Id], String> {
    match machine.node(id) {
        Node::Tuple(items) if items.len() <= MAX_DIMENSIONS => Ok(items),
        Node::Tuple(items) => {
            Err(format!("a tuple of {} items where at most {MAX_DIMENSIONS} make sense", items.len()))
        }
        _ => Err("arguments that are no tuple".into()),
    }
}

fn sizes(machine: &Machine, id: Id) -> Result<Vec<u64>, String> {
    tuple(machine, id)?.iter().map(|&id| size(machine, id)).collect()
}

fn size(machine: &Machine, id: Id) -> Result<u64, String> {
    match machine.node(id) {
        Node::Int(size) => u64::try_from(*size).map_err(|_| format!("the negative size {size}")),
        _ => Err("a size that is no integer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(offset: u64, shape: &[u64], stride: &[u64]) -> TensorRef {
        let storage = Arc::new(Storage { key: "0".into(), dtype: DType::F32, elements: 16 });
        TensorRef { storage, offset, shape: shape.to_vec(), stride: stride.to_vec() }
    }

    #[test]
    fn a_view_fits_only_where_its_last_element_lies_in_the_storage() {
        for (offset, shape, stride) in [(0, [4, 4], [4, 1]), (12, [2, 2], [2, 1]), (16, [0, 4], [9, 9])] {
            assert!(fits(&view(offset, &shape, &stride)), "{offset} {shape:?} {stride:?}");
        }
        for (offset, shape, stride) in [
            (1, [4, 4], [4, 1]),
            (17, [0, 4], [1, 1]),
            (0, [17, 1], [0, 0]),
            (0, [1 << 32, 1 << 32], [0, 0]),
            (0, [1 << 40, 1 << 40], [1, 1]),
            (0, [2, 2], [u64::MAX, u64::MAX]),
            (0, [3, 3], [1 << 63, 1 << 63]),
            (u64::MAX, [2, 1], [1, 1]),
        ] {
            assert!(!fits(&view(offset, &shape, &stride)), "{offset} {shape:?} {stride:?}");
        }
    }

    #[test]
    fn a_storage_whose_bytes_overflow_fills_no_record() {
        assert!(fills(16, DType::F32, 64));
        assert!(!fills(16, DType::F32, 63));
        assert!(!fills((1 << 62) + 16, DType::F32, 64));
    }
}
