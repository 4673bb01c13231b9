//! How much of a stranger's file is read: the caps that a file's size alone does not give.
//!
//! Invariant: every reader takes them as a parameter and holds a file against them before it allocates. The default is
//! what ckptd uses; tests lower single limits to show each guard with a small file.

/// The caps of all readers. A model of ten thousand tensors stays far below each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    pub zip_entries: u64,
    pub zip_directory_bytes: u64,
    pub pickle_bytes: u64,
    /// A state dict takes about 30 op-codes per tensor, an order of a data set one for each of its samples.
    pub pickle_opcodes: usize,
    /// Entries of the pickle machine's memory at one time.
    pub pickle_nodes: usize,
    /// All texts of a pickle.
    pub pickle_text_bytes: u64,
    /// Values of the tree that a pickle makes; one that is referred to twice counts twice.
    pub pickle_values: usize,
    /// Containers within containers.
    pub pickle_depth: usize,
    /// Tensors of one `.pt` or safetensors file.
    pub tensors: usize,
    /// How often a byte of a `.pt` file may occur in the tensors that are taken from it. Tied weights share a storage;
    /// a file whose tensors are many times its own size is made up.
    pub sharing: u64,
    /// The header of a safetensors file; one of ten thousand tensors takes about 1 MiB.
    pub header_bytes: u64,
    /// Files of weights that an index may name.
    pub shards: usize,
    pub bundle_files: usize,
    /// Weights hardly shrink: what unpacks to many times its size, and to more than `expansion_bytes`, is made up.
    pub expansion: u64,
    pub expansion_bytes: u64,
    /// Binary logarithm of the largest zstd window: 32 MiB is beyond what levels up to 19 use.
    pub zstd_window_log: u32,
}

impl Default for ReadLimits {
    fn default() -> ReadLimits {
        ReadLimits {
            zip_entries: 65_535,
            zip_directory_bytes: 16 << 20,
            pickle_bytes: 512 << 20,
            pickle_opcodes: 300_000_000,
            pickle_nodes: 2_000_000,
            pickle_text_bytes: 64 << 20,
            pickle_values: 1_000_000,
            pickle_depth: 64,
            tensors: 65_536,
            sharing: 4,
            header_bytes: 8 << 20,
            shards: 1024,
            bundle_files: 4096,
            expansion: 200,
            expansion_bytes: 64 << 20,
            zstd_window_log: 25,
        }
    }
}

impl ReadLimits {
    /// Bytes that a file of `bytes` may stand for.
    pub fn expanded(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.expansion).saturating_add(self.expansion_bytes)
    }
}
