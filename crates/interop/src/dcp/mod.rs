//! Folders of `torch.distributed.checkpoint`: `.metadata`, a pickle that says which file holds which part of which
//! tensor, and `__<rank>_<number>.distcp` files, in which `torch.save`'s archives lie one after the other.
//!
//! [`reader`] brings a folder into the form of a `.pt` file without executing anything; [`writer`] writes one.
//! Deliberately not here: what the keys mean (import), which keys an export has (export).

pub mod reader;
mod tree;
pub mod writer;

pub use reader::{METADATA, open};
pub use writer::{DATA, DcpContent, DcpItem, write};
