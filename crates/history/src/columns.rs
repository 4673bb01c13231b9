//! Rows of steps as columns, each packed by what it is like.
//!
//! Steps and times mostly grow evenly, learning rates follow a smooth curve, tokens stay the same: what is left of them
//! is a fraction of a byte. Losses and norms are noise in their lower bytes, which nothing makes smaller.

use crate::bytes::{ByteSink, ByteSource, Malformed};
use crate::record::StepRow;

/// Most rows of one block.
pub const MAX_ROWS: usize = 1 << 20;

/// Whether the rows have gradient norms.
const NONE: u8 = 0;
const ALL: u8 = 1;
const SOME: u8 = 2;

/// The rows as bytes, not compressed yet.
pub fn encode(rows: &[StepRow]) -> Vec<u8> {
    let mut sink = ByteSink::default();
    sink.number(rows.len() as u64);
    sink.second_differences(rows.iter().map(|row| row.step));
    sink.second_differences(rows.iter().map(|row| row.at_ms as u64));
    sink.floats(&rows.iter().map(|row| row.loss).collect::<Vec<_>>());
    sink.second_differences(rows.iter().map(|row| u64::from(row.learning_rate.to_bits())));
    let norms: Vec<f32> = rows.iter().filter_map(|row| row.grad_norm).collect();
    match norms.len() {
        0 => sink.0.push(NONE),
        n if n == rows.len() => sink.0.push(ALL),
        _ => {
            sink.0.push(SOME);
            sink.block(&rows.iter().map(|row| u8::from(row.grad_norm.is_some())).collect::<Vec<_>>());
        }
    }
    sink.floats(&norms);
    sink.differences(rows.iter().map(|row| row.micros));
    sink.differences(rows.iter().map(|row| row.tokens));
    sink.0
}

/// The rows in bytes that [`encode`] made.
///
/// # Errors
/// What is wrong with them, as a clause.
pub fn decode(bytes: &[u8]) -> Result<Vec<StepRow>, Malformed> {
    let mut source = ByteSource(bytes);
    let count =
        usize::try_from(source.number()?).ok().filter(|n| *n <= MAX_ROWS).ok_or("it says to have too many rows")?;
    let steps = source.second_differences(count)?;
    let times = source.second_differences(count)?;
    let losses = source.floats(count)?;
    let rates = source.second_differences(count)?;
    let norms = norms(&mut source, count)?;
    let micros = source.differences(count)?;
    let tokens = source.differences(count)?;
    let row = |n: usize| StepRow {
        step: steps[n],
        at_ms: times[n] as i64,
        loss: losses[n],
        learning_rate: f32::from_bits(rates[n] as u32),
        grad_norm: norms[n],
        micros: micros[n],
        tokens: tokens[n],
    };
    Ok((0..count).map(row).collect())
}

fn norms(source: &mut ByteSource<'_>, count: usize) -> Result<Vec<Option<f32>>, Malformed> {
    let (kind, rest) = source.0.split_first().ok_or("it ends before its gradient norms")?;
    source.0 = rest;
    let is_there = match *kind {
        NONE => vec![false; count],
        ALL => vec![true; count],
        SOME => source.block()?.iter().map(|said| *said == 1).collect(),
        _ => return Err("its gradient norms are of an unknown kind"),
    };
    let said = is_there.iter().filter(|said| **said).count();
    if is_there.len() != count {
        return Err("a column in it has another length");
    }
    let mut norms = source.floats(said)?.into_iter();
    Ok(is_there.into_iter().map(|said| if said { norms.next() } else { None }).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<StepRow>> {
        let row =
            (any::<u64>(), any::<i64>(), -1e30f32..1e30, 0f32..1.0, any::<Option<u16>>(), any::<u64>(), any::<u64>());
        let row = row.prop_map(|(step, at_ms, loss, learning_rate, norm, micros, tokens)| StepRow {
            step,
            at_ms,
            loss,
            learning_rate,
            grad_norm: norm.map(f32::from),
            micros,
            tokens,
        });
        proptest::collection::vec(row, 0..40)
    }

    proptest! {
        #[test]
        fn rows_come_back_to_the_bit(rows in rows()) {
            prop_assert_eq!(decode(&encode(&rows)).unwrap(), rows);
        }

        #[test]
        fn changed_bytes_are_rows_or_refused(rows in rows(), at in any::<Index>(), byte in any::<u8>()) {
            let mut bytes = encode(&rows);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes);
            let _ = decode(&bytes[..at]);
        }
    }
}
