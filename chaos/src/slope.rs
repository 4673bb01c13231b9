//! Least squares over several lives of a process: one slope for all, a level of its own for each.
//!
//! A process that is killed and started again begins small and warms up, which a line through everything would take
//! for growth. So each life is measured against its own mean (the within estimator of panel data), after its warm-up. And
//! what a snapshot in flight takes comes and goes: of each stretch of time only the lowest value counts.

use std::collections::BTreeMap;

/// Seconds of which the lowest value counts.
const STRETCH: f64 = 20.0;

#[derive(Default)]
pub struct Slope {
    /// Seconds and values of each life.
    lives: BTreeMap<u32, Vec<(f64, f64)>>,
}

impl Slope {
    pub fn add(&mut self, life: u32, seconds: f64, value: f64) {
        self.lives.entry(life).or_default().push((seconds, value));
    }

    pub fn samples(&self) -> usize {
        self.lives.values().map(Vec::len).sum()
    }

    pub fn largest(&self) -> f64 {
        self.lives.values().flatten().map(|(_, value)| *value).fold(0.0, f64::max)
    }

    /// Change an hour and its standard error; `None` where there is too little to say.
    pub fn per_hour(&self) -> Option<(f64, f64)> {
        let lives: Vec<Vec<(f64, f64)>> = self.lives.values().map(|life| lows(life)).filter(|l| l.len() > 2).collect();
        let (mut xx, mut xy) = (0.0, 0.0);
        let centred: Vec<(f64, f64)> = lives.iter().flat_map(|life| centre(life)).collect();
        for (x, y) in &centred {
            xx += x * x;
            xy += x * y;
        }
        let free = centred.len() as f64 - lives.len() as f64 - 1.0;
        if xx <= 0.0 || free <= 0.0 {
            return None;
        }
        let slope = xy / xx;
        let rest: f64 = centred.iter().map(|(x, y)| (y - slope * x).powi(2)).sum();
        Some((slope * 3600.0, (rest / free / xx).sqrt() * 3600.0))
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

/// A life's samples less their mean.
fn centre(life: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = life.len() as f64;
    let mean = |values: &dyn Fn(&(f64, f64)) -> f64| life.iter().map(values).sum::<f64>() / n;
    let (x, y) = (mean(&|s| s.0), mean(&|s| s.1));
    life.iter().map(|s| (s.0 - x, s.1 - y)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lives_of_different_sizes_that_do_not_grow_have_no_slope_and_a_leak_in_each_has_its_own() {
        let (mut flat, mut leak) = (Slope::default(), Slope::default());
        for life in 0..5 {
            for second in 0..200 {
                let at = f64::from(life * 1000 + second);
                let snapshot = f64::from(second % 7) * 50.0;
                flat.add(life as u32, at, 1000.0 * f64::from(life) + f64::from(second % 2));
                leak.add(life as u32, at, 1000.0 * f64::from(life) + 2.0 * f64::from(second) + snapshot);
            }
        }
        assert!(flat.per_hour().unwrap().0.abs() < 1e-9);
        assert!((leak.per_hour().unwrap().0 - 7200.0).abs() < 72.0);
        assert_eq!(Slope::default().per_hour(), None);
    }
}
