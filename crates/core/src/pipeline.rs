//! An ordered pipeline: workers produce items ahead, one consumer takes them in order. Chunks reach the disk through
//! one, reads reach an export.
//!
//! Invariant: no more items are made ahead than the window holds, and their memory is used again. When one side ends,
//! fails or panics, the other one stops. Deliberately not here: what the items are, and the number of workers.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::error::{Error, Result};

/// Items that [`ahead`] makes before the one that is taken, per thread.
const WINDOW_PER_THREAD: usize = 3;
/// A wait that lasts longer is begun again.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the workers and the consumer share.
pub struct Pipeline<T> {
    count: usize,
    window: usize,
    state: Mutex<PipelineState<T>>,
    made: Condvar,
    space: Condvar,
}

struct PipelineState<T> {
    next: usize,
    taken: usize,
    made: BTreeMap<usize, T>,
    spare: Vec<Vec<u8>>,
    /// Either side ended: the other one stops too.
    ended: bool,
}

/// The workers are gone although items are missing.
pub struct PipelineEnded;

impl<T> Pipeline<T> {
    /// Of `count` items, of which `window` may be made before the first of them is given back.
    pub fn new(count: usize, window: usize) -> Pipeline<T> {
        let state = PipelineState { next: 0, taken: 0, made: BTreeMap::new(), spare: Vec::new(), ended: false };
        Pipeline { count, window, state: Mutex::new(state), made: Condvar::new(), space: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, PipelineState<T>> {
        // Nothing under this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// For a worker: the index of the next item to make, once it is within the window, and memory of an earlier one.
    /// `None` when there is none left.
    pub fn next(&self) -> Option<(usize, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.ended || state.next == self.count {
                return None;
            }
            if state.next < state.taken + self.window {
                state.next += 1;
                return Some((state.next - 1, state.spare.pop().unwrap_or_default()));
            }
            state = self.space.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// For a worker: the item of this index is made.
    pub fn put(&self, index: usize, item: T) {
        self.lock().made.insert(index, item);
        self.made.notify_one();
    }

    /// For the consumer: the item after those that were given back, or `None` if it is not made within `patience`.
    pub fn take(&self, patience: Duration) -> Result<Option<T>, PipelineEnded> {
        let mut state = self.lock();
        let index = state.taken;
        if !state.made.contains_key(&index) && !state.ended {
            state = self.made.wait_timeout(state, patience).unwrap_or_else(|e| e.into_inner()).0;
        }
        match state.made.remove(&index) {
            None if state.ended => Err(PipelineEnded),
            item => Ok(item),
        }
    }

    /// For the consumer: it is done with the item that it took last, whose memory this is.
    pub fn give_back(&self, memory: Vec<u8>) {
        let mut state = self.lock();
        state.taken += 1;
        state.spare.push(memory);
        drop(state);
        self.space.notify_all();
    }

    /// Ends both sides.
    pub fn end(&self) {
        self.lock().ended = true;
        self.made.notify_all();
        self.space.notify_all();
    }

    /// For the consumer: the workers stop when this is dropped.
    pub fn end_on_drop(&self) -> EndOnDrop<'_, T> {
        EndOnDrop { pipeline: self, when: EndWhen::Dropped }
    }

    /// For a worker: the others stop when its thread panics.
    pub fn end_on_panic(&self) -> EndOnDrop<'_, T> {
        EndOnDrop { pipeline: self, when: EndWhen::Panicking }
    }
}

/// Ends a pipeline when it is dropped.
pub struct EndOnDrop<'a, T> {
    pipeline: &'a Pipeline<T>,
    when: EndWhen,
}

#[derive(PartialEq, Eq)]
enum EndWhen {
    Dropped,
    Panicking,
}

impl<T> Drop for EndOnDrop<'_, T> {
    fn drop(&mut self) {
        if self.when == EndWhen::Dropped || std::thread::panicking() {
            self.pipeline.end();
        }
    }
}

/// Makes one item of each of `orders` on `threads` threads, and hands them to `take` in that order. `make` gets the
/// state that `worker` made for its thread, and memory of an earlier item, of any length and content.
///
/// # Errors
/// The first error of either side, which ends both.
pub fn ahead<O: Sync, W>(
    orders: &[O],
    threads: usize,
    worker: impl Fn() -> W + Sync,
    make: impl Fn(&mut W, &O, Vec<u8>) -> Result<Vec<u8>> + Sync,
    mut take: impl FnMut(&O, &[u8]) -> Result<()>,
) -> Result<()> {
    let threads = threads.clamp(1, orders.len().max(1));
    let pipeline = &Pipeline::new(orders.len(), threads * WINDOW_PER_THREAD);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _end = pipeline.end_on_panic();
                let mut worker = worker();
                while let Some((index, memory)) = pipeline.next() {
                    pipeline.put(index, make(&mut worker, &orders[index], memory));
                }
            });
        }
        let _end = pipeline.end_on_drop();
        orders.iter().try_for_each(|order| {
            let item = loop {
                match pipeline.take(PATIENCE) {
                    Ok(Some(item)) => break item?,
                    Ok(None) => {}
                    Err(PipelineEnded) => return Err(Error::Other("a reading thread died".into())),
                }
            };
            take(order, &item)?;
            pipeline.give_back(item);
            Ok(())
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Error;

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
