//! Values as tensors of a training have them, and others, made from a seed.

use crate::dtype::DType;

/// A small generator of our own keeps the data of a failing case reproducible from its seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal: the sum of uniform numbers.
    pub(super) fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.unit()).sum::<f64>() * 2.0 - 6.0
    }
}

/// What a tensor's values look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    Noise,
    Weights,
    Squares,
    Moments,
    SquaredMoments,
    Rounded,
    FewValues,
    Constant,
    WideRange,
    Specials,
}

pub(super) const LOOKS: [Look; 10] = [
    Look::Noise,
    Look::Weights,
    Look::Squares,
    Look::Moments,
    Look::SquaredMoments,
    Look::Rounded,
    Look::FewValues,
    Look::Constant,
    Look::WideRange,
    Look::Specials,
];

/// The value at a place of a tensor that looks so.
fn value(look: Look, random: &mut Random, row: u64, column: u64) -> f32 {
    let scale = |seed: u64| 2f64.powf(6.0 * Random(seed).normal() / 3.0);
    let structured = 1e-6 * scale(row * 2 + 1) * scale(column * 2);
    match look {
        Look::Noise => f32::from_bits(random.bits() as u32),
        Look::Weights => 0.02 * random.normal() as f32,
        Look::Squares => random.normal().powi(2) as f32,
        Look::Moments => (structured * random.normal()) as f32,
        Look::SquaredMoments => (structured * random.normal().powi(2)) as f32,
        Look::Rounded => f32::from_bits((random.normal() as f32).to_bits() & 0xffff_0000),
        Look::FewValues => [0.0, 1.0, -1.0, 0.5][(random.bits() % 64).min(3) as usize],
        Look::Constant => -0.0,
        Look::WideRange => 2f64.powf(random.unit() * 250.0 - 125.0) as f32,
        Look::Specials => {
            let specials = [0, 0x8000_0000, 1, 0x8000_0001, 0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0xffff_ffff];
            match random.bits() % 9 {
                special @ 0..8 => f32::from_bits(specials[special as usize]),
                _ => random.normal() as f32,
            }
        }
    }
}

/// `elements` of a tensor of this type as bytes.
pub(super) fn chunk(look: Look, dtype: DType, elements: usize, row: u64, first: u64, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut raw = Vec::with_capacity(elements * dtype.size());
    for i in first..first + elements as u64 {
        let value = value(look, &mut random, i / row.max(1), i % row.max(1));
        match dtype {
            DType::F64 => raw.extend(f64::from(value).to_le_bytes()),
            DType::F32 => raw.extend(value.to_le_bytes()),
            DType::F16 | DType::BF16 => raw.extend(((value.to_bits() >> 16) as u16).to_le_bytes()),
            _ => raw.extend(&(value.to_bits() as u64 >> 7).to_le_bytes()[..dtype.size()]),
        }
    }
    raw
}
