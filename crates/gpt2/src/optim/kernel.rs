//! The update on the CPU: one pass over the memory of parameters, moments and gradients, on all of the job's threads.
//!
//! The same generic code is compiled for AVX-512, AVX2 and the baseline, and chosen at run time. Rust contracts no
//! multiplication and addition, division and square root are exact to rounding, and so all of them give the same bits.

use ckptd_core::{Error, Result};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::coefficients::UpdateCoefficients;
use crate::capture::UpdateSpan;

/// Elements of a block: its four or seven streams of 64 KiB fit the second-level cache. The gradient's norm is a sum
/// over these blocks in order, so that another size is another arithmetic.
pub const NORM_BLOCK: usize = 16 * 1024;

/// Independent partial sums of a block's norm.
const LANES: usize = 16;

/// A part of one tensor: where its parameter and moments are read and written, its gradient, its figures.
pub(super) struct UpdateBlock<'a> {
    state: [Option<UpdateSpan>; 3],
    gradient: &'a [f32],
    coefficients: UpdateCoefficients,
}

impl<'a> UpdateBlock<'a> {
    /// The blocks of a tensor: `state` is its parameter and its moments, as many as the rule has.
    pub(super) fn split(
        state: [Option<UpdateSpan>; 3],
        gradient: &'a [f32],
        coefficients: UpdateCoefficients,
    ) -> Result<impl Iterator<Item = UpdateBlock<'a>>> {
        if state.iter().flatten().any(|span| span.elements != gradient.len()) {
            return Err(Error::Other("a gradient is not of its parameter's size".into()));
        }
        let part = move |index: usize, gradient: &'a [f32]| {
            let offset = index * NORM_BLOCK;
            let state = state.map(|span| {
                span.map(|span| UpdateSpan {
                    source: span.source.wrapping_add(offset),
                    target: span.target.wrapping_add(offset),
                    elements: gradient.len(),
                })
            });
            UpdateBlock { state, gradient, coefficients }
        };
        Ok(gradient.chunks(NORM_BLOCK).enumerate().map(move |(index, gradient)| part(index, gradient)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum VectorWidth {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Baseline,
}

pub(super) struct UpdateKernels {
    pool: ThreadPool,
    width: VectorWidth,
}

impl UpdateKernels {
    pub(super) fn new(threads: usize) -> Result<UpdateKernels> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("ckptd-update-{n}")).build();
        let pool = pool.map_err(|e| Error::Other(format!("starting {threads} threads for the update: {e}")))?;
        Ok(UpdateKernels { pool, width: VectorWidth::best() })
    }

    /// The sum of squares of each block.
    pub(super) fn squares(&self, blocks: &[&[f32]]) -> Vec<f64> {
        self.pool.install(|| blocks.par_iter().map(|block| self.width.squares(block)).collect())
    }

    pub(super) fn update(&self, blocks: &[UpdateBlock<'_>]) {
        self.pool.install(|| blocks.par_iter().for_each(|block| self.width.update(block)));
    }
}

impl VectorWidth {
    fn best() -> VectorWidth {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return VectorWidth::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return VectorWidth::Avx2;
            }
        }
        VectorWidth::Baseline
    }

    fn squares(self, values: &[f32]) -> f64 {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` has found the instructions.
            VectorWidth::Avx512 => unsafe { squares_avx512(values) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            VectorWidth::Avx2 => unsafe { squares_avx2(values) },
            VectorWidth::Baseline => squares(values),
        }
    }

    fn update(self, block: &UpdateBlock<'_>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `best` has found the instructions.
            VectorWidth::Avx512 => unsafe { update_avx512(block) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            VectorWidth::Avx2 => unsafe { update_avx2(block) },
            VectorWidth::Baseline => update(block),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
fn squares_avx512(values: &[f32]) -> f64 {
    squares(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn squares_avx2(values: &[f32]) -> f64 {
    squares(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
fn update_avx512(block: &UpdateBlock<'_>) {
    update(block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn update_avx2(block: &UpdateBlock<'_>) {
    update(block);
}

/// The sum of squares, as [`LANES`] interleaved sums of doubles that are added up at the end.
#[inline(always)]
fn squares(values: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value) * f64::from(value);
    }
    sums.iter().sum()
}

#[inline(always)]
fn update(block: &UpdateBlock<'_>) {
    match (block.coefficients, block.state) {
        (UpdateCoefficients::Sgd { lr, momentum, decay, scale }, [Some(p), None, None]) => {
            let _ = momentum;
            each(block.gradient, [p], |g, [p]| [p - lr * (g * scale + decay * p)]);
        }
        (UpdateCoefficients::Sgd { lr, momentum, decay, scale }, [Some(p), Some(b), None]) => {
            each(block.gradient, [p, b], |g, [p, b]| {
                let b = momentum * b + (g * scale + decay * p);
                [p - lr * b, b]
            });
        }
        (
            UpdateCoefficients::AdamW { keep, beta1, beta2, step_size, root_scale, eps, scale },
            [Some(p), Some(m), Some(v)],
        ) => {
            let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
            each(block.gradient, [p, m, v], |g, [p, m, v]| {
                let g = g * scale;
                let m = beta1 * m + rest1 * g;
                let v = beta2 * v + rest2 * (g * g);
                [p * keep - step_size * (m / (v.sqrt() * root_scale + eps)), m, v]
            });
        }
        // `ModelOptimizer` pairs each rule with its moments.
        _ => {}
    }
}

/// Runs `rule` on every element: from the gradient and the N values of the state to the N new ones.
///
/// Each group of [`LANES`] elements is read as a whole before it is written, so that the compiler may use vectors
/// although source and target may be the same.
#[inline(always)]
fn each<const N: usize>(gradient: &[f32], spans: [UpdateSpan; N], rule: impl Fn(f32, [f32; N]) -> [f32; N]) {
    let (groups, rest) = gradient.as_chunks::<LANES>();
    for (index, gradients) in groups.iter().enumerate() {
        let mut values = [[0f32; LANES]; N];
        for (values, span) in values.iter_mut().zip(&spans) {
            // SAFETY: every span has as many elements as the gradient, and this block has them to itself.
            *values = unsafe { span.source.cast::<[f32; LANES]>().add(index).read() };
        }
        for (lane, &g) in gradients.iter().enumerate() {
            let new = rule(g, std::array::from_fn(|n| values[n][lane]));
            for (values, new) in values.iter_mut().zip(new) {
                values[lane] = new;
            }
        }
        for (values, span) in values.iter().zip(&spans) {
            // SAFETY: as above.
            unsafe { span.target.cast::<[f32; LANES]>().add(index).write(*values) };
        }
    }
    for (index, &g) in (groups.len() * LANES..).zip(rest) {
        // SAFETY: as above.
        unsafe {
            let new = rule(g, spans.map(|span| *span.source.add(index)));
            for (span, value) in spans.iter().zip(new) {
                *span.target.add(index) = value;
            }
        }
    }
}
