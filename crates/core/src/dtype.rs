//! Element types of tensors, and what can be done with elements without knowing what they mean.
//!
//! Invariant: bytes are little-endian, and every conversion to a wider type is exact. Loops have no early exit, so that
//! they vectorise. Deliberately not here: shapes and names (`snapshot`), encoding (`codec`).

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Element type of a tensor, named as safetensors names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Signed, 8 bytes.
    I64,
    /// Signed, 4 bytes.
    I32,
    /// Signed, 2 bytes.
    I16,
    /// Signed, 1 byte.
    I8,
    /// Unsigned, 1 byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// As safetensors spells it.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I16 => "I16",
            DType::I8 => "I8",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The elements of `bytes` as doubles, in their order: exact but for integers beyond 2^53, which are rounded. Bytes
/// after the last whole element are left out. Takes eight bytes per element, so give it a block at a time.
pub fn numbers(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|element| one(*element)).collect()
    }
    match dtype {
        DType::F64 => each(bytes, f64::from_le_bytes),
        DType::F32 => each(bytes, |b| f32::from_le_bytes(b).into()),
        DType::F16 => each(bytes, |b| f16::from_le_bytes(b).into()),
        DType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).into()),
        DType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        DType::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        DType::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        DType::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        DType::U8 | DType::Bool => each(bytes, |b: [u8; 1]| b[0].into()),
    }
}

/// Whether no element is infinite or NaN; integers always are finite.
pub fn all_finite(dtype: DType, bytes: &[u8]) -> bool {
    // An exponent of all ones is an infinity or a NaN.
    let has_other = match dtype {
        DType::F32 => bytes.chunks_exact(4).fold(false, |found, b| {
            let exponent = u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000;
            found | (exponent == 0x7f80_0000)
        }),
        DType::BF16 => {
            bytes.chunks_exact(2).fold(false, |found, b| found | (u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80))
        }
        DType::F16 => {
            bytes.chunks_exact(2).fold(false, |found, b| found | (u16::from_le_bytes([b[0], b[1]]) & 0x7c00 == 0x7c00))
        }
        DType::F64 => bytes.as_chunks().0.iter().fold(false, |found, b| found | !f64::from_le_bytes(*b).is_finite()),
        DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::Bool => false,
    };
    !has_other
}

/// Writes the elements of `source` to `target` as float32, exactly; `target` has 4 bytes per element. `None`, and
/// nothing is written, where `from` is not F32, F16 or BF16.
pub fn widen_into(target: &mut [u8], from: DType, source: &[u8]) -> Option<()> {
    fn each(target: &mut [u8], source: &[u8], one: impl Fn([u8; 2]) -> f32) {
        for (value, element) in target.as_chunks_mut::<4>().0.iter_mut().zip(source.as_chunks::<2>().0) {
            *value = one(*element).to_le_bytes();
        }
    }
    match from {
        DType::F32 => target.copy_from_slice(source),
        DType::F16 => each(target, source, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(target, source, |b| bf16::from_le_bytes(b).to_f32()),
        _ => return None,
    }
    Some(())
}

/// The elements of `bytes` as `to`: exact where that is wider, rounded to the nearest even where it is narrower. `None`
/// where both are not among F32, F16 and BF16, or are F16 and BF16.
pub fn convert(bytes: &[u8], from: DType, to: DType) -> Option<Vec<u8>> {
    fn narrow(bytes: &[u8], one: impl Fn(f32) -> [u8; 2]) -> Vec<u8> {
        let mut narrowed = Vec::with_capacity(bytes.len() / 2);
        for element in bytes.as_chunks::<4>().0 {
            narrowed.extend_from_slice(&one(f32::from_le_bytes(*element)));
        }
        narrowed
    }
    match (from, to) {
        _ if from == to => Some(bytes.to_vec()),
        (_, DType::F32) => {
            let mut wide = vec![0; bytes.len() / from.size() * DType::F32.size()];
            widen_into(&mut wide, from, bytes).map(|()| wide)
        }
        (DType::F32, DType::BF16) => Some(narrow(bytes, |x| bf16::from_f32(x).to_le_bytes())),
        (DType::F32, DType::F16) => Some(narrow(bytes, |x| f16::from_f32(x).to_le_bytes())),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_every_value_and_narrowing_undoes_it() {
        for narrow in [DType::BF16, DType::F16] {
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let wide = convert(&all, narrow, DType::F32).unwrap();
            assert_eq!(wide.len(), 2 * all.len());
            let (here, there) = (numbers(narrow, &all), numbers(DType::F32, &wide));
            assert!(here.iter().zip(&there).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())));
            let back = convert(&wide, DType::F32, narrow).unwrap();
            for (bits, b) in (0..=u16::MAX).zip(back.as_chunks::<2>().0) {
                let (was, is) = (bits, u16::from_le_bytes(*b));
                // A signalling NaN comes back quiet.
                let nan = if narrow == DType::F16 { bits & 0x7fff > 0x7c00 } else { bits & 0x7fff > 0x7f80 };
                assert!(was == is || nan, "{was:#x} {is:#x}");
            }
        }
        assert!(convert(&[0; 8], DType::F64, DType::F32).is_none());
        assert!(convert(&[0; 8], DType::F16, DType::BF16).is_none());
    }

    #[test]
    fn narrowing_rounds_to_the_nearest_even() {
        let one = |x: f32, to| convert(&x.to_le_bytes(), DType::F32, to).unwrap();
        assert_eq!(one(1.0 + 1.0 / 256.0, DType::BF16), bf16::from_f32(1.0).to_le_bytes());
        assert_eq!(one(1.0 + 3.0 / 256.0, DType::BF16), bf16::from_f32(1.0 + 4.0 / 256.0).to_le_bytes());
        assert_eq!(one(70000.0, DType::F16), f16::INFINITY.to_le_bytes());
    }

    #[test]
    fn finite_is_what_is_neither_infinite_nor_nan_for_every_16_bit_float() {
        for dtype in [DType::F16, DType::BF16] {
            for bits in 0..=u16::MAX {
                let bytes = [[0; 2], bits.to_le_bytes()].concat();
                assert_eq!(all_finite(dtype, &bytes), numbers(dtype, &bytes)[1].is_finite(), "{dtype} {bits:#x}");
            }
        }
        for (x, finite) in [(f64::MAX, true), (f64::NAN, false), (f64::NEG_INFINITY, false)] {
            assert_eq!(all_finite(DType::F64, &x.to_le_bytes()), finite);
            assert_eq!(all_finite(DType::F32, &(x as f32).to_le_bytes()), finite && (x as f32).is_finite());
        }
        assert!(all_finite(DType::I16, &[0xff; 4]));
    }
}
