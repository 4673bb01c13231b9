//! Names that must not be taken for one another: of a run, of a snapshot in its store, of a training state.
//!
//! Invariant: each is text and nothing else, also in JSON, and is compared as text.
//! Deliberately not here: what a name on disk looks like (layout), how a root is computed (format).

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

macro_rules! text_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> $name {
                $name(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> $name {
                $name(text.to_owned())
            }
        }

        impl From<&$name> for $name {
            fn from(id: &$name) -> $name {
                id.clone()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, text: &str) -> bool {
                self.0 == text
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, text: &&str) -> bool {
                self.0 == *text
            }
        }
    };
}

text_id! {
    /// One training, however many sessions it takes: 128 random bits as hex.
    RunId
}

text_id! {
    /// A snapshot in its store: its file's name without the suffix, such as `step-000000001200`.
    SnapshotId
}

text_id! {
    /// The identity of a training state: BLAKE3, as hex, over its tensors and its train state. Runs that agree bit for
    /// bit have the same root, however often they were interrupted.
    StateRoot
}

impl RunId {
    /// A new one.
    ///
    /// # Errors
    /// Where the system gives no random bits.
    pub fn random() -> Result<RunId> {
        let mut bits = [0; 16];
        let got = rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty());
        match got.map_err(|e| Error::Other(format!("making a run id: the system gives no random bits: {e}")))? {
            n if n == bits.len() => Ok(RunId(format!("{:032x}", u128::from_be_bytes(bits)))),
            n => Err(Error::Other(format!("making a run id: the system gives {n} random bytes of {}", bits.len()))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_is_128_bits_as_hex_and_no_two_are_the_same() {
        let (one, other) = (RunId::random().unwrap(), RunId::random().unwrap());
        assert!(one != other && one.as_str().len() == 32, "{one}");
        assert!(one.as_str().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{one}");
    }

    #[test]
    fn an_id_is_plain_text_in_json() {
        let id = SnapshotId::from("step-000000000010");
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, r#""step-000000000010""#);
        assert_eq!(serde_json::from_str::<SnapshotId>(&json).unwrap(), id);
        assert_eq!(format!("{id:>20}"), "   step-000000000010");
    }
}
