//! Plain values of Python as data that travels: the settings of an optimiser's groups, the state of a schedule.
//!
//! Invariant: a value that goes to JSON and comes back is the same value: an int is no float, a tuple no list, and
//! numbers that JSON does not have keep their names. Deliberately not here: tensors, objects.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A value without tensors and objects in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Value", try_from = "Value")]
pub enum PlainValue {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number, finite or not.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<PlainValue>),
    /// A tuple.
    Tuple(Vec<PlainValue>),
    /// A dict, in its order.
    Dict(Vec<(PlainValue, PlainValue)>),
}

impl PlainValue {
    /// The entry of a dict under a key of text.
    pub fn get(&self, key: &str) -> Option<&PlainValue> {
        let PlainValue::Dict(items) = self else { return None };
        items.iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value)
    }

    /// A number as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            PlainValue::Float(number) => Some(*number),
            PlainValue::Int(number) => Some(*number as f64),
            _ => None,
        }
    }

    /// A whole number from 0.
    pub fn as_count(&self) -> Option<u64> {
        match self {
            PlainValue::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Whether it is `True` or `False`.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            PlainValue::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// Text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            PlainValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list or a tuple.
    pub fn as_items(&self) -> Option<&[PlainValue]> {
        match self {
            PlainValue::List(items) | PlainValue::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

impl From<PlainValue> for Value {
    fn from(value: PlainValue) -> Value {
        match value {
            PlainValue::None => Value::Null,
            PlainValue::Bool(truth) => json!(truth),
            PlainValue::Int(number) => json!(number),
            PlainValue::Float(number) if number.is_finite() => json!(number),
            PlainValue::Float(number) => json!({ "float": number.to_string() }),
            PlainValue::Text(text) => Value::String(text),
            PlainValue::List(items) => Value::Array(items.into_iter().map(Value::from).collect()),
            PlainValue::Tuple(items) => json!({ "tuple": items.into_iter().map(Value::from).collect::<Vec<_>>() }),
            PlainValue::Dict(items) => {
                let pair = |(key, value)| json!([Value::from(key), Value::from(value)]);
                json!({ "dict": items.into_iter().map(pair).collect::<Vec<_>>() })
            }
        }
    }
}

impl TryFrom<Value> for PlainValue {
    type Error = String;

    fn try_from(value: Value) -> Result<PlainValue, String> {
        Ok(match value {
            Value::Null => PlainValue::None,
            Value::Bool(truth) => PlainValue::Bool(truth),
            Value::Number(number) => match number.as_i64() {
                Some(number) => PlainValue::Int(number),
                None => PlainValue::Float(number.as_f64().ok_or("a number out of range")?),
            },
            Value::String(text) => PlainValue::Text(text),
            Value::Array(items) => PlainValue::List(plain_items(items)?),
            Value::Object(fields) => tagged(fields)?,
        })
    }
}

fn plain_items(items: Vec<Value>) -> Result<Vec<PlainValue>, String> {
    items.into_iter().map(PlainValue::try_from).collect()
}

/// What JSON has no form for is an object of one field, whose name says what it is.
fn tagged(fields: Map<String, Value>) -> Result<PlainValue, String> {
    let mut fields = fields.into_iter();
    match (fields.next(), fields.next()) {
        (Some((tag, Value::String(text))), None) if tag == "float" => {
            text.parse().map(PlainValue::Float).map_err(|_| format!("the float {text:?}"))
        }
        (Some((tag, Value::Array(items))), None) if tag == "tuple" => plain_items(items).map(PlainValue::Tuple),
        (Some((tag, Value::Array(items))), None) if tag == "dict" => {
            let pair = |pair: Value| match PlainValue::try_from(pair)? {
                PlainValue::List(pair) => {
                    <[PlainValue; 2]>::try_from(pair).map(|[key, value]| (key, value)).map_err(|_| "no pair".to_owned())
                }
                _ => Err("no pair".into()),
            };
            items.into_iter().map(pair).collect::<Result<_, String>>().map(PlainValue::Dict)
        }
        _ => Err("an object that is no value".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_from_json_as_itself() {
        let text = |text: &str| PlainValue::Text(text.into());
        let value = PlainValue::Dict(vec![
            (text("betas"), PlainValue::Tuple(vec![PlainValue::Float(0.9), PlainValue::Float(0.999)])),
            (text("lr"), PlainValue::Float(1.0)),
            (PlainValue::Int(3), PlainValue::List(vec![PlainValue::Int(1), PlainValue::None, PlainValue::Bool(true)])),
            (
                text("odd"),
                PlainValue::List(vec![PlainValue::Float(f64::INFINITY), PlainValue::Float(f64::NEG_INFINITY)]),
            ),
            (text("small"), PlainValue::Float(6.25e-4)),
        ]);
        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<PlainValue>(&json).unwrap(), value);
        let nan: PlainValue =
            serde_json::from_str(&serde_json::to_string(&PlainValue::Float(f64::NAN)).unwrap()).unwrap();
        assert!(matches!(nan, PlainValue::Float(number) if number.is_nan()));
        assert!(serde_json::from_str::<PlainValue>(r#"{"a": 1, "b": 2}"#).is_err());
    }
}
