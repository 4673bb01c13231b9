//! What a `.pt` file says, as plain data.

use std::sync::Arc;

use ckptd_core::dtype::DType;

/// A value of the pickle. Containers are trees: a shared one occurs once for each place that names it.
#[derive(Clone, Debug, PartialEq)]
pub enum PtValue {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Vec<PtValue>),
    Tuple(Vec<PtValue>),
    /// In the order of the file; keys of text are unique.
    Dict(Vec<(PtValue, PtValue)>),
    Tensor(Arc<TensorRef>),
    DType(DType),
    /// An object of a class of others, which was never made.
    Object(Arc<PtOpaque>),
    /// Something harmless that no state needs (bytes, a device, a complex or very large number), by its kind.
    Other(&'static str),
}

/// An object of a class that is not known here: its name, and where it was asked for what it would be made from.
#[derive(Clone, Debug, PartialEq)]
pub struct PtOpaque {
    /// With its module.
    pub class: Arc<str>,
    /// What it is called with.
    pub arguments: PtValue,
    /// What its attributes are set from.
    pub state: PtValue,
}

/// A view of a storage. `open` has checked that all of it lies within the storage.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRef {
    pub storage: Arc<PtStorage>,
    /// First element, counted in elements of the storage.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Distance of neighbours along each dimension, in elements.
    pub stride: Vec<u64>,
}

/// A run of elements in the file; tensors that share one are views of the same memory.
#[derive(Clone, Debug, PartialEq)]
pub struct PtStorage {
    pub key: Arc<str>,
    pub dtype: DType,
    pub elements: u64,
}

impl TensorRef {
    /// The row-major tensor of this shape that fills a storage.
    pub fn contiguous(storage: Arc<PtStorage>, shape: Vec<u64>) -> TensorRef {
        let mut stride = vec![1u64; shape.len()];
        for i in (1..shape.len()).rev() {
            stride[i - 1] = stride[i].saturating_mul(shape[i].max(1));
        }
        TensorRef { storage, offset: 0, shape, stride }
    }

    /// Number of elements. It does not overflow: `open` has seen to that.
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

impl PtValue {
    /// The entry of a dict under a key of text.
    pub fn get(&self, key: &str) -> Option<&PtValue> {
        let PtValue::Dict(items) = self else { return None };
        items.iter().find_map(|(name, value)| match name {
            PtValue::Str(name) if &**name == key => Some(value),
            _ => None,
        })
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            PtValue::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            PtValue::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// A float, or an integer as one: Python writes `1` and `1.0` alike.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            PtValue::Float(number) => Some(*number),
            PtValue::Int(number) => Some(*number as f64),
            _ => None,
        }
    }

    pub fn as_object(&self) -> Option<&PtOpaque> {
        match self {
            PtValue::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The items of a list or a tuple.
    pub fn as_items(&self) -> Option<&[PtValue]> {
        match self {
            PtValue::List(items) | PtValue::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_dict(&self) -> Option<&[(PtValue, PtValue)]> {
        match self {
            PtValue::Dict(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_tensor(&self) -> Option<&Arc<TensorRef>> {
        match self {
            PtValue::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// Whether a tensor is in it, however deep.
    pub fn has_tensors(&self) -> bool {
        match self {
            PtValue::Tensor(_) => true,
            PtValue::List(items) | PtValue::Tuple(items) => items.iter().any(PtValue::has_tensors),
            PtValue::Dict(items) => items.iter().any(|(key, value)| key.has_tensors() || value.has_tensors()),
            _ => false,
        }
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &str {
        match self {
            PtValue::None => "None",
            PtValue::Bool(_) => "a bool",
            PtValue::Int(_) => "an int",
            PtValue::Float(_) => "a float",
            PtValue::Str(_) => "a str",
            PtValue::List(_) => "a list",
            PtValue::Tuple(_) => "a tuple",
            PtValue::Dict(_) => "a dict",
            PtValue::Tensor(_) => "a tensor",
            PtValue::DType(_) => "a dtype",
            PtValue::Object(object) => &object.class,
            PtValue::Other(kind) => kind,
        }
    }
}
