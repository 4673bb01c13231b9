//! The values that a pickle has made so far: nodes that name each other by number, and the storages they refer to.
//!
//! Invariant: nodes are only added, so a node's number stays its own. Deliberately not here: the op-codes that make
//! nodes (machine), the calls that make tensors (object).

use std::collections::HashMap;
use std::sync::Arc;

use super::globals::PickleGlobal;
use super::value::{PtStorage, TensorRef};

/// The number of a node.
pub(super) type NodeId = u32;

/// A value, which may share and even contain other nodes.
pub(super) enum HeapNode {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    /// Something harmless without meaning for a state, by its kind.
    Other(&'static str),
    List(Vec<NodeId>),
    Tuple(Vec<NodeId>),
    Dict(Vec<(NodeId, NodeId)>),
    /// An instance of a data class: what its attributes were set to, a dict or a tuple.
    Record(Option<NodeId>),
    Global(PickleGlobal),
    Storage(Arc<PtStorage>),
    Tensor(Arc<TensorRef>),
}

/// Size in bytes of the record of a storage, by its key.
pub(super) type StorageBytes<'a> = &'a dyn Fn(&str) -> Option<u64>;

pub(super) struct PickleHeap<'a> {
    nodes: Vec<HeapNode>,
    tensors: usize,
    max_tensors: usize,
    storages: HashMap<Arc<str>, Arc<PtStorage>>,
    storage_bytes: StorageBytes<'a>,
}

impl<'a> PickleHeap<'a> {
    pub(super) fn new(storage_bytes: StorageBytes<'a>, max_tensors: usize) -> PickleHeap<'a> {
        PickleHeap { nodes: Vec::new(), tensors: 0, max_tensors, storages: HashMap::new(), storage_bytes }
    }

    pub(super) fn add(&mut self, node: HeapNode) -> NodeId {
        // Each op-code adds one node at most, so the index fits by far.
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }

    /// The node of this number, `None` of the pickle for a number that was never given.
    pub(super) fn node(&self, id: NodeId) -> &HeapNode {
        self.nodes.get(id as usize).unwrap_or(&HeapNode::None)
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> Option<&mut HeapNode> {
        self.nodes.get_mut(id as usize)
    }

    pub(super) fn into_nodes(self) -> Vec<HeapNode> {
        self.nodes
    }

    /// Counts one tensor more, or refuses it where there are too many.
    pub(super) fn count_tensor(&mut self) -> Result<(), String> {
        if self.tensors >= self.max_tensors {
            return Err(format!("more than {} tensors", self.max_tensors));
        }
        self.tensors += 1;
        Ok(())
    }

    pub(super) fn known_storage(&self, key: &str) -> Option<&Arc<PtStorage>> {
        self.storages.get(key)
    }

    pub(super) fn remember_storage(&mut self, storage: Arc<PtStorage>) {
        self.storages.insert(Arc::clone(&storage.key), storage);
    }

    /// Bytes of the archive's record for a storage, where there is one.
    pub(super) fn record_bytes(&self, key: &str) -> Option<u64> {
        (self.storage_bytes)(key)
    }
}
