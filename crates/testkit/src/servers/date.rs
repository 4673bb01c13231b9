//! Dates as HTTP has them.

/// "Thu, 01 Jan 2026 00:00:00 GMT".
pub fn http_date(at: jiff::Timestamp) -> String {
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).expect("the year has four digits")
}
