//! What a call of an allowed global gives: plain nodes, with every tensor held against its storage.

use std::sync::Arc;

use super::globals::{PickleGlobal, WRAPPER_SUBCLASS};
use super::heap::{HeapNode, HeapObject, NodeId, PickleHeap};
use super::value::{PtStorage, TensorRef};
use crate::safetensors::reader::MAX_DIMENSIONS;
use ckptd_core::dtype::DType;

/// `callee(*arguments)`.
pub(super) fn call(heap: &mut PickleHeap, callee: NodeId, arguments: NodeId) -> Result<NodeId, String> {
    if let HeapNode::Class(class) = heap.node(callee) {
        let class = if &**class == WRAPPER_SUBCLASS { wrapped_class(heap, arguments) } else { Arc::clone(class) };
        return Ok(heap.add(HeapNode::Object(Box::new(HeapObject { class, arguments, state: None }))));
    }
    let global = global(heap, callee)?;
    let items = tuple(heap, arguments)?.to_vec();
    match global {
        // The type of a tensor subclass does not matter; what it is rebuilt from does.
        PickleGlobal::RebuildFromType => match items.as_slice() {
            [function, _, arguments, ..] => {
                let function = self::global(heap, *function)?;
                let items = tuple(heap, *arguments)?.to_vec();
                construct(heap, function, &items)
            }
            _ => Err("a tensor without arguments".into()),
        },
        _ => construct(heap, global, &items),
    }
}

/// The class of a tensor that wraps others, which its first argument names.
fn wrapped_class(heap: &PickleHeap, arguments: NodeId) -> Arc<str> {
    let first = match heap.node(arguments) {
        HeapNode::Tuple(items) => items.first().map(|&id| heap.node(id)),
        _ => None,
    };
    match first {
        Some(HeapNode::Class(class)) => Arc::clone(class),
        _ => WRAPPER_SUBCLASS.into(),
    }
}

fn construct(heap: &mut PickleHeap, global: PickleGlobal, arguments: &[NodeId]) -> Result<NodeId, String> {
    match (global, arguments) {
        (PickleGlobal::RebuildTensor | PickleGlobal::RebuildTensorV2, [storage, offset, shape, stride, ..]) => {
            let tensor = tensor(heap, [*storage, *offset, *shape, *stride])?;
            Ok(heap.add(HeapNode::Tensor(Arc::new(tensor))))
        }
        (PickleGlobal::RebuildParameter, [tensor, ..]) => match heap.node(*tensor) {
            HeapNode::Tensor(_) => Ok(*tensor),
            _ => Err("a parameter that is no tensor".into()),
        },
        (PickleGlobal::Dict, [items]) => match heap.node(*items) {
            HeapNode::Dict(_) => Ok(*items),
            _ => Err("a dict made of something that is no dict".into()),
        },
        (PickleGlobal::Dict, []) | (PickleGlobal::DefaultDict, [] | [_]) => Ok(heap.add(HeapNode::Dict(Vec::new()))),
        (PickleGlobal::Collection | PickleGlobal::Size, [items]) => match heap.node(*items) {
            HeapNode::List(_) | HeapNode::Tuple(_) => Ok(*items),
            _ => Err("a collection made of something that is no list".into()),
        },
        (PickleGlobal::Collection | PickleGlobal::Size, []) => Ok(heap.add(HeapNode::List(Vec::new()))),
        (PickleGlobal::Record, []) => Ok(heap.add(HeapNode::Record(None))),
        (PickleGlobal::Opaque(kind), _) => Ok(heap.add(HeapNode::Other(kind))),
        (
            PickleGlobal::Class | PickleGlobal::Storage(_) | PickleGlobal::DType(_) | PickleGlobal::RebuildFromType,
            _,
        ) => Err("refusing to call a global that only names a type".into()),
        _ => Err("wrong arguments for a call".into()),
    }
}

