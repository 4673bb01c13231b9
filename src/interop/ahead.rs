//! Reads while it writes: what comes next is made on another thread while the one before is taken.
//!
//! Invariant: things are taken in order, at most three of them exist at a time, and the first error of either side ends
//! both. Deliberately not here: what is made.

use std::sync::mpsc::sync_channel;

use crate::error::Result;

/// Makes one thing for each of `indices` with `make`, and hands them to `take` in that order.
pub fn ahead<T: Send>(
    indices: impl Iterator<Item = usize> + Send,
    make: impl Fn(usize) -> Result<T> + Sync,
    mut take: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (made, next) = sync_channel(1);
        let make = &make;
        scope.spawn(move || {
            for index in indices {
                let thing = make(index);
                let failed = thing.is_err();
                // Nobody listens any more where taking has failed.
                if made.send((index, thing)).is_err() || failed {
                    return;
                }
            }
        });
        for (index, thing) in next {
            take(index, thing?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn things_come_in_order_and_the_first_error_of_either_side_ends_both() {
        let mut taken = Vec::new();
        ahead(
            [4, 2, 7].into_iter(),
            |i| Ok(i * 10),
            |i, thing| {
                taken.push((i, thing));
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(taken, [(4, 40), (2, 20), (7, 70)]);

        let fail = |at: usize| move |i: usize| if i == at { Err(Error::Other(format!("at {i}"))) } else { Ok(i) };
        let error = ahead(0.., fail(3), |_, _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "at 3");
        let error = ahead(0.., Ok, |i, _| fail(5)(i).map(drop)).unwrap_err();
        assert_eq!(error.to_string(), "at 5");
    }
}
