//! The outlook: how long the training takes from here, and in how many more sessions, by what the last ones came to.
//!
//! Invariant: pure; sessions are counted only where it is known how long one may last. Where that is not known the
//! outlook is that of a training that nothing interrupts. Deliberately not here: the sessions (records).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::records::{SessionRecord, SessionRecords};
use ckptd_core::text::{counted, rough_duration};

/// Sessions that pace and pauses are taken from.
const RECENT: usize = 8;

/// The session under way, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct LivePace {
    /// Steps completed.
    pub step: u64,
    /// What a step takes at present.
    pub step_time: Option<Duration>,
}

/// What is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOutlook {
    /// More sessions after the one under way; `None`: no end of a session is known.
    pub sessions: Option<u64>,
    /// Until the last step, pauses between sessions included.
    pub time_left: Duration,
    /// When that is, if the next session begins as soon as usual.
    pub ends_at: Timestamp,
    /// A session is under way.
    pub is_live: bool,
}

/// The outlook for a training of `total_steps`. `None`: they are not known (0), or nothing was trained yet that a pace
/// could be taken from.
pub fn outlook(
    records: &SessionRecords,
    total_steps: u64,
    live: Option<LivePace>,
    now: Timestamp,
) -> Option<SessionOutlook> {
    let last = records.sessions.last().filter(|_| total_steps > 0)?;
    let done = live.map_or(last.saved_step, |live| live.step);
    let left = total_steps.saturating_sub(done) as f64;
    let is_live = live.is_some();
    let of = |sessions: Option<u64>, seconds: f64| {
        let time_left = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
        let ends_at = now.checked_add(SignedDuration::try_from(time_left).ok()?).ok()?;
        Some(SessionOutlook { sessions, time_left, ends_at, is_live })
    };
    if left == 0.0 {
        let ends_at = last.ended.unwrap_or(now);
        return Some(SessionOutlook { sessions: Some(0), time_left: Duration::ZERO, ends_at, is_live });
    }
    let past = Past::of(records, is_live);
    let pace = past.pace.or_else(|| Some(live?.step_time?.as_secs_f64()))?;
    let work = left * pace;
    let startup = past.startup.unwrap_or_default();
    let Some(length) = last.planned_seconds.filter(|length| *length > 0.0) else {
        return of(None, if is_live { work } else { startup + work });
    };
    // What the session under way still trains.
    let elapsed = between(last.began, now).as_secs_f64();
    let own_startup = if last.trained_seconds > 0.0 { 0.0 } else { (startup - elapsed).max(0.0) };
    let until_end = if is_live { (length - elapsed).max(0.0) } else { 0.0 };
    let this_one = (until_end - own_startup - past.ending).max(0.0);
    if is_live && work <= this_one {
        return of(Some(0), own_startup + work);
    }
    let rest = (work - this_one).max(0.0);
    // A session that prepares longer than it trains gets nowhere; half of it is what the plan keeps for training.
    let useful = (length - startup - past.ending - past.lost).max(length / 10.0);
    let sessions = (rest / useful).ceil().max(1.0);
    let in_the_last = rest - (sessions - 1.0) * useful;
    // The pause before the next session has begun already where none is under way.
    let waited = if is_live { 0.0 } else { between(last.ended.unwrap_or(last.seen), now).as_secs_f64() };
    let pauses = (past.pause * sessions - waited).max(past.pause * (sessions - 1.0));
    of(Some(sessions as u64), until_end + pauses + (sessions - 1.0) * length + startup + in_the_last)
}

/// What the last sessions came to, in seconds.
struct Past {
    /// Of training, per step.
    pace: Option<f64>,
    /// From a session's beginning to its first step.
    startup: Option<f64>,
    /// From the end of the training to that of the session, where that was planned.
    ending: f64,
    /// Of training that was lost, per session.
    lost: f64,
    /// Between two sessions.
    pause: f64,
}

