//! Whether a process grows, over several lives of it: the median of all slopes between two moments of one life.
//!
//! A process that is killed and started again begins small and warms up, which a line through everything would take
//! for growth. So only moments of the same life are compared, after its warm-up. What a snapshot in flight takes comes
//! and goes: of each stretch of time only the lowest value counts. And what is taken once, at a first damaged snapshot
//! for one, moves a median (Theil and Sen's) little, where least squares would call it a slope; a leak is in most of
//! the pairs.

use std::collections::BTreeMap;

/// Seconds of which the lowest value counts.
const STRETCH: f64 = 20.0;
/// Moments that are nearer say little.
const LEAST_SECONDS: f64 = 60.0;
/// Fewer pairs say nothing.
const LEAST_PAIRS: usize = 30;

#[derive(Default)]
pub struct LifeSeries {
    /// Seconds and values of each life.
    lives: BTreeMap<u32, Vec<(f64, f64)>>,
}

/// Change an hour: of half of all pairs of moments it is as much or more, of three quarters `most` or more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HourlyGrowth {
    pub median: f64,
    pub most: f64,
}

impl LifeSeries {
    pub fn add(&mut self, life: u32, seconds: f64, value: f64) {
        self.lives.entry(life).or_default().push((seconds, value));
    }

    pub fn largest(&self) -> f64 {
        self.lives.values().flatten().map(|(_, value)| *value).fold(0.0, f64::max)
    }

    /// `None` where there is too little to say.
    pub fn per_hour(&self) -> Option<HourlyGrowth> {
        let mut slopes: Vec<f64> = self.lives.values().flat_map(|life| slopes(&lows(life))).collect();
        slopes.sort_unstable_by(f64::total_cmp);
        let at = |share: usize| slopes[slopes.len() * share / 4] * 3600.0;
        (slopes.len() >= LEAST_PAIRS).then(|| HourlyGrowth { median: at(2), most: at(1) })
    }
}

/// The lowest value of each stretch of a life, with its time.
fn lows(life: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut lows: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for &(x, y) in life {
        let low = lows.entry((x / STRETCH) as u64).or_insert((x, y));
        if y < low.1 {
            *low = (x, y);
        }
    }
    lows.into_values().collect()
}

/// Between any two moments that are far enough apart.
fn slopes(moments: &[(f64, f64)]) -> Vec<f64> {
    let pairs = moments.iter().enumerate().flat_map(|(index, a)| moments[index + 1..].iter().map(move |b| (a, b)));
    pairs.filter(|(a, b)| b.0 - a.0 >= LEAST_SECONDS).map(|(a, b)| (b.1 - a.1) / (b.0 - a.0)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Five lives of different sizes, busy with a snapshot most of the time.
    fn lives(value: impl Fn(f64) -> f64) -> LifeSeries {
        let mut slope = LifeSeries::default();
        for life in 0..5 {
            for second in 0..400 {
                let at = f64::from(life * 1000 + second);
                let snapshot = f64::from(second % 7) * 50.0;
                slope.add(life as u32, at, 1000.0 * f64::from(life) + value(f64::from(second)) + snapshot);
            }
        }
        slope
    }

    #[test]
    fn what_does_not_grow_or_only_once_has_no_slope_and_a_leak_has_its_own() {
        assert_eq!(lives(|_| 0.0).per_hour(), Some(HourlyGrowth { median: 0.0, most: 0.0 }));
        let once = lives(|second| if second > 100.0 { 900.0 } else { 0.0 }).per_hour().unwrap();
        assert_eq!(once.most, 0.0);
        let leak = lives(|second| 2.0 * second).per_hour().unwrap();
        assert!((leak.median - 7200.0).abs() < 400.0 && leak.most > 6000.0, "{leak:?}");
        assert_eq!(LifeSeries::default().per_hour(), None);
    }
}
