//! What a `.pt` file says, as plain data.

use std::sync::Arc;

use ckptd_core::dtype::DType;

/// A value of the pickle. Containers are trees: a shared one occurs once for each place that names it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// In the order of the file; keys of text are unique.
    Dict(Vec<(Value, Value)>),
    Tensor(Arc<TensorRef>),
    DType(DType),
    /// Something harmless that no state needs (bytes, a device, a complex or very large number), by its kind.
    Other(&'static str),
}

/// A view of a storage. `open` has checked that all of it lies within the storage.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRef {
    pub storage: Arc<Storage>,
    /// First element, counted in elements of the storage.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Distance of neighbours along each dimension, in elements.
    pub stride: Vec<u64>,
}

/// A run of elements in the file; tensors that share one are views of the same memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    pub key: Arc<str>,
    pub dtype: DType,
    pub elements: u64,
}

impl TensorRef {
    /// Number of elements. It fits: `open` has held it against the storage.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Row-major without gaps, so that its bytes are one range of the storage.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.elements() == 0
            || self.shape.iter().zip(&self.stride).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == expected;
                expected *= size;
                fits
            })
    }
}

impl Value {
    /// The entry of a dict under a key of text.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Dict(items) = self else { return None };
        items.iter().find_map(|(name, value)| match name {
            Value::Str(name) if &**name == key => Some(value),
            _ => None,
        })
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// A float, or an integer as one: Python writes `1` and `1.0` alike.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(number) => Some(*number),
            Value::Int(number) => Some(*number as f64),
            _ => None,
        }
    }

    /// The items of a list or a tuple.
    pub fn as_items(&self) -> Option<&[Value]> {
        match self {
            Value::List(items) | Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_dict(&self) -> Option<&[(Value, Value)]> {
        match self {
            Value::Dict(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_tensor(&self) -> Option<&Arc<TensorRef>> {
        match self {
            Value::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Str(_) => "a str",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dict",
            Value::Tensor(_) => "a tensor",
            Value::DType(_) => "a dtype",
            Value::Other(kind) => kind,
        }
    }
}
