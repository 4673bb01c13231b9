//! Puts the entries of a flat state dict back to where they were: into dicts within dicts and lists.
//!
//! Invariant: the tree has one value for each entry and no gaps in its lists, so it is no larger than the entries.

use std::collections::HashMap;
use std::sync::Arc;

use crate::torch_pt::PtValue;

/// A tree in the making.
#[derive(Default)]
pub(super) struct ValueTree {
    items: Vec<(TreeKey, TreeNode)>,
    places: HashMap<TreeKey, usize>,
}

enum TreeNode {
    Value(PtValue),
    Inner(ValueTree),
}

/// The key of a dict, or a place in a list.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum TreeKey {
    Place(u64),
    Text(Arc<str>),
}

impl TreeKey {
    fn of(value: &PtValue) -> Result<TreeKey, String> {
        match value {
            PtValue::Str(text) => Ok(TreeKey::Text(Arc::clone(text))),
            PtValue::Int(place) if *place >= 0 => Ok(TreeKey::Place(*place as u64)),
            other => Err(format!("{} in its path", other.kind())),
        }
    }
}

impl ValueTree {
    /// Lays `value` at the end of `path`.
    pub(super) fn set(&mut self, path: &[PtValue], value: PtValue) -> Result<(), String> {
        let Some((last, parents)) = path.split_last() else { return Err("its path is empty".into()) };
        let mut at = self;
        for key in parents {
            let place = at.place(TreeKey::of(key)?);
            match at.items.get_mut(place) {
                Some((_, TreeNode::Inner(inner))) => at = inner,
                _ => return Err("its path leads through another entry".into()),
            }
        }
        let key = TreeKey::of(last)?;
        if at.places.contains_key(&key) {
            return Err("another entry has its path".into());
        }
        at.places.insert(key.clone(), at.items.len());
        at.items.push((key, TreeNode::Value(value)));
        Ok(())
    }

    /// The place of the item `key`, which is made where there is none.
    fn place(&mut self, key: TreeKey) -> usize {
        let next = self.items.len();
        let place = *self.places.entry(key.clone()).or_insert(next);
        if place == next {
            self.items.push((key, TreeNode::Inner(ValueTree::default())));
        }
        place
    }

    /// The whole as dicts and lists, `depth` levels of them at most.
    pub(super) fn into_value(mut self, depth: usize) -> Result<PtValue, String> {
        let Some(depth) = depth.checked_sub(1) else { return Err("entries within entries, too deep".into()) };
        let is_list = self.items.iter().any(|(key, _)| matches!(key, TreeKey::Place(_)));
        if is_list {
            self.items.sort_by(|a, b| a.0.cmp(&b.0));
        }
        let (mut list, mut dict) = (Vec::new(), Vec::new());
        for (key, node) in self.items {
            let value = match node {
                TreeNode::Value(value) => value,
                TreeNode::Inner(inner) => inner.into_value(depth)?,
            };
            match key {
                TreeKey::Text(_) if is_list => return Err("a list of entries with a name among its places".into()),
                TreeKey::Text(text) => dict.push((PtValue::Str(text), value)),
                TreeKey::Place(place) if place != list.len() as u64 => {
                    return Err("a list of entries with a gap".into());
                }
                TreeKey::Place(_) => list.push(value),
            }
        }
        Ok(if is_list { PtValue::List(list) } else { PtValue::Dict(dict) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_to_dicts_and_lists() {
        let text = |text: &str| PtValue::Str(text.into());
        let mut tree = ValueTree::default();
        tree.set(&[text("a"), PtValue::Int(1), text("lr")], PtValue::Int(5)).unwrap();
        tree.set(&[text("a"), PtValue::Int(0), text("lr")], PtValue::Int(4)).unwrap();
        tree.set(&[text("b")], PtValue::None).unwrap();
        assert!(tree.set(&[text("b")], PtValue::None).is_err());
        assert!(tree.set(&[text("b"), text("c")], PtValue::None).is_err());
        let value = tree.into_value(64).unwrap();
        let group = |rate| PtValue::Dict(vec![(text("lr"), PtValue::Int(rate))]);
        let list = PtValue::List(vec![group(4), group(5)]);
        assert_eq!(value, PtValue::Dict(vec![(text("a"), list), (text("b"), PtValue::None)]));
    }

    #[test]
    fn a_list_with_a_gap_and_a_path_that_is_too_deep_are_refused() {
        let mut tree = ValueTree::default();
        tree.set(&[PtValue::Int(0)], PtValue::None).unwrap();
        tree.set(&[PtValue::Int(1 << 40)], PtValue::None).unwrap();
        assert!(tree.into_value(64).unwrap_err().contains("gap"));
        let mut tree = ValueTree::default();
        tree.set(&vec![PtValue::Str("a".into()); 65], PtValue::None).unwrap();
        assert!(tree.into_value(64).is_err());
    }
}
