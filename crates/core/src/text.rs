//! Values that people write as text: durations, times and sizes.
//!
//! Invariant: what is written is read back as the same value.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A value written as text in the file: "11h45m", "2GiB".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextValue<T>(pub T);

/// A number of bytes.
pub type ByteSize = TextValue<u64>;

/// "90s", "11h45m"; the error is a clause.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|e| format!("{text:?} is not a duration such as \"90s\" or \"11h45m\": {e}"))
}

/// A duration in full, as [`parse_duration`] reads it: "1h 2m 3s".
pub fn exact_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A duration in two units at most, for people: "35ms", "1.4s", "2m 20s", "10h".
pub fn rough_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (value, unit, rest, smaller) = match seconds {
        _ if duration.is_zero() => return "0s".to_owned(),
        0 => return format!("{}ms", (duration.as_secs_f64() * 1e3).round()),
        1..10 => return format!("{}s", (duration.as_secs_f64() * 10.0).round() / 10.0),
        10..60 => return format!("{seconds}s"),
        60..3600 => (seconds / 60, "m", seconds % 60, "s"),
        3600..86400 => (seconds / 3600, "h", seconds / 60 % 60, "m"),
        _ => (seconds / 86400, "d", seconds / 3600 % 24, "h"),
    };
    if rest == 0 { format!("{value}{unit}") } else { format!("{value}{unit} {rest}{smaller}") }
}

/// In three significant digits: "0.0003", "2.85e-5".
pub fn significant(number: f64) -> String {
    let rounded: f64 = format!("{number:.2e}").parse().unwrap_or(number);
    if rounded == 0.0 || (1e-4..1e6).contains(&rounded.abs()) { format!("{rounded}") } else { format!("{rounded:e}") }
}

/// "1,234,567".
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// "1 thread", "2 threads".
pub fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

impl Serialize for TextValue<Duration> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for TextValue<Duration> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map(TextValue).map_err(serde::de::Error::custom)
    }
}

impl Serialize for TextValue<Timestamp> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TextValue<Timestamp> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_time(&String::deserialize(deserializer)?).map(TextValue).map_err(serde::de::Error::custom)
    }
}

/// A moment with its offset from UTC, or a time of day where this machine is.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    let local = || {
        let time: jiff::civil::DateTime = text.parse().ok()?;
        Some(time.to_zoned_datetime(jiff::tz::TimeZone::system()).ok()?.timestamp())
    };
    text.parse().ok().or_else(local).ok_or_else(|| {
        format!(
            "{text:?} is not a moment such as \"2026-11-24T23:00:00Z\", or \"2026-11-24 23:00\" on this machine's clock"
        )
    })
}

impl Serialize for TextValue<u64> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} B", self.0))
    }
}

impl<'de> Deserialize<'de> for TextValue<u64> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let size: bytesize::ByteSize =
            text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is not a size such as \"20GiB\"")))?;
        Ok(TextValue(size.as_u64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rough_duration_has_two_units_at_most() {
        let text = |seconds: f64| rough_duration(Duration::from_secs_f64(seconds));
        let texts = [0.0, 0.035, 1.44, 12.9, 60.0, 140.0, 36_000.0, 3725.0, 90_000.0].map(text);
        assert_eq!(texts, ["0s", "35ms", "1.4s", "12s", "1m", "2m 20s", "10h", "1h 2m", "1d 1h"]);
    }
}
