//! The pickle machine: interprets the op-codes that `torch.save` emits (protocols 2 to 5) over plain nodes.
//!
//! Invariant: no op-code can do more than append a node to an arena or a number to a list, and the number of op-codes
//! is bounded, so memory is bounded too, and no shape of the data makes this recursive. Globals outside the allow-list
//! and op-codes outside this file are refused by name. The semantics are those of CPython's `pickle.py`.
//! Deliberately not here: what a global stands for (globals), the tree that callers see (tree).

use std::collections::HashMap;
use std::sync::Arc;

use super::globals::{self, REFUSING};
use super::heap::{HeapNode, NodeId, PickleHeap, StorageBytes};
use super::object;
use crate::limits::ReadLimits;

pub(super) struct PickleMachine<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<NodeId>,
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
    heap: PickleHeap<'a>,
    text_bytes: u64,
    max_text_bytes: u64,
}

/// Runs the pickle; returns the nodes and the last value. Errors name the op-code and its place.
pub(super) fn run(
    input: &[u8],
    storage_bytes: StorageBytes,
    limits: &ReadLimits,
) -> Result<(Vec<HeapNode>, NodeId), String> {
    if input.first() != Some(&0x80) {
        return Err("it does not begin as a pickle of protocol 2 or later".into());
    }
    let mut machine = PickleMachine::new(input, storage_bytes, limits);
    for _ in 0..limits.pickle_opcodes {
        let start = machine.at;
        let result = machine.byte().and_then(|op| match op {
            b'.' => machine.pop().map(Some),
            _ => machine.step(op).map(|()| None),
        });
        if machine.held() > limits.pickle_nodes {
            return Err(format!("more than {} values at once (at byte {start})", limits.pickle_nodes));
        }
        match result {
            Ok(Some(last)) => return Ok((machine.heap.into_nodes(), last)),
            Ok(None) => {}
            Err(what) => return Err(format!("{what} (at byte {start})")),
        }
    }
    Err(format!("more than {} op-codes", limits.pickle_opcodes))
}

impl<'a> PickleMachine<'a> {
    fn new(input: &'a [u8], storage_bytes: StorageBytes<'a>, limits: &ReadLimits) -> PickleMachine<'a> {
        PickleMachine {
            input,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            heap: PickleHeap::new(storage_bytes, limits.tensors),
            text_bytes: 0,
            max_text_bytes: limits.pickle_text_bytes,
        }
    }
}

