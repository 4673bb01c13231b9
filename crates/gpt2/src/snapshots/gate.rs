//! When a state may be captured that many ranks hold together: not while an update is under way on any of them.
//!
//! No rank begins an update before it hears from rank 0 what all have said in the step's meeting. Rank 0 passes this
//! gate before it says so. While the gate is held, all ranks are after the same step, or are just finishing it.
//! Invariant: an update that has begun ends before the gate is held. Deliberately not here: capturing.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The gate; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct UpdateGate(Arc<GateState>);

#[derive(Debug, Default)]
struct GateState {
    state: Mutex<GateUse>,
    changed: Condvar,
}

/// What is known under the lock.
#[derive(Debug, Default)]
struct GateUse {
    is_updating: bool,
    /// So many hold up the next update.
    holds: usize,
}

/// Alive while no update may begin.
#[derive(Debug)]
pub struct GateHold(UpdateGate);

impl UpdateGate {
    fn lock(&self) -> MutexGuard<'_, GateUse> {
        // Every change under this lock is one assignment.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody holds up updates, and begins one. Returns how long that was.
    pub fn begin_update(&self) -> Duration {
        let began = Instant::now();
        let mut state = self.lock();
        while state.holds > 0 {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_updating = true;
        began.elapsed()
    }

    /// Ends it, or what came of it.
    pub fn end_update(&self) {
        self.lock().is_updating = false;
        self.0.changed.notify_all();
    }

    /// Waits for an update that is under way, and holds up the next one.
    pub fn hold(&self) -> GateHold {
        let mut state = self.lock();
        // From now on none begins.
        state.holds += 1;
        while state.is_updating {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        GateHold(self.clone())
    }
}

impl Drop for GateHold {
    fn drop(&mut self) {
        self.0.lock().holds -= 1;
        self.0.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_update_ends_before_the_gate_is_held_and_none_begins_meanwhile() {
        let gate = UpdateGate::default();
        gate.begin_update();
        let (other, (told, heard)) = (gate.clone(), std::sync::mpsc::channel());
        let holder = std::thread::spawn(move || {
            let held = other.hold();
            let _ = told.send("held");
            held
        });
        assert!(heard.recv_timeout(Duration::from_millis(50)).is_err(), "an update is under way");
        gate.end_update();
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok("held"));
        let held = holder.join().ok();
        let (other, (told, begun)) = (gate.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            other.begin_update();
            let _ = told.send("begun");
        });
        assert!(begun.recv_timeout(Duration::from_millis(50)).is_err(), "it is held");
        drop(held);
        assert_eq!(begun.recv_timeout(Duration::from_secs(60)), Ok("begun"));
    }
}
