//! Huffman codes as the literals of a zstd block want them (RFC 8878, section 4.2).
//!
//! Invariant: a [`HuffmanCode`] is complete (its lengths fill the Kraft sum exactly), no code is longer than
//! [`MAX_BITS`], and there are 2 to [`MAX_SYMBOLS`] symbols, all with a code. A symbol is a value less the smallest
//! one. So the tree can always be described by plain 4-bit weights, and the entropy-coded form of the description is
//! not needed.

/// Longest code that zstd allows for literals.
pub(super) const MAX_BITS: usize = 11;
/// Most symbols that plain 4-bit weights are used for here: they allow 129, a table of 128 serves a vector look-up.
pub(super) const MAX_SYMBOLS: usize = 128;

/// A code for a range of byte values.
pub(super) struct HuffmanCode {
    /// By value; 0 outside the range.
    entries: [CodeEntry; 256],
    /// Smallest value; symbol 0.
    base: u8,
    symbols: usize,
    /// Length of the longest code.
    longest: usize,
}

/// A code in the high 24 bits and its length in the low 8. A shift by the whole number is a shift by the length, as the
/// processor only looks at the low bits.
#[derive(Clone, Copy, Default)]
pub(super) struct CodeEntry(pub u32);

impl CodeEntry {
    fn new(code: u16, length: usize) -> CodeEntry {
        CodeEntry(u32::from(code) << 8 | length as u32)
    }

    #[inline(always)]
    pub(super) fn code(self) -> u64 {
        u64::from(self.0 >> 8)
    }

    #[inline(always)]
    pub(super) fn length(self) -> u64 {
        u64::from(self.0 & 0xff)
    }
}

impl HuffmanCode {
    /// The best code of limited length for values from `base` on that occur `counts` times; a count of 0 is taken for
    /// 1, so that a value that a sample missed can be coded.
    pub(super) fn new(base: u8, counts: &[u32]) -> HuffmanCode {
        assert!((2..=MAX_SYMBOLS).contains(&counts.len()) && usize::from(base) + counts.len() <= 256);
        // Rarest first. A sort key holds the count and the symbol.
        let mut order = [0u64; MAX_SYMBOLS];
        let order = &mut order[..counts.len()];
        for (symbol, (key, &count)) in order.iter_mut().zip(counts).enumerate() {
            *key = u64::from(count.max(1)) << 8 | symbol as u64;
        }
        order.sort_unstable();
        let mut per_length = count_lengths(order);
        limit_lengths(&mut per_length);
        HuffmanCode::assign(base, order, &per_length)
    }

    /// Gives the longest codes to the rarest symbols, and the codes of a length in the order of the symbols: the
    /// longest code that is all zeros comes first, shorter ones follow.
    fn assign(base: u8, order: &[u64], per_length: &[usize; MAX_BITS + 1]) -> HuffmanCode {
        let mut lengths = [0usize; MAX_SYMBOLS];
        let mut next_code = [0u16; MAX_BITS + 1];
        let mut rarest_first = order.iter().map(|key| (key & 0xff) as usize);
        let mut code = 0;
        for length in (1..=MAX_BITS).rev() {
            next_code[length] = code;
            code = (code + per_length[length] as u16) >> 1;
            for symbol in rarest_first.by_ref().take(per_length[length]) {
                lengths[symbol] = length;
            }
        }
        let mut entries = [CodeEntry::default(); 256];
        for (entry, &length) in entries[usize::from(base)..].iter_mut().zip(&lengths[..order.len()]) {
            *entry = CodeEntry::new(next_code[length], length);
            next_code[length] += 1;
        }
        let longest = (1..=MAX_BITS).rev().find(|&length| per_length[length] > 0).unwrap_or(1);
        HuffmanCode { entries, base, symbols: order.len(), longest }
    }

    pub(super) fn base(&self) -> u8 {
        self.base
    }

    /// Of a value; empty outside the range.
    #[inline(always)]
    pub(super) fn entry(&self, value: u8) -> CodeEntry {
        self.entries[usize::from(value)]
    }

    /// Of the symbols, that is, of the values from the smallest to the largest.
    pub(super) fn entries(&self) -> &[CodeEntry] {
        &self.entries[usize::from(self.base)..][..self.symbols]
    }

    /// Appends the tree description: the weights of all symbols but the last, whose weight follows from the others.
    pub(super) fn describe(&self, out: &mut Vec<u8>) {
        let weight = |entry: &CodeEntry| (self.longest + 1) as u8 - entry.length() as u8;
        let listed = &self.entries()[..self.symbols - 1];
        out.push(127 + listed.len() as u8);
        for pair in listed.chunks(2) {
            out.push(weight(&pair[0]) << 4 | pair.get(1).map_or(0, weight));
        }
    }
}

/// How many codes of each length Huffman's algorithm gives; those over the limit are counted at the limit.
fn count_lengths(rarest_first: &[u64]) -> [usize; MAX_BITS + 1] {
    // Leaves, then inner nodes in the order they are made, which is the order of their counts: two queues.
    let leaves = rarest_first.len();
    let nodes = 2 * leaves - 1;
    let mut count = [0u64; 2 * MAX_SYMBOLS];
    let mut parent = [0usize; 2 * MAX_SYMBOLS];
    for (count, key) in count.iter_mut().zip(rarest_first) {
        *count = key >> 8;
    }
    let (mut leaf, mut inner) = (0, leaves);
    for node in leaves..nodes {
        for _ in 0..2 {
            let take_leaf = leaf < leaves && (inner == node || count[leaf] <= count[inner]);
            let rarest = if take_leaf { &mut leaf } else { &mut inner };
            count[node] += count[*rarest];
            parent[*rarest] = node;
            *rarest += 1;
        }
    }
    let mut depth = [0usize; 2 * MAX_SYMBOLS];
    let mut per_length = [0; MAX_BITS + 1];
    for node in (0..nodes - 1).rev() {
        depth[node] = depth[parent[node]] + 1;
        if node < leaves {
            per_length[depth[node].min(MAX_BITS)] += 1;
        }
    }
    per_length
}

/// Makes lengths that were cut at the limit into those of a complete code. Each turn takes a leaf of the longest length
/// away and hangs it beside the deepest of the shorter leaves, which moves down by one.
fn limit_lengths(per_length: &mut [usize; MAX_BITS + 1]) {
    let filled: usize = (1..=MAX_BITS).map(|length| per_length[length] << (MAX_BITS - length)).sum();
    for _ in 1 << MAX_BITS..filled {
        if let Some(deepest) = (1..MAX_BITS).rev().find(|&length| per_length[length] > 0) {
            per_length[MAX_BITS] -= 1;
            per_length[deepest] -= 1;
            per_length[deepest + 1] += 2;
        }
    }
}
