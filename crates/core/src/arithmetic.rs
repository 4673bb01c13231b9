//! The number of the arithmetic that a training is computed under: another order of additions or another kernel is
//! another number.
//!
//! Invariant: a training goes on under the number that it began with, to the same `root`, or is refused by that number.
//! The first number is not written, so that its roots are those of the releases that had none.
//! Deliberately not here: settings (`settings`), and the arithmetic itself (the worker).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of an arithmetic, from 1. JSON: the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArithmeticNumber(u32);

/// The numbers that a worker can compute under.
#[derive(Clone, Copy, Debug)]
pub struct KnownArithmetic {
    /// What a new training begins with.
    pub newest: ArithmeticNumber,
    /// What older trainings go on with.
    pub older: &'static [ArithmeticNumber],
}

/// A training's number is none that this worker can compute under.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("was computed with arithmetic {recorded}, which this worker does not know (it knows {known})")]
pub struct UnknownArithmetic {
    recorded: ArithmeticNumber,
    known: String,
}

impl ArithmeticNumber {
    /// That of the first release; a train state without a number has it.
    pub const FIRST: ArithmeticNumber = ArithmeticNumber(1);

    /// The arithmetic with this number.
    pub const fn new(number: u32) -> ArithmeticNumber {
        ArithmeticNumber(number)
    }

    /// Whether it is the first, which is not written.
    pub fn is_first(&self) -> bool {
        *self == ArithmeticNumber::FIRST
    }
}

impl Default for ArithmeticNumber {
    fn default() -> ArithmeticNumber {
        ArithmeticNumber::FIRST
    }
}

impl fmt::Display for ArithmeticNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl KnownArithmetic {
    /// The number under which a training that has `recorded` goes on: its own.
    ///
    /// # Errors
    /// [`UnknownArithmetic`] where this worker cannot compute under it.
    pub fn going_on(&self, recorded: ArithmeticNumber) -> Result<ArithmeticNumber, UnknownArithmetic> {
        if recorded == self.newest || self.older.contains(&recorded) {
            return Ok(recorded);
        }
        let known: Vec<String> = self.older.iter().chain([&self.newest]).map(ToString::to_string).collect();
        Err(UnknownArithmetic { recorded, known: known.join(", ") })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::snapshot::TrainState;
    use crate::store::format;

    const SECOND: ArithmeticNumber = ArithmeticNumber::new(2);

    fn state(arithmetic: ArithmeticNumber) -> TrainState {
        TrainState { step: 7, arithmetic, ..TrainState::default() }
    }

    #[test]
    fn the_first_number_is_not_written_and_changes_no_root() {
        let json = [
            r#"{"step":7,"tokens_seen":0,"epoch":0,"position":0,"last_eval_step":0,"#,
            r#""best_val_loss":null,"settings":{}}"#,
        ]
        .concat();
        assert_eq!(serde_json::to_string(&state(ArithmeticNumber::FIRST)).unwrap(), json);
        assert_eq!(serde_json::from_str::<TrainState>(&json).unwrap(), state(ArithmeticNumber::FIRST));
        // Computed by the release before there were numbers.
        let root = "7baf8d6e07f5737afb20092053c9464aef24516daca053b1e3dc2a61a82a0f65";
        assert_eq!(format::root(&[], &state(ArithmeticNumber::FIRST)), root);
        assert_ne!(format::root(&[], &state(SECOND)), root);
    }

    #[test]
    fn another_number_is_written_and_read_back() {
        let json = serde_json::to_string(&state(SECOND)).unwrap();
        assert!(json.ends_with(r#""settings":{},"arithmetic":2}"#), "{json}");
        assert_eq!(serde_json::from_str::<TrainState>(&json).unwrap(), state(SECOND));
    }

    #[test]
    fn a_training_goes_on_under_its_own_number_or_is_refused_by_it() {
        let known = KnownArithmetic { newest: SECOND, older: &[ArithmeticNumber::FIRST] };
        assert_eq!(known.going_on(ArithmeticNumber::FIRST), Ok(ArithmeticNumber::FIRST));
        assert_eq!(known.going_on(SECOND), Ok(SECOND));
        let error = known.going_on(ArithmeticNumber::new(3)).unwrap_err().to_string();
        assert_eq!(error, "was computed with arithmetic 3, which this worker does not know (it knows 1, 2)");
    }
}
