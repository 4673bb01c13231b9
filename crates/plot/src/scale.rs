//! Values to places, and the round numbers along an axis.

/// How values lie along a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueScale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    is_logarithmic: bool,
}

impl ValueScale {
    /// The values `from` to `to` along the pixels `start` to `end`.
    pub fn linear((from, to): (f64, f64), (start, end): (f64, f64)) -> ValueScale {
        let to = if to > from { to } else { from + 1.0 };
        ValueScale { from, to, start, end, is_logarithmic: false }
    }

    /// As linear, by their logarithms; both are above 0.
    pub fn logarithmic(values: (f64, f64), pixels: (f64, f64)) -> ValueScale {
        ValueScale { is_logarithmic: true, ..ValueScale::linear(values, pixels) }
    }

    /// Where `value` is; what lies beyond an end is at that end.
    pub fn place(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    /// Round values within it, about `count`.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if self.is_logarithmic {
            let exponents = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
            let all = exponents.flat_map(|e| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(e)));
            return all.filter(|tick| (self.from..=self.to).contains(tick)).collect();
        }
        let step = round_step((self.to - self.from) / count.max(1) as f64);
        let first = (self.from / step).ceil() as i64;
        let last = ((self.to / step) * (1.0 + 1e-12)).floor() as i64;
        (first..=last.min(first.saturating_add(100))).map(|n| n as f64 * step).collect()
    }
}

/// The least of 1, 2, 2.5, 5 times a power of ten that is `least` or more.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let digit = [1.0, 2.0, 2.5, 5.0].into_iter().find(|digit| digit * power >= least * (1.0 - 1e-9));
    digit.unwrap_or(10.0) * power
}

/// A number as few characters: "0", "2.5", "12k", "3e-4".
pub fn short(value: f64) -> String {
    let trimmed = |text: String| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1e-2 => {
            let text = format!("{value:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", trimmed(digits.to_owned()))
        }
        size if size >= 999_500.0 => format!("{}M", trimmed(format!("{:.2}", value / 1e6))),
        size if size >= 10_000.0 => format!("{}k", trimmed(format!("{:.1}", value / 1e3))),
        _ => trimmed(format!("{value:.2}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let ticks = |from, to| ValueScale::linear((from, to), (0.0, 100.0)).ticks(5);
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(2.1, 3.2).into_iter().map(short).collect::<Vec<_>>(), ["2.25", "2.5", "2.75", "3"]);
        assert_eq!(ValueScale::logarithmic((0.9, 30.0), (0.0, 1.0)).ticks(5), [1.0, 2.0, 5.0, 10.0, 20.0]);
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 3e-4, 2.5e-5, 1.5, 250.0, 12_000.0, 1_500_000.0, -2.0];
        assert_eq!(all.map(short), ["0", "3e-4", "2.5e-5", "1.5", "250", "12k", "1.5M", "-2"]);
    }
}
