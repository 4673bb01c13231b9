//! Makes things on several threads while they are taken in their order: reading ahead of writing.
//!
//! Invariant: things are taken in order, only as many exist as the window holds, their memory is used again, and the first
//! error of either side ends both. Deliberately not here: what is made.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, Result};

/// Things that may be made ahead of the one that is taken, for each thread.
const WINDOW_PER_THREAD: usize = 3;

struct Shared {
    next: usize,
    taken: usize,
    made: BTreeMap<usize, Result<Vec<u8>>>,
    spare: Vec<Vec<u8>>,
    /// Either side ended: the other one stops too.
    ended: bool,
}

struct Line {
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// Makes one thing of each of `orders` on `threads` threads, and hands them to `take` in that order. `make` gets what its
/// thread's `worker` made, and memory of an earlier thing, of any length and content.
pub fn ahead<O: Sync, W>(
    orders: &[O],
    threads: usize,
    worker: impl Fn() -> W + Sync,
    make: impl Fn(&mut W, &O, Vec<u8>) -> Result<Vec<u8>> + Sync,
    mut take: impl FnMut(&O, &[u8]) -> Result<()>,
) -> Result<()> {
    let threads = threads.clamp(1, orders.len().max(1));
    let shared = Shared { next: 0, taken: 0, made: BTreeMap::new(), spare: Vec::new(), ended: false };
    let line = &Line { shared: Mutex::new(shared), changed: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // A thread that panics must not leave the other side waiting.
                let _end = EndOnDrop(line, true);
                let mut worker = worker();
                while let Some((index, memory)) = line.next(orders.len(), threads * WINDOW_PER_THREAD) {
                    line.put(index, make(&mut worker, &orders[index], memory));
                }
            });
        }
        let _end = EndOnDrop(line, false);
        orders.iter().enumerate().try_for_each(|(index, order)| {
            let thing = line.wait_for(index)?;
            take(order, &thing)?;
            line.give_back(thing);
            Ok(())
        })
    })
}

/// Ends the work when its owner returns, fails or panics; with true only when it panics.
struct EndOnDrop<'a>(&'a Line, bool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        if !self.1 || std::thread::panicking() {
            self.0.lock().ended = true;
            self.0.changed.notify_all();
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing under this lock can panic half-way through a change.
        self.shared.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The next thing to make, once it is within the window, and memory for it.
    fn next(&self, count: usize, window: usize) -> Option<(usize, Vec<u8>)> {
        let mut shared = self.lock();
        loop {
            if shared.ended || shared.next == count {
                return None;
            }
            if shared.next < shared.taken + window {
                shared.next += 1;
                return Some((shared.next - 1, shared.spare.pop().unwrap_or_default()));
            }
            shared = self.changed.wait(shared).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn put(&self, index: usize, thing: Result<Vec<u8>>) {
        self.lock().made.insert(index, thing);
        self.changed.notify_all();
    }

    fn wait_for(&self, index: usize) -> Result<Vec<u8>> {
        let mut shared = self.lock();
        loop {
            match shared.made.remove(&index) {
                Some(thing) => return thing,
                None if shared.ended => return Err(Error::Other("a reading thread died".into())),
                None => shared = self.changed.wait(shared).unwrap_or_else(|e| e.into_inner()),
            }
        }
    }

    fn give_back(&self, thing: Vec<u8>) {
        let mut shared = self.lock();
        shared.taken += 1;
        shared.spare.push(thing);
        drop(shared);
        self.changed.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn run(
        orders: &[u8],
        threads: usize,
        make: impl Fn(u8) -> Result<u8> + Sync,
        take: impl Fn(u8) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let mut taken = Vec::new();
        let make = |_: &mut (), order: &u8, mut memory: Vec<u8>| {
            memory.clear();
            memory.push(make(*order)?);
            Ok(memory)
        };
        ahead(
            orders,
            threads,
            || (),
            make,
            |order, thing| {
                taken.push(thing[0]);
                take(*order)
            },
        )?;
        Ok(taken)
    }

    #[test]
    fn things_come_in_order_and_the_first_error_of_either_side_ends_both() {
        let orders: Vec<u8> = (0..=255).collect();
        let slow_at_times = |i: u8| {
            std::thread::sleep(std::time::Duration::from_micros(u64::from(i.wrapping_mul(37)) % 11 * 20));
            Ok(i ^ 0x55)
        };
        for threads in [1, 2, 5, 1000] {
            let taken = run(&orders, threads, slow_at_times, |_| Ok(())).unwrap();
            assert!(taken.iter().zip(&orders).all(|(taken, order)| *taken == order ^ 0x55));
            assert_eq!(taken.len(), orders.len());
            let fail = |at: u8| move |i: u8| if i == at { Err(Error::Other(format!("at {i}"))) } else { Ok(i) };
            let error = run(&orders, threads, fail(30), |_| Ok(())).unwrap_err();
            assert_eq!(error.to_string(), "at 30");
            let error = run(&orders, threads, Ok, |i| fail(50)(i).map(drop)).unwrap_err();
            assert_eq!(error.to_string(), "at 50");
        }
        assert!(run(&[], 2, Ok, |_| Ok(())).unwrap().is_empty());
    }
}
