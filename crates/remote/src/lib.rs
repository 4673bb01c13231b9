//! Places outside of this machine that keep objects: one small trait over them, and what implements it.
//!
//! [`names`], [`errors`], [`objects`]: an object's name, what can go wrong with it, and the trait [`ObjectStorage`].
//! [`memory`]: an object store for tests. [`confirmed`]: writes whose outcome is known by reading back.
//!
//! And what a job keeps there: [`layout`] (names), [`records`] (small documents), [`fence`] (which snapshots count),
//! [`holder`] and [`protocol`] (who owns a job, and when a snapshot may be committed).
//!
//! Invariant: no credential is in a URL, a log line, an error or a `{:?}`. Deliberately not here: what is in a
//! snapshot.

pub mod address;
#[cfg(test)]
mod behind;
mod cloud;
pub mod confirmed;
pub mod errors;
pub mod fence;
pub mod folder;
pub mod holder;
pub mod job;
pub mod layout;
pub mod memory;
pub mod names;
pub mod nonce;
pub mod objects;
pub mod open;
pub mod protocol;
pub mod records;
pub mod secrets;
pub mod settings;
mod sftp;

pub use address::RemoteUrl;
pub use confirmed::{ConfirmedStorage, Outcome};
pub use errors::{ErrorKind, ObjectError, Operation, Result};
pub use memory::MemoryStorage;
pub use names::ObjectName;
pub use objects::{
    Abilities, Created, Head, Listed, Object, ObjectStorage, ObjectVersion, PartReceipt, PartsRule, RangeStream,
    Swapped, UploadId,
};
pub use open::open;
pub use settings::RemoteSettings;
