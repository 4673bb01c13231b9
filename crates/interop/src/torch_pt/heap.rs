//! The values that a pickle has made so far: nodes that name each other by number, and the storages they refer to.
//!
//! Invariant: nodes are only added, so a node's number stays its own. Deliberately not here: the op-codes that make
//! nodes (machine), the calls that make tensors (object).

use std::collections::HashMap;
use std::sync::Arc;

use super::globals::PickleGlobal;
use super::value::{PtStorage, TensorRef};

/// The longest list whose numbers are all kept.
const MAX_KEPT_NUMBERS: usize = 1 << 16;

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
    /// So many plain numbers that their values are not kept.
    LongList,
    /// A class of others, by its full name.
    Class(Arc<str>),
    Object(Box<HeapObject>),
    Global(PickleGlobal),
    Storage(Arc<PtStorage>),
    Tensor(Arc<TensorRef>),
}

/// An object of a class of others, which is never made: what it would be made from.
pub(super) struct HeapObject {
    pub class: Arc<str>,
    pub arguments: NodeId,
    pub state: Option<NodeId>,
}

impl HeapNode {
    fn is_number(&self) -> bool {
        matches!(self, HeapNode::Int(_) | HeapNode::Float(_) | HeapNode::Bool(_))
    }
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

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Adds `items` to a list. Where the list is long already and they are numbers that only it has, they are counted
    /// and let go: the order of a data set may have many millions.
    pub(super) fn extend_list(&mut self, list: NodeId, mut items: Vec<NodeId>) -> Result<(), String> {
        let first = self.nodes.len() - items.len().min(self.nodes.len());
        let newest = items.iter().enumerate().all(|(i, &id)| id as usize == first + i);
        let numbers = newest && self.nodes[first..].iter().all(HeapNode::is_number);
        match self.node_mut(list) {
            Some(HeapNode::List(held)) if held.len() < MAX_KEPT_NUMBERS || !numbers => held.append(&mut items),
            Some(node @ HeapNode::List(_)) => {
                *node = HeapNode::LongList;
                self.nodes.truncate(first);
            }
            Some(HeapNode::LongList) if numbers => self.nodes.truncate(first),
            // What is put into an object of others, or beside numbers without end, is not looked at.
            Some(HeapNode::LongList | HeapNode::Object(_)) => {}
            _ => return Err("items for something that is no list".into()),
        }
        Ok(())
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
