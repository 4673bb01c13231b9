//! From the machine's nodes, which may share and even contain themselves, to the tree that callers see.
//!
//! Invariant: the tree is as deep and as large as the caps allow and no more, whatever the nodes refer to; a dict has
//! no text key twice.

use std::collections::HashSet;
use std::sync::Arc;

use super::globals::PickleGlobal;
use super::heap::{HeapNode, HeapObject, NodeId};
use super::value::{PtOpaque, PtValue};
use crate::limits::ReadLimits;

/// The tree of `root`. `objects` says whether what objects of others are made from is part of it.
pub(super) fn build(nodes: &[HeapNode], root: NodeId, objects: bool, limits: &ReadLimits) -> Result<PtValue, String> {
    TreeBuilder { nodes, values: 0, objects, limits }.value(root, 0)
}

struct TreeBuilder<'a> {
    nodes: &'a [HeapNode],
    values: usize,
    objects: bool,
    limits: &'a ReadLimits,
}

impl TreeBuilder<'_> {
    fn value(&mut self, id: NodeId, depth: usize) -> Result<PtValue, String> {
        self.values += 1;
        if self.values > self.limits.pickle_values {
            return Err(format!("more than {} values", self.limits.pickle_values));
        }
        if depth > self.limits.pickle_depth {
            return Err(format!("values within values more than {} deep", self.limits.pickle_depth));
        }
        let nodes = self.nodes;
        Ok(match nodes.get(id as usize).ok_or("a value that was never made")? {
            HeapNode::None => PtValue::None,
            HeapNode::Bool(truth) => PtValue::Bool(*truth),
            HeapNode::Int(number) => PtValue::Int(*number),
            HeapNode::Float(number) => PtValue::Float(*number),
            HeapNode::Str(text) => PtValue::Str(Arc::clone(text)),
            HeapNode::Other(kind) => PtValue::Other(kind),
            HeapNode::List(items) => PtValue::List(self.items(items, depth)?),
            HeapNode::Tuple(items) => PtValue::Tuple(self.items(items, depth)?),
            HeapNode::Dict(items) => PtValue::Dict(self.dict(items, depth)?),
            HeapNode::Record(Some(state)) => self.value(*state, depth + 1)?,
            HeapNode::Record(None) => PtValue::Dict(Vec::new()),
            HeapNode::LongList => PtValue::Other("a very long list of numbers"),
            HeapNode::Class(_) => PtValue::Other("a type"),
            HeapNode::Object(object) => PtValue::Object(Arc::new(self.object(object, depth)?)),
            HeapNode::Tensor(tensor) => PtValue::Tensor(Arc::clone(tensor)),
            HeapNode::Global(PickleGlobal::DType(dtype)) => PtValue::DType(*dtype),
            HeapNode::Global(_) => PtValue::Other("a type"),
            HeapNode::Storage(_) => PtValue::Other("a storage"),
        })
    }

    fn object(&mut self, object: &HeapObject, depth: usize) -> Result<PtOpaque, String> {
        let class = Arc::clone(&object.class);
        if !self.objects {
            return Ok(PtOpaque { class, arguments: PtValue::None, state: PtValue::None });
        }
        let arguments = self.value(object.arguments, depth + 1)?;
        let state = object.state.map_or(Ok(PtValue::None), |state| self.value(state, depth + 1))?;
        Ok(PtOpaque { class, arguments, state })
    }

    fn items(&mut self, items: &[NodeId], depth: usize) -> Result<Vec<PtValue>, String> {
        items.iter().map(|&id| self.value(id, depth + 1)).collect()
    }

    fn dict(&mut self, items: &[(NodeId, NodeId)], depth: usize) -> Result<Vec<(PtValue, PtValue)>, String> {
        let mut seen = HashSet::new();
        let mut dict = Vec::new();
        for &(key, value) in items {
            let key = self.value(key, depth + 1)?;
            if let PtValue::Str(name) = &key
                && !seen.insert(Arc::clone(name))
            {
                return Err(format!("the key {name:?} occurs twice in a dict"));
            }
            let value = self.value(value, depth + 1).map_err(|what| match &key {
                PtValue::Str(name) if depth == 0 => format!("{what} in the entry {name:?}"),
                _ => what,
            })?;
            dict.push((key, value));
        }
        Ok(dict)
    }
}
