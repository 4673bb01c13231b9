//! The session's clock: CLOCK_BOOTTIME, which nobody sets and which also runs while the machine sleeps.
//!
//! Invariant: what a session may last is counted on this clock alone. [`std::time::Instant`] stands still while the
//! machine is suspended, and the clock on the wall is set by whoever likes. Deliberately not here: times of day, which
//! [`Now`] carries beside this clock so that both are read together and passed in.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// A moment of this boot: the time since the machine started, its sleep included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    pub fn now() -> Moment {
        let time = clock_gettime(ClockId::Boottime);
        // The kernel gives no negative time for this clock.
        Moment(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
    }

    /// A moment `since_boot`, for tests and for what the kernel says in these terms.
    pub const fn since_boot(since_boot: Duration) -> Moment {
        Moment(since_boot)
    }

    /// How long ago `earlier` was; zero if it is still to come.
    pub fn saturating_duration_since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(duration))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    /// Not before the boot.
    fn sub(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(duration))
    }
}

impl Sub for Moment {
    type Output = Duration;
    fn sub(self, earlier: Moment) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// Both clocks, read together: the one that only runs on, and the one on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Moment,
    pub wall: Timestamp,
}

impl Now {
    pub fn read() -> Now {
        Now { at: Moment::now(), wall: Timestamp::now() }
    }

    /// The moment at which the wall shows `time`, as both clocks stand now; what is past is now.
    pub fn moment_of(&self, time: Timestamp) -> Moment {
        self.at + Duration::try_from(time.duration_since(self.wall)).unwrap_or_default()
    }

    /// What the wall will show at `moment`, as both clocks stand now.
    pub fn wall_at(&self, moment: Moment) -> Timestamp {
        let ahead = |duration: Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        let time = match moment >= self.at {
            true => self.wall.checked_add(ahead(moment - self.at)),
            false => self.wall.checked_sub(ahead(self.at - moment)),
        };
        time.unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_on_and_times_of_day_translate_both_ways() {
        let now = Now::read();
        assert!(Moment::now() >= now.at);
        let later = now.at + Duration::from_secs(90);
        assert_eq!(now.moment_of(now.wall_at(later)), later);
        assert_eq!(later - now.at, Duration::from_secs(90));
        assert_eq!(now.at - later, Duration::ZERO);
        assert_eq!(now.moment_of(Timestamp::UNIX_EPOCH), now.at);
    }
}
