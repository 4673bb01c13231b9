//! What the header of a GGUF file says: typed values under keys.

use ckptd_core::dtype::DType;

/// What every file has, unless it says otherwise: tensors begin at multiples of this.
pub(super) const ALIGNMENT: u64 = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// The first bytes of every file.
pub const MAGIC: &[u8] = b"GGUF";
/// The types of tensors that are read and written, with their numbers in the file.
pub(super) const TYPES: [(u32, DType); 3] = [(0, DType::F32), (1, DType::F16), (30, DType::BF16)];

/// A value of the header.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    /// Values of one type.
    Array(Vec<GgufValue>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl GgufValue {
    /// A whole number from 0, of whatever width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            GgufValue::U8(number) => Some(number.into()),
            GgufValue::U16(number) => Some(number.into()),
            GgufValue::U32(number) => Some(number.into()),
            GgufValue::U64(number) => Some(number),
            GgufValue::I8(number) => number.try_into().ok(),
            GgufValue::I16(number) => number.try_into().ok(),
            GgufValue::I32(number) => number.try_into().ok(),
            GgufValue::I64(number) => number.try_into().ok(),
            _ => None,
        }
    }

    /// A number. One of 32 bits is taken for the shortest decimal that it stands for: 1e-5 is 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            GgufValue::F32(number) => number.to_string().parse().ok(),
            GgufValue::F64(number) => Some(*number),
            other => other.as_u64().map(|number| number as f64),
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            GgufValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&[GgufValue]> {
        match self {
            GgufValue::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The number of its type in the file.
    pub(super) fn kind(&self) -> u32 {
        match self {
            GgufValue::U8(_) => 0,
            GgufValue::I8(_) => 1,
            GgufValue::U16(_) => 2,
            GgufValue::I16(_) => 3,
            GgufValue::U32(_) => 4,
            GgufValue::I32(_) => 5,
            GgufValue::F32(_) => 6,
            GgufValue::Bool(_) => 7,
            GgufValue::Text(_) => 8,
            GgufValue::Array(_) => 9,
            GgufValue::U64(_) => 10,
            GgufValue::I64(_) => 11,
            GgufValue::F64(_) => 12,
        }
    }
}
