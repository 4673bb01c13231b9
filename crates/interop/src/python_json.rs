//! JSON as Python's `json` module writes it: `NaN`, `Infinity` and `-Infinity` stand for numbers.
//!
//! JSON has no such numbers. They become null, which is what a field without a value has too. Deliberately not here:
//! what the fields mean.

use serde::de::DeserializeOwned;

/// Parses `bytes`, in which numbers that JSON does not have become null.
///
/// # Errors
/// Those of [`serde_json`].
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    // What is JSON stays as it is, without a copy.
    serde_json::from_slice(bytes).or_else(|_| serde_json::from_slice(&with_nulls(bytes)))
}

/// `bytes` with null in place of each number that JSON does not have.
fn with_nulls(bytes: &[u8]) -> Vec<u8> {
    const NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut out, mut rest, mut in_text) = (Vec::with_capacity(bytes.len()), bytes, false);
    while let [first, after @ ..] = rest {
        let number = NUMBERS.iter().find(|number| !in_text && rest.starts_with(number));
        rest = match (number, first) {
            (Some(number), _) => {
                out.extend_from_slice(b"null");
                &rest[number.len()..]
            }
            (None, b'\\') if in_text => {
                let both = &rest[..rest.len().min(2)];
                out.extend_from_slice(both);
                &rest[both.len()..]
            }
            (None, byte) => {
                in_text ^= *byte == b'"';
                out.push(*byte);
                after
            }
        };
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn numbers_that_json_does_not_have_are_null_and_texts_stay() {
        let python = br#"{"a": NaN, "b": [-Infinity, Infinity, 1.5], "NaN": "NaN \" Infinity \\", "c": -1}"#;
        let value: Value = parse(python).unwrap();
        let text = "NaN \" Infinity \\";
        assert_eq!(value, json!({"a": null, "b": [null, null, 1.5], "NaN": text, "c": -1}));
        assert!(parse::<Value>(b"{\"a\": nan}").is_err());
    }
}
