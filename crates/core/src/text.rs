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
