//! The session's clock: CLOCK_BOOTTIME, which cannot be set and runs on while the machine sleeps.
//!
//! Invariant: what a session may last is counted on this clock alone. [`std::time::Instant`] stands still while the
//! machine is suspended, and the wall clock can be set at any time. Deliberately not here: when the clocks are
//! read; a [`ClockReading`] holds both, read together, and is passed in.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// The time since the machine started, its sleep included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(Duration);

impl BootInstant {
    /// Reads the clock.
    pub fn now() -> BootInstant {
        let time = clock_gettime(ClockId::Boottime);
        // The kernel gives no negative time for this clock.
        BootInstant(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
    }

    /// `since_boot` after the start, for tests and for what the kernel says in these terms.
    pub const fn since_boot(since_boot: Duration) -> BootInstant {
        BootInstant(since_boot)
    }

    /// How long ago `earlier` was; zero if it is still to come.
    pub fn saturating_duration_since(self, earlier: BootInstant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootInstant {
    type Output = BootInstant;
    fn add(self, duration: Duration) -> BootInstant {
        BootInstant(self.0.saturating_add(duration))
    }
}

impl AddAssign<Duration> for BootInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for BootInstant {
    type Output = BootInstant;
    /// Not before the boot.
    fn sub(self, duration: Duration) -> BootInstant {
        BootInstant(self.0.saturating_sub(duration))
    }
}

impl Sub for BootInstant {
    type Output = Duration;
    fn sub(self, earlier: BootInstant) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// Both clocks, read together: the one since boot, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct ClockReading {
    pub at: BootInstant,
    pub wall: Timestamp,
}

impl ClockReading {
    /// Reads both clocks.
    pub fn now() -> ClockReading {
        ClockReading { at: BootInstant::now(), wall: Timestamp::now() }
    }

    /// The moment at which the wall shows `time`, as both clocks stand now; what is past is now.
    pub fn moment_of(&self, time: Timestamp) -> BootInstant {
        self.at + Duration::try_from(time.duration_since(self.wall)).unwrap_or_default()
    }

    /// What the wall will show at `moment`, as both clocks stand now.
    pub fn wall_at(&self, moment: BootInstant) -> Timestamp {
        let signed = |duration: Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        let time = if moment >= self.at {
            self.wall.checked_add(signed(moment - self.at))
        } else {
            self.wall.checked_sub(signed(self.at - moment))
        };
        time.unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_on_and_times_of_day_translate_both_ways() {
        let now = ClockReading::now();
        assert!(BootInstant::now() >= now.at);
        let later = now.at + Duration::from_secs(90);
        assert_eq!(now.moment_of(now.wall_at(later)), later);
        assert_eq!(later - now.at, Duration::from_secs(90));
        assert_eq!(now.at - later, Duration::ZERO);
        assert_eq!(now.moment_of(Timestamp::UNIX_EPOCH), now.at);
    }
}
