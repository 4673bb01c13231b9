//! Buckets: what many steps were like, in a few figures.
//!
//! Invariant: a bucket of two is the same whether it was made of their rows or of the two. Losses that are not finite
//! are counted and enter no figure.

use crate::bytes::{ByteSink, ByteSource, Malformed};
use crate::record::StepRow;

/// A figure over some steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least.
    pub min: f32,
    /// The greatest.
    pub max: f32,
    /// The sum of all.
    pub sum: f64,
    /// How many have it.
    pub count: u64,
}

impl Default for Range {
    fn default() -> Range {
        Range { min: f32::INFINITY, max: f32::NEG_INFINITY, sum: 0.0, count: 0 }
    }
}

impl Range {
    fn add(&mut self, value: f32) {
        if value.is_finite() {
            self.merge(&Range { min: value, max: value, sum: f64::from(value), count: 1 });
        }
    }

    fn merge(&mut self, other: &Range) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.count += other.count;
    }

    /// The mean; `None` where no step has it.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// What some steps in a row were like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bucket {
    /// How many they are.
    pub rows: u64,
    /// The first of them.
    pub first_step: u64,
    /// The last of them.
    pub last_step: u64,
    /// When the first one was heard of.
    pub first_ms: i64,
    /// When the last one was.
    pub last_ms: i64,
    /// Their losses.
    pub loss: Range,
    /// Their gradient norms.
    pub grad_norm: Range,
    /// The learning rate of the last one.
    pub learning_rate: f32,
    /// Their tokens.
    pub tokens: u64,
    /// The time that they took.
    pub micros: u64,
}

impl Bucket {
    /// Takes `row` in, which follows on what is there.
    pub fn add(&mut self, row: &StepRow) {
        if self.rows == 0 {
            (self.first_step, self.first_ms) = (row.step, row.at_ms);
        }
        self.rows += 1;
        (self.last_step, self.last_ms, self.learning_rate) = (row.step, row.at_ms, row.learning_rate);
        self.loss.add(row.loss);
        row.grad_norm.into_iter().for_each(|norm| self.grad_norm.add(norm));
        self.tokens = self.tokens.saturating_add(row.tokens);
        self.micros = self.micros.saturating_add(row.micros);
    }

    /// Takes `other` in, which follows on what is there.
    pub fn merge(&mut self, other: &Bucket) {
        if self.rows == 0 {
            *self = other.clone();
            return;
        }
        self.rows += other.rows;
        (self.last_step, self.last_ms, self.learning_rate) = (other.last_step, other.last_ms, other.learning_rate);
        self.loss.merge(&other.loss);
        self.grad_norm.merge(&other.grad_norm);
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.micros = self.micros.saturating_add(other.micros);
    }

    /// Their speed.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.micros > 0).then(|| self.tokens as f64 * 1e6 / self.micros as f64)
    }
}

/// Rows as buckets of `size` each.
pub fn of_rows(rows: &[StepRow], size: usize) -> Vec<Bucket> {
    let bucket = |rows: &[StepRow]| {
        let mut bucket = Bucket::default();
        rows.iter().for_each(|row| bucket.add(row));
        bucket
    };
    rows.chunks(size).map(bucket).collect()
}

/// At most `count` buckets of these, neighbours taken together.
pub fn at_most(buckets: &[Bucket], count: usize) -> Vec<Bucket> {
    let merged = |part: &[Bucket]| {
        let mut bucket = Bucket::default();
        part.iter().for_each(|other| bucket.merge(other));
        bucket
    };
    buckets.chunks(buckets.len().div_ceil(count.max(1)).max(1)).map(merged).collect()
}

/// Buckets as bytes.
pub fn encode(buckets: &[Bucket]) -> Vec<u8> {
    let mut sink = ByteSink::default();
    sink.number(buckets.len() as u64);
    let numbers: [fn(&Bucket) -> u64; 9] = [
        |b| b.rows,
        |b| b.first_step,
        |b| b.last_step,
        |b| b.first_ms as u64,
        |b| b.last_ms as u64,
        |b| b.tokens,
        |b| b.micros,
        |b| b.loss.count,
        |b| b.grad_norm.count,
    ];
    for number in numbers {
        sink.differences(buckets.iter().map(number));
    }
    let floats: [fn(&Bucket) -> f32; 7] = [
        |b| b.loss.min,
        |b| b.loss.max,
        |b| b.loss.mean().unwrap_or(0.0) as f32,
        |b| b.grad_norm.min,
        |b| b.grad_norm.max,
        |b| b.grad_norm.mean().unwrap_or(0.0) as f32,
        |b| b.learning_rate,
    ];
    for float in floats {
        sink.floats(&buckets.iter().map(float).collect::<Vec<_>>());
    }
    sink.0
}

/// The buckets in bytes that [`encode`] made; means come back as 32-bit floats.
///
/// # Errors
/// What is wrong with them, as a clause.
pub fn decode(bytes: &[u8]) -> Result<Vec<Bucket>, Malformed> {
    let mut source = ByteSource(bytes);
    let count =
        usize::try_from(source.number()?).ok().filter(|n| *n <= bytes.len()).ok_or("it says to have too much")?;
    let mut numbers = Vec::new();
    for _ in 0..9 {
        numbers.push(source.differences(count)?);
    }
    let mut floats = Vec::new();
    for _ in 0..7 {
        floats.push(source.floats(count)?);
    }
    let range = |n: usize, at: usize, count: u64| Range {
        min: floats[at][n],
        max: floats[at + 1][n],
        sum: f64::from(floats[at + 2][n]) * count as f64,
        count,
    };
    let bucket = |n: usize| Bucket {
        rows: numbers[0][n],
        first_step: numbers[1][n],
        last_step: numbers[2][n],
        first_ms: numbers[3][n] as i64,
        last_ms: numbers[4][n] as i64,
        tokens: numbers[5][n],
        micros: numbers[6][n],
        loss: range(n, 0, numbers[7][n]),
        grad_norm: range(n, 3, numbers[8][n]),
        learning_rate: floats[6][n],
    };
    Ok((0..count).map(bucket).collect())
}