/// The storage that a persistent id `("storage", type, key, location, elements)` names.
pub(super) fn storage(heap: &mut PickleHeap, id: NodeId) -> Result<Arc<PtStorage>, String> {
    let [tag, kind, key, _, elements] = *tuple(heap, id)? else {
        return Err("a persistent id that names no storage".into());
    };
    let (HeapNode::Str(tag), HeapNode::Global(kind), HeapNode::Str(key), HeapNode::Int(elements)) =
        (heap.node(tag), heap.node(kind), heap.node(key), heap.node(elements))
    else {
        return Err("a persistent id that names no storage".into());
    };
    let (PickleGlobal::Storage(dtype), "storage") = (*kind, &**tag) else {
        return Err("a persistent id that names no storage".into());
    };
    let elements = u64::try_from(*elements).map_err(|_| format!("storage {key} has a negative size"))?;
    let key = Arc::clone(key);
    if let Some(known) = heap.known_storage(&key) {
        return if known.dtype == dtype && known.elements == elements {
            Ok(Arc::clone(known))
        } else {
            Err(format!("storage {key} is described in two ways"))
        };
    }
    let bytes = heap.record_bytes(&key).ok_or_else(|| format!("storage {key:?} is not in the archive"))?;
    if !fills(elements, dtype, bytes) {
        return Err(format!("storage {key} is to hold {elements} values of {dtype}, but its record has {bytes} bytes"));
    }
    let storage = Arc::new(PtStorage { key, dtype, elements });
    heap.remember_storage(Arc::clone(&storage));
    Ok(storage)
}

/// Whether so many elements take exactly `bytes`.
fn fills(elements: u64, dtype: DType, bytes: u64) -> bool {
    elements.checked_mul(dtype.size() as u64) == Some(bytes)
}

fn tensor(heap: &mut PickleHeap, [storage, offset, shape, stride]: [NodeId; 4]) -> Result<TensorRef, String> {
    heap.count_tensor()?;
    let HeapNode::Storage(storage) = heap.node(storage) else { return Err("a tensor without a storage".into()) };
    let storage = Arc::clone(storage);
    let (shape, stride) = (sizes(heap, shape)?, sizes(heap, stride)?);
    let offset = size(heap, offset)?;
    if shape.len() != stride.len() {
        return Err(format!("a tensor of shape {shape:?} with the strides {stride:?}"));
    }
    let tensor = TensorRef { storage, offset, shape, stride };
    if fits(&tensor) {
        Ok(tensor)
    } else {
        Err(format!(
            "a tensor of shape {:?}, strides {:?} from element {offset} does not lie within storage {}, which holds {}",
            tensor.shape, tensor.stride, tensor.storage.key, tensor.storage.elements
        ))
    }
}

/// Whether the first and the last element lie in the storage. A stride of zero makes a tensor of any size from one
/// value: who takes its bytes holds its size against the storage's.
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
    last.is_some_and(|last| last < tensor.storage.elements)
}

fn global(heap: &PickleHeap, id: NodeId) -> Result<PickleGlobal, String> {
    match heap.node(id) {
        HeapNode::Global(global) => Ok(*global),
        _ => Err("a call of something that is no global".into()),
    }
}

fn tuple<'a>(heap: &'a PickleHeap, id: NodeId) -> Result<&'a [NodeId], String> {
    match heap.node(id) {
        HeapNode::Tuple(items) if items.len() <= MAX_DIMENSIONS => Ok(items),
        HeapNode::Tuple(items) => {
            Err(format!("a tuple of {} items where at most {MAX_DIMENSIONS} make sense", items.len()))
        }
        _ => Err("arguments that are no tuple".into()),
    }
}

fn sizes(heap: &PickleHeap, id: NodeId) -> Result<Vec<u64>, String> {
    tuple(heap, id)?.iter().map(|&id| size(heap, id)).collect()
}

fn size(heap: &PickleHeap, id: NodeId) -> Result<u64, String> {
    match heap.node(id) {
        HeapNode::Int(size) => u64::try_from(*size).map_err(|_| format!("the negative size {size}")),
        _ => Err("a size that is no integer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(offset: u64, shape: &[u64], stride: &[u64]) -> TensorRef {
        let storage = Arc::new(PtStorage { key: "0".into(), dtype: DType::F32, elements: 16 });
        TensorRef { storage, offset, shape: shape.to_vec(), stride: stride.to_vec() }
    }

    #[test]
    fn a_view_fits_only_where_its_last_element_lies_in_the_storage() {
        let within = [(0, [4, 4], [4, 1]), (12, [2, 2], [2, 1]), (16, [0, 4], [9, 9]), (0, [17, 1], [0, 0])];
        for (offset, shape, stride) in within {
            assert!(fits(&view(offset, &shape, &stride)), "{offset} {shape:?} {stride:?}");
        }
        for (offset, shape, stride) in [
            (1, [4, 4], [4, 1]),
            (17, [0, 4], [1, 1]),
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