impl PickleMachine<'_> {
    /// How many entries its memory has.
    fn held(&self) -> usize {
        self.heap.len() + self.stack.len() + self.marks.len() + self.memo.len()
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                version => Err(format!("refusing pickle protocol {version}")),
            },
            // A frame only says how much a reader may read ahead.
            0x95 => {
                if self.u64()? <= (self.input.len() - self.at) as u64 {
                    Ok(())
                } else {
                    Err("a frame that is longer than the pickle".into())
                }
            }
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => self.top().map(|id| self.stack.push(id)),
            b'q' => self.byte().and_then(|index| self.put(u32::from(index))),
            b'r' => self.u32().and_then(|index| self.put(index)),
            0x94 => self.put(self.memo.len() as u32),
            b'h' => self.byte().and_then(|index| self.get(u32::from(index))),
            b'j' => self.u32().and_then(|index| self.get(index)),
            _ => match self.scalar(op)? {
                Some(node) => self.push(node),
                None => self.container_or_object(op),
            },
        }
    }

    /// Numbers, text and bytes.
    fn scalar(&mut self, op: u8) -> Result<Option<HeapNode>, String> {
        Ok(Some(match op {
            b'N' => HeapNode::None,
            0x88 => HeapNode::Bool(true),
            0x89 => HeapNode::Bool(false),
            b'K' => HeapNode::Int(i64::from(self.byte()?)),
            b'M' => HeapNode::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => HeapNode::Int(i64::from(i32::from_le_bytes(self.array()?))),
            0x8a => self.byte().and_then(|length| self.long(u64::from(length)))?,
            0x8b => self.u32().and_then(|length| self.long(u64::from(length)))?,
            b'G' => HeapNode::Float(f64::from_be_bytes(self.array()?)),
            b'X' => self.u32().and_then(|length| self.text(u64::from(length)))?,
            0x8c => self.byte().and_then(|length| self.text(u64::from(length)))?,
            0x8d => self.u64().and_then(|length| self.text(length))?,
            b'C' => self.byte().and_then(|length| self.blob(u64::from(length)))?,
            b'B' => self.u32().and_then(|length| self.blob(u64::from(length)))?,
            0x8e | 0x96 => self.u64().and_then(|length| self.blob(length))?,
            _ => return Ok(None),
        }))
    }

    fn container_or_object(&mut self, op: u8) -> Result<(), String> {
        match op {
            b')' => self.push(HeapNode::Tuple(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(op - 0x84))?;
                self.push(HeapNode::Tuple(items))
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(HeapNode::Tuple(items))
            }
            // Sets become lists: nothing here tells them apart.
            b']' | 0x8f => self.push(HeapNode::List(Vec::new())),
            b'}' => self.push(HeapNode::Dict(Vec::new())),
            0x91 => {
                let items = self.pop_to_mark()?;
                self.push(HeapNode::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.extend_dict(&items)
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(&module, &name)
            }
            0x93 => {
                let names = self.pop_many(2)?;
                match (self.heap.node(names[0]), self.heap.node(names[1])) {
                    (HeapNode::Str(module), HeapNode::Str(name)) => {
                        let (module, name) = (Arc::clone(module), Arc::clone(name));
                        self.push_global(&module, &name)
                    }
                    _ => Err("a global whose name is not text".into()),
                }
            }
            b'R' | 0x81 => {
                let call = self.pop_many(2)?;
                let result = object::call(&mut self.heap, call[0], call[1])?;
                self.stack.push(result);
                Ok(())
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                match self.heap.node_mut(target) {
                    // Attributes of a state dict (`_metadata`) or of a parameter carry no state.
                    Some(HeapNode::Dict(_) | HeapNode::Tensor(_)) => Ok(()),
                    Some(HeapNode::Record(attributes)) => {
                        *attributes = Some(state);
                        Ok(())
                    }
                    Some(HeapNode::Object(object)) => {
                        object.state = Some(state);
                        Ok(())
                    }
                    _ => Err("refusing to set attributes of something that is no dict and no tensor".into()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = object::storage(&mut self.heap, id)?;
                self.push(HeapNode::Storage(storage))
            }
            _ => Err(format!("refusing op-code {}", opcode_name(op))),
        }
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), String> {
        if let Some(global) = globals::lookup(module, name) {
            return self.push(HeapNode::Global(global));
        }
        let global = format!("{module}.{name}");
        if globals::is_data(&global) { self.push(HeapNode::Class(global.into())) } else { Err(self.refuse(&global)) }
    }

    /// Why `global` is refused: where it stands, and what to do.
    fn refuse(&self, global: &str) -> String {
        const READ: &str = "only what state dicts are made of is read, nothing is executed";
        let shown: String = global.chars().take(200).collect();
        match self.entry() {
            None => format!("{REFUSING} {shown}: {READ}; save model.state_dict(), not the model"),
            Some(entry) => {
                let entry: String = entry.chars().take(200).collect();
                format!(
                    "{REFUSING} {shown}: the entry {entry:?} holds an object of it; {READ}. Save the file again \
                     without that entry, or with plain numbers and text in it"
                )
            }
        }
    }

    /// The key, in the outermost dict, of the value that is being made.
    fn entry(&self) -> Option<&str> {
        let text = |id: NodeId| match self.heap.node(id) {
            HeapNode::Str(text) => Some(&**text),
            _ => None,
        };
        self.stack.first().filter(|&&id| matches!(self.heap.node(id), HeapNode::Dict(_)))?;
        match self.marks.as_slice() {
            // Between a mark after the dict and the next one stand keys and values in turn.
            [1, rest @ ..] => {
                let end = rest.first().copied().unwrap_or(self.stack.len());
                self.stack.get(1..end)?.iter().step_by(2).filter_map(|&id| text(id)).next_back()
            }
            _ => text(*self.stack.get(1)?),
        }
    }

    fn extend_list(&mut self, items: Vec<NodeId>) -> Result<(), String> {
        let target = self.top()?;
        self.heap.extend_list(target, items)
    }

    fn extend_dict(&mut self, items: &[NodeId]) -> Result<(), String> {
        let target = self.top()?;
        match self.heap.node_mut(target) {
            Some(HeapNode::Dict(dict)) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            Some(HeapNode::Object(_)) => Ok(()),
            Some(HeapNode::Dict(_)) => Err("a key without a value".into()),
            _ => Err("keys and values for something that is no dict".into()),
        }
    }

    fn put(&mut self, index: u32) -> Result<(), String> {
        let id = self.top()?;
        self.memo.insert(index, id);
        Ok(())
    }

    fn get(&mut self, index: u32) -> Result<(), String> {
        let id = *self.memo.get(&index).ok_or_else(|| format!("memo {index} is used before it is set"))?;
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, node: HeapNode) -> Result<(), String> {
        let id = self.heap.add(node);
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Result<NodeId, String> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("the stack is empty".into()),
        }
    }

    /// Values below the last mark are out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<NodeId, String> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<NodeId>, String> {
        match self.stack.len().checked_sub(count) {
            Some(at) if at >= self.floor() => Ok(self.stack.split_off(at)),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<NodeId>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    /// Two's complement, little-endian, of any length.
    fn long(&mut self, length: u64) -> Result<HeapNode, String> {
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Ok(HeapNode::Other("a very large number"));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(HeapNode::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, length: u64) -> Result<HeapNode, String> {
        let bytes = self.take(length)?;
        // Python writes lone surrogates, which are no UTF-8; no name in a state dict has any.
        let text = std::str::from_utf8(bytes).map(|text| HeapNode::Str(text.into()));
        self.text_bytes += length;
        if self.text_bytes > self.max_text_bytes {
            return Err(format!("more than {} bytes of text", self.max_text_bytes));
        }
        text.map_err(|_| "text that is not UTF-8".into())
    }

    fn blob(&mut self, length: u64) -> Result<HeapNode, String> {
        self.take(length).map(|_| HeapNode::Other("bytes"))
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let length = rest.iter().take(1024).position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = self.take(length as u64)?.to_vec();
        self.take(1)?;
        String::from_utf8(line).map_err(|_| "a name that is not UTF-8".into())
    }

    fn take(&mut self, length: u64) -> Result<&[u8], String> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let range = self.at..end.unwrap_or(usize::MAX);
        let bytes = self.input.get(range.clone()).ok_or("the pickle ends in the middle of a value")?;
        self.at = range.end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?.try_into().map_err(|_| "the pickle ends in the middle of a value".into())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The name in CPython's `pickletools` of an op-code that is refused.
fn opcode_name(op: u8) -> String {
    let name = match op {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'l' => "LIST",
        b'g' => "GET",
        b'p' => "PUT",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x92 => "NEWOBJ_EX",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("0x{op:02x}"),
    };
    name.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_length_up_to_the_largest_number_takes_no_more_than_there_is() {
        let limits = ReadLimits::default();
        let mut machine = PickleMachine::new(b"\x80\x02N.", &|_| None, &limits);
        machine.take(1).unwrap();
        for length in [4, u64::MAX - 1, u64::MAX] {
            assert!(machine.take(length).is_err(), "{length}");
        }
        assert_eq!(machine.take(3).unwrap(), b"\x02N.");
    }
}
