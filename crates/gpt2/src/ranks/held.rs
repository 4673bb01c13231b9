//! What ranks hold of a state, each its own part, and give to rank 0 while it writes a snapshot.
//!
//! Orders and pieces go over the connections to rank 0, so that they do not meet the gradients. A piece is asked for
//! when it is to be encoded: rank 0 needs no memory for more than those that are being encoded. Invariant: what a rank
//! gives is of the step that it has said. Deliberately not here: which rank holds what (`reduction`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ckptd_core::snapshot::TensorBytes;
use ckptd_core::{Error, Result};

use super::frame::Frame;
use super::hub::Hub;
use super::link::Link;

/// Lets rank 0 have what all others hold.
#[derive(Clone)]
pub struct HeldParts {
    hub: Arc<Hub>,
    patience: Duration,
    numbers: Arc<AtomicU64>,
}

/// What all ranks hold after one step, until this is dropped.
pub struct HeldStep {
    parts: HeldParts,
}

impl HeldParts {
    pub(super) fn new(hub: Arc<Hub>, patience: Duration) -> HeldParts {
        HeldParts { hub, patience, numbers: Arc::default() }
    }

    /// Lets the `owners` among the other ranks hold what they have after `step` steps. No rank may go on to the next
    /// update before this returns. (One that owns nothing may not have begun the last update yet.)
    ///
    /// # Errors
    /// That a rank is lost, or holds something else.
    pub fn hold(&self, step: u64, owners: &[usize]) -> Result<HeldStep> {
        let capture = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.hub.say_to_all(&Frame::Hold { capture });
        let held = HeldStep { parts: self.clone() };
        for &rank in owners {
            let answer = self
                .hub
                .mailbox
                .wait_for(self.patience, |state| state.held[rank].take_if(|(number, ..)| *number == capture));
            match answer {
                Some((_, of, trouble)) if of == step && trouble.is_empty() => {}
                Some((_, of, trouble)) if trouble.is_empty() => {
                    return Err(Error::Other(format!("rank {rank} is after step {of}, rank 0 after step {step}")));
                }
                Some((.., trouble)) => return Err(Error::Other(format!("on rank {rank}: {trouble}"))),
                None => return Err(self.lost(rank)),
            }
        }
        Ok(held)
    }

    /// Lets all other ranks leave the processors to the last snapshot: what they compute is not wanted any more.
    pub fn end_training(&self) {
        self.hub.say_to_all(&Frame::Yield);
    }

    fn lost(&self, rank: usize) -> Error {
        let cause = self.hub.mailbox.culprit().or_else(|| self.hub.mailbox.effect());
        let cause = cause.unwrap_or_else(|| format!("rank {rank} does not answer"));
        Error::Other(format!("the optimizer's state is not complete: {cause}"))
    }
}

impl HeldStep {
    /// Bytes of a tensor, by its index in the state, from `rank`.
    ///
    /// # Errors
    /// That the rank is lost.
    pub fn fetch(&self, rank: usize, tensor: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        let HeldParts { hub, patience, numbers } = &self.parts;
        let piece = numbers.fetch_add(1, Ordering::Relaxed);
        hub.say(rank, &Frame::Fetch { piece, tensor: tensor as u64, offset, bytes: into.len() as u64 });
        let bytes = hub.mailbox.wait_for(*patience, |state| state.pieces.remove(&piece));
        let bytes = bytes.ok_or_else(|| self.parts.lost(rank))?;
        if bytes.len() != into.len() {
            return Err(Error::Other(format!("rank {rank} does not hold byte {offset} of tensor {tensor}")));
        }
        into.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Drop for HeldStep {
    fn drop(&mut self) {
        self.parts.hub.say_to_all(&Frame::Release);
    }
}

/// A part of a tensor that this rank holds: the tensor's index, where the part begins, its bytes.
pub type HeldPart = (usize, u64, TensorBytes);

/// What serving rank 0's orders needs of a training.
pub trait PartHolder {
    /// The steps that are done, and the parts after them, which stay as they are until they are dropped.
    ///
    /// # Errors
    /// Where there are none.
    fn hold(&self) -> Result<(u64, Vec<HeldPart>)>;

    /// No step after this: what is held is for the last snapshot.
    fn end_training(&self);
}

/// Serves rank 0's orders on a rank other than 0.
pub struct PartServer {
    pub(super) orders: Receiver<Frame>,
    pub(super) link: Arc<Link>,
}

impl PartServer {
    /// Until the process ends.
    pub fn serve(self, holder: &impl PartHolder) {
        let mut held: HashMap<usize, (u64, TensorBytes)> = HashMap::new();
        for order in self.orders {
            let answer = match order {
                Frame::Hold { capture } => {
                    held.clear();
                    let (step, trouble) = match holder.hold() {
                        Ok((step, parts)) => {
                            held.extend(parts.into_iter().map(|(tensor, offset, bytes)| (tensor, (offset, bytes))));
                            (step, String::new())
                        }
                        Err(e) => (0, e.to_string()),
                    };
                    Frame::Held { capture, step, trouble }
                }
                Frame::Fetch { piece, tensor, offset, bytes } => {
                    let part = held.get(&(tensor as usize));
                    let found = part.and_then(|(first, part)| {
                        let from = usize::try_from(offset.checked_sub(*first)?).ok()?;
                        (**part).as_ref().get(from..from.checked_add(usize::try_from(bytes).ok()?)?)
                    });
                    Frame::Piece { piece, bytes: found.unwrap_or_default().to_vec() }
                }
                Frame::Yield => {
                    holder.end_training();
                    continue;
                }
                _ => {
                    held.clear();
                    continue;
                }
            };
            // Where it does not arrive, rank 0 is gone, and this process ends.
            let _ = self.link.say(&answer);
        }
    }
}
