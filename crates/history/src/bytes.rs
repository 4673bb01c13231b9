//! Numbers as few bytes: variable lengths, differences, and the bytes of floats by their place.
//!
//! Invariant: a reader takes no more from a number that it reads than the bytes that are there.

/// That bytes are not what was written; the text is a clause.
pub type Malformed = &'static str;

/// Bytes that grow.
#[derive(Debug, Default)]
pub struct ByteSink(pub Vec<u8>);

impl ByteSink {
    /// A whole number in 1 to 10 bytes, small ones in few.
    pub fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Bytes, with their number.
    pub fn block(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Each number as its difference to the one before.
    pub fn differences(&mut self, values: impl Iterator<Item = u64>) {
        let (mut column, mut before) = (ByteSink::default(), 0u64);
        for value in values {
            column.number(zigzag(value.wrapping_sub(before)));
            before = value;
        }
        self.block(&column.0);
    }

    /// Each number as the change of its difference: what grows evenly becomes zeros.
    pub fn second_differences(&mut self, values: impl Iterator<Item = u64>) {
        let mut before = 0u64;
        let differences = values.map(|value| {
            let difference = value.wrapping_sub(before);
            before = value;
            difference
        });
        self.differences(differences);
    }

    /// Floats, byte by byte of their place: the first bytes of all, then the second ones.
    pub fn floats(&mut self, values: &[f32]) {
        let planes =
            [24, 16, 8, 0].into_iter().flat_map(|shift| values.iter().map(move |v| (v.to_bits() >> shift) as u8));
        self.block(&planes.collect::<Vec<u8>>());
    }
}

/// Bytes that are read.
#[derive(Debug)]
pub struct ByteSource<'a>(pub &'a [u8]);

impl<'a> ByteSource<'a> {
    /// What [`ByteSink::number`] wrote.
    ///
    /// # Errors
    /// Where the bytes end within it, or it is too long.
    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("it ends within a number")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number in it is too long")
    }

    /// What [`ByteSink::block`] wrote.
    ///
    /// # Errors
    /// Where there are fewer bytes.
    pub fn block(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| "it ends within a block")?;
        let (block, rest) = self.0.split_at_checked(length).ok_or("it ends within a block")?;
        self.0 = rest;
        Ok(block)
    }

    /// What [`ByteSink::differences`] wrote.
    ///
    /// # Errors
    /// Where these are not `count` numbers.
    pub fn differences(&mut self, count: usize) -> Result<Vec<u64>, Malformed> {
        let mut column = ByteSource(self.block()?);
        // Each takes a byte at least.
        if column.0.len() < count {
            return Err("a column in it is too short");
        }
        let (mut values, mut before) = (Vec::with_capacity(count), 0u64);
        for _ in 0..count {
            before = before.wrapping_add(unzigzag(column.number()?));
            values.push(before);
        }
        Ok(values)
    }

    /// What [`ByteSink::second_differences`] wrote.
    ///
    /// # Errors
    /// As [`ByteSource::differences`].
    pub fn second_differences(&mut self, count: usize) -> Result<Vec<u64>, Malformed> {
        let mut values = self.differences(count)?;
        let mut before = 0u64;
        for value in &mut values {
            before = before.wrapping_add(*value);
            *value = before;
        }
        Ok(values)
    }

    /// What [`ByteSink::floats`] wrote.
    ///
    /// # Errors
    /// Where these are not `count` floats.
    pub fn floats(&mut self, count: usize) -> Result<Vec<f32>, Malformed> {
        let bytes = self.block()?;
        if bytes.len() != count * 4 {
            return Err("a column in it has another length");
        }
        let (high, low) = bytes.split_at(count * 2);
        let ((a, b), (c, d)) = (high.split_at(count), low.split_at(count));
        let pairs = a.iter().zip(b).zip(c.iter().zip(d));
        Ok(pairs.map(|((a, b), (c, d))| f32::from_be_bytes([*a, *b, *c, *d])).collect())
    }
}

/// A difference as a number that is small where the difference is, whatever its sign.
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ (((difference as i64) >> 63) as u64)
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(values in vec(any::<u64>(), 0..50)) {
            let mut sink = ByteSink::default();
            sink.differences(values.iter().copied());
            sink.second_differences(values.iter().copied());
            let mut source = ByteSource(&sink.0);
            prop_assert_eq!(source.differences(values.len()).unwrap(), values.clone());
            prop_assert_eq!(source.second_differences(values.len()).unwrap(), values);
            prop_assert!(source.0.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..100), count in 0..1000usize) {
            let _ = ByteSource(&bytes).differences(count);
            let _ = ByteSource(&bytes).second_differences(count);
            let _ = ByteSource(&bytes).floats(count);
        }
    }
}
