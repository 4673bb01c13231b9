//! From the machine's nodes, which may share and even contain themselves, to the tree that callers see.
//!
//! Invariant: the tree is as deep and as large as the caps allow and no more, whatever the nodes refer to; a dict has
//! no text key twice.

use std::collections::HashSet;
use std::sync::Arc;

use super::globals::Global;
use super::machine::{Id, Node};
use super::value::Value;
use crate::limits::ReadLimits;

pub(super) fn build(nodes: &[Node], root: Id, limits: &ReadLimits) -> Result<Value, String> {
    Builder { nodes, values: 0, limits }.value(root, 0)
}

struct Builder<'a> {
    nodes: &'a [Node],
    values: usize,
    limits: &'a ReadLimits,
}

impl Builder<'_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<Value, String> {
        self.values += 1;
        if self.values > self.limits.pickle_values {
            return Err(format!("more than {} values", self.limits.pickle_values));
        }
        if depth > self.limits.pickle_depth {
            return Err(format!("values within values more than {} deep", self.limits.pickle_depth));
        }
        let nodes = self.nodes;
        Ok(match nodes.get(id as usize).ok_or("a value that was never made")? {
            Node::None => Value::None,
            Node::Bool(truth) => Value::Bool(*truth),
            Node::Int(number) => Value::Int(*number),
            Node::Float(number) => Value::Float(*number),
            Node::Str(text) => Value::Str(Arc::clone(text)),
            Node::Other(kind) => Value::Other(kind),
            Node::List(items) => Value::List(self.items(items, depth)?),
            Node::Tuple(items) => Value::Tuple(self.items(items, depth)?),
            Node::Dict(items) => Value::Dict(self.dict(items, depth)?),
            Node::Tensor(tensor) => Value::Tensor(Arc::clone(tensor)),
            Node::Global(Global::DType(dtype)) => Value::DType(*dtype),
            Node::Global(_) => Value::Other("a type"),
            Node::Storage(_) => Value::Other("a storage"),
        })
    }

    fn items(&mut self, items: &[Id], depth: usize) -> Result<Vec<Value>, String> {
        items.iter().map(|&id| self.value(id, depth + 1)).collect()
    }

    fn dict(&mut self, items: &[(Id, Id)], depth: usize) -> Result<Vec<(Value, Value)>, String> {
        let mut seen = HashSet::new();
        let mut dict = Vec::new();
        for &(key, value) in items {
            let key = self.value(key, depth + 1)?;
            if let Value::Str(name) = &key
                && !seen.insert(Arc::clone(name))
            {
                return Err(format!("the key {name:?} occurs twice in a dict"));
            }
            dict.push((key, self.value(value, depth + 1)?));
        }
        Ok(dict)
    }
}