impl Past {
    fn of(records: &SessionRecords, is_live: bool) -> Past {
        let recent: Vec<&SessionRecord> = records.sessions.iter().rev().take(RECENT).collect();
        let trained: Vec<&&SessionRecord> =
            recent.iter().filter(|session| session.trained_seconds > 0.0 && session.step > session.from_step).collect();
        let steps = |session: &SessionRecord| (session.step - session.from_step + session.lost_in_it()) as f64;
        let seconds: f64 = trained.iter().map(|session| session.trained_seconds).sum();
        let pace = (!trained.is_empty()).then(|| seconds / trained.iter().map(|session| steps(session)).sum::<f64>());
        let ended: Vec<&&&SessionRecord> = trained.iter().filter(|session| session.ended.is_some()).collect();
        let idle = |session: &SessionRecord| (session.length().as_secs_f64() - session.trained_seconds).max(0.0);
        let startup = mean(trained.iter().map(|session| idle(session)));
        // A planned end comes before the moment that was planned for by what the last snapshot needs.
        let ending = mean(ended.iter().filter_map(|session| {
            let planned = session.planned_seconds?;
            Some(planned - session.length().as_secs_f64()).filter(|early| (0.0..planned / 3.0).contains(early))
        }));
        let lost = mean(ended.iter().map(|session| session.lost_steps as f64 * pace.unwrap_or_default()));
        let pairs = recent.windows(2).skip(usize::from(is_live && recent.len() > 2));
        let pause = mean(pairs.map(|pair| between(pair[1].ended.unwrap_or(pair[1].seen), pair[0].began).as_secs_f64()));
        Past {
            pace,
            startup,
            ending: ending.unwrap_or_default(),
            lost: lost.unwrap_or_default(),
            pause: pause.unwrap_or_default(),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    // Clocks are set: what is negative is nothing.
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

impl SessionOutlook {
    /// "2 more sessions after this one: done about Tue 24 Nov 23:10, in 3h 5m"
    pub fn text(&self) -> String {
        let end = self.ends_at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%a %-d %b %H:%M");
        let left = rough_duration(self.time_left);
        match (self.sessions, self.is_live) {
            (_, _) if self.time_left.is_zero() => "no more sessions are needed".to_owned(),
            (None, _) => format!("done in {left} if not interrupted"),
            (Some(0), _) => format!("done in {left}, within this session"),
            (Some(n), true) => {
                format!("{} after this one: done about {end}, in {left}", counted(n, "more session"))
            }
            (Some(n), false) => format!("{} to go: done about {end}, in {left}", counted(n, "more session")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::try_from_secs_f64(seconds).unwrap()
    }

    /// The same numbers for the same seed.
    struct Random(u64);

    impl Random {
        fn uniform(&mut self) -> f64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        fn around(&mut self, middle: f64, share: f64) -> f64 {
            middle * (1.0 + share * (2.0 * self.uniform() - 1.0))
        }
    }

    /// A job and its machine, in seconds.
    #[derive(Clone)]
    struct World {
        step: f64,
        startup: f64,
        ending: f64,
        pause: f64,
        /// What a session may last.
        planned: Option<f64>,
        total_steps: u64,
    }

    impl World {
        fn new(random: &mut Random, known: bool) -> World {
            let step = 10f64.powf(random.uniform() * 2.5 - 1.0);
            let startup = step * random.around(6.0, 0.8);
            let planned = startup * 4.0 + step * (20.0 + 400.0 * random.uniform());
            let pause = planned * random.uniform().powi(2);
            let steps_per_session = planned / step;
            World {
                step,
                startup,
                ending: step * random.around(2.0, 0.5),
                pause,
                planned: known.then_some(planned),
                total_steps: (steps_per_session * (3.0 + 9.0 * random.uniform())) as u64,
            }
        }

        /// Lets a session happen that begins at `began`; returns when it ended, and whether the training is complete.
        fn session(&self, random: &mut Random, records: &mut SessionRecords, began: f64) -> (f64, bool) {
            records.begin(&"run".into(), at(began));
            let startup = random.around(self.startup, 0.2);
            let length = match self.planned {
                Some(planned) => planned - self.ending,
                None => startup + self.step * (5.0 + 200.0 * random.uniform()),
            };
            let (mut time, session) = (startup, records.current().unwrap());
            let mut step = session.from_step;
            while step < self.total_steps {
                let next = random.around(self.step, 0.15);
                if time + next > length {
                    break;
                }
                (time, step) = (time + next, step + 1);
            }
            session.planned_seconds = self.planned;
            session.trained_seconds = time - startup;
            (session.step, session.saved_step) = (step, step);
            let done = step == self.total_steps;
            let end = began + if done { time } else { length };
            (session.seen, session.ended) = (at(end), Some(at(end)));
            (end, done)
        }
    }

    /// Relative error of the time to finish, asked somewhere on the way; and what was answered.
    fn one_history(seed: u64, known: bool) -> Option<(f64, SessionOutlook)> {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let world = World::new(&mut random, known);
        let (mut records, mut began) = (SessionRecords::default(), 0.0);
        let asked_after = 1 + (random.uniform() * 3.0) as usize;
        let mut now = 0.0;
        for _ in 0..asked_after {
            let (end, done) = world.session(&mut random, &mut records, began);
            if done {
                return None;
            }
            now = end;
            began = end + random.around(world.pause, 0.3);
        }
        let asked = records.clone();
        let answer = outlook(&asked, world.total_steps, None, at(now)).unwrap();
        let truth = match world.planned {
            None => {
                let left = world.total_steps - records.sessions.last().unwrap().saved_step;
                world.startup + (0..left).map(|_| random.around(world.step, 0.15)).sum::<f64>()
            }
            Some(_) => loop {
                let (end, done) = world.session(&mut random, &mut records, began);
                if done {
                    break end - now;
                }
                began = end + random.around(world.pause, 0.3);
            },
        };
        Some(((answer.time_left.as_secs_f64() - truth).abs() / truth, answer))
    }

    #[test]
    fn over_200_histories_the_time_to_finish_is_within_a_tenth_and_no_sessions_are_invented() {
        for known in [true, false] {
            let mut errors = Vec::new();
            for seed in 1.. {
                if let Some((error, answer)) = one_history(seed, known) {
                    assert_eq!(answer.sessions.is_some(), known, "history {seed}");
                    assert_eq!(answer.text().contains("session"), known, "{}", answer.text());
                    errors.push(error);
                }
                if errors.len() == 100 {
                    break;
                }
            }
            errors.sort_by(f64::total_cmp);
            let (median, worst) = (errors[50], errors[95]);
            eprintln!("known end {known}: median error {median:.3}, 95 % within {worst:.3}");
            assert!(median <= 0.10, "known end {known}: median error {median}");
        }
    }

    #[test]
    fn a_session_that_reaches_the_end_needs_no_other() {
        let mut records = SessionRecords::default();
        records.begin(&"run".into(), at(0.0));
        let session = records.current().unwrap();
        (session.step, session.trained_seconds, session.planned_seconds) = (50, 50.0, Some(100.0));
        session.seen = at(55.0);
        let live = Some(LivePace { step: 50, step_time: None });
        let fits = outlook(&records, 60, live, at(55.0)).unwrap();
        assert_eq!((fits.sessions, fits.time_left), (Some(0), Duration::from_secs(10)));
        assert_eq!(fits.text(), "done in 10s, within this session");
        let later = outlook(&records, 300, live, at(55.0)).unwrap();
        assert!(later.sessions.unwrap() >= 2 && later.text().contains("after this one"), "{later:?}");
    }

    #[test]
    fn without_a_pace_there_is_no_outlook_and_with_a_live_one_there_is() {
        let mut records = SessionRecords::default();
        assert_eq!(outlook(&records, 10, None, at(0.0)), None);
        records.begin(&"run".into(), at(0.0));
        assert_eq!(outlook(&records, 10, None, at(0.0)), None);
        let live = Some(LivePace { step: 4, step_time: Some(Duration::from_secs(2)) });
        let text = outlook(&records, 10, live, at(9.0)).unwrap().text();
        assert_eq!(text, "done in 12s if not interrupted");
    }
}
