//! Between float types: exactly where the target is wider, to the nearest even where it is narrower.

use half::{bf16, f16};

use ckptd_core::snapshot::DType;

/// The same values as `to`. `None` where that makes no sense: other than floats, or float64, which does not fit.
pub fn convert(bytes: &[u8], from: DType, to: DType) -> Option<Vec<u8>> {
    let wide = |b: &[u8; 2]| u16::from_le_bytes(*b);
    Some(match (from, to) {
        _ if from == to => bytes.to_vec(),
        (DType::BF16, DType::F32) => each(bytes, |b| bf16::from_bits(wide(b)).to_f32().to_le_bytes()),
        (DType::F16, DType::F32) => each(bytes, |b| f16::from_bits(wide(b)).to_f32().to_le_bytes()),
        (DType::F32, DType::BF16) => each(bytes, |b| bf16::from_f32(f32::from_le_bytes(*b)).to_le_bytes()),
        (DType::F32, DType::F16) => each(bytes, |b| f16::from_f32(f32::from_le_bytes(*b)).to_le_bytes()),
        _ => return None,
    })
}

fn each<const N: usize, const M: usize>(bytes: &[u8], mut one: impl FnMut(&[u8; N]) -> [u8; M]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() / N * M);
    for value in bytes.as_chunks::<N>().0 {
        out.extend_from_slice(&one(value));
    }
    out
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
            let back = convert(&wide, DType::F32, narrow).unwrap();
            for (bits, b) in (0..=u16::MAX).zip(back.as_chunks::<2>().0) {
                let (was, is) = (bits, u16::from_le_bytes(*b));
                // A signalling NaN comes back quiet.
                let nan = if narrow == DType::F16 { bits & 0x7fff > 0x7c00 } else { bits & 0x7fff > 0x7f80 };
                assert!(was == is || nan, "{was:#x} {is:#x}");
            }
        }
        assert!(convert(&[0; 8], DType::F64, DType::F32).is_none());
    }

    #[test]
    fn narrowing_rounds_to_the_nearest_even() {
        let one = |x: f32, to| convert(&x.to_le_bytes(), DType::F32, to).unwrap();
        assert_eq!(one(1.0 + 1.0 / 256.0, DType::BF16), bf16::from_f32(1.0).to_le_bytes());
        assert_eq!(one(1.0 + 3.0 / 256.0, DType::BF16), bf16::from_f32(1.0 + 4.0 / 256.0).to_le_bytes());
        assert_eq!(one(70000.0, DType::F16), f16::INFINITY.to_le_bytes());
    }
}
