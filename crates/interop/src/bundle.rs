//! Bundles: an exported folder in one file, as zip (opens everywhere) or tar.zst (faster and smaller).
//!
//! Invariant: unpacking writes plain files into one fresh folder and nothing else: no folders within it, no absolute
//! names, no `..`, no links, devices or duplicates; no more bytes than were announced, and no more announced than the
//! bundle's own size and the disk justify. What macOS adds to archives (`__MACOSX`, `._name`, `.DS_Store`) is passed
//! over, and told. Where the bundle says what its files are ([`crate::export_record`]), each of them
//! must be there, be exactly that, and nothing else may be there. Deliberately not here: what the files mean (import).

mod kind;
mod pack;
mod unpack;

pub use kind::{BundleKind, kind_of};
pub use pack::pack;
pub use unpack::{UnpackReport, UnpackedFiles, passed_over_note, unpack, unpack_into};
