//! A limit of the rate at which bytes are sent.
//!
//! Invariant: over any time longer than a piece takes, no more is sent than the limit allows.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Bytes per second, shared by all that send.
#[derive(Debug, Default)]
pub struct RateLimit {
    bytes_per_second: Option<u64>,
    /// When what was sent so far has been paid for.
    free_at: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// No more than so many bytes per second; `None`: as fast as it goes.
    pub fn new(bytes_per_second: Option<u64>) -> RateLimit {
        RateLimit { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// The limit.
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.bytes_per_second
    }

    /// Waits until `bytes` more may be sent.
    pub async fn wait_for(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second.filter(|rate| *rate > 0) else { return };
        let begin = {
            let mut free_at = self.free_at.lock().unwrap_or_else(|e| e.into_inner());
            let now = Instant::now();
            let begin = free_at.map_or(now, |at| at.max(now));
            *free_at = Some(begin + Duration::from_secs_f64(bytes as f64 / rate as f64));
            begin
        };
        tokio::time::sleep_until(begin).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pieces_are_spread_as_the_limit_says() {
        let limit = RateLimit::new(Some(1000));
        let began = Instant::now();
        for _ in 0..5 {
            limit.wait_for(500).await;
        }
        assert_eq!(began.elapsed(), Duration::from_secs(2), "the fifth piece begins after four");
        RateLimit::new(None).wait_for(1 << 40).await;
        assert_eq!(began.elapsed(), Duration::from_secs(2));
    }
}
