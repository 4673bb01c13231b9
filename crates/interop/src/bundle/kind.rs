//! The two kinds of bundles.

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleKind {
    Zip,
    TarZst,
}

/// The kind of bundle whose first bytes these are, if it is one.
pub fn kind_of(bytes: &[u8]) -> Option<BundleKind> {
    match bytes {
        _ if bytes.starts_with(b"PK\x03\x04") => Some(BundleKind::Zip),
        _ if bytes.starts_with(&ZSTD_MAGIC) => Some(BundleKind::TarZst),
        _ => None,
    }
}
