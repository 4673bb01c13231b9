//! The connection of another rank to rank 0.
//!
//! Invariant: a rank does not outlive rank 0, and leaves when it says so, whatever it computes. Deliberately not here:
//! what is said (`together`).

use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ckptd_core::os::process::{YIELDING_NICE, lower_other_threads};
use ckptd_core::{Error, Result};

use super::frame::Frame;
use super::mailbox::Mailbox;
use super::place::{RankPlace, SECRET, say};
use super::secret::{HANDSHAKE, JobSecret};
use super::transport;

/// How long rank 0 may take to listen.
const COMING: Duration = Duration::from_secs(300);

/// Rank 0 asks for a sign of life each second; one that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);

/// Threads that hear what other ranks say.
pub const THREAD: &str = "ranks";
/// The thread that gives rank 0 what this rank holds.
pub const MOMENTS_THREAD: &str = "moments";

/// A rank's connection to rank 0.
pub(super) struct Link {
    pub mailbox: Mailbox,
    rank: usize,
    stream: Mutex<TcpStream>,
    /// Steps, and micro-batches of the next one.
    place: Mutex<(u64, u64)>,
    /// Rank 0's orders about snapshots, on their way to what serves them.
    orders: Sender<Frame>,
    pub arrived: Mutex<Option<Receiver<Frame>>>,
}

impl Link {
    /// Connects to rank 0. Returns the address under which rank 0 sees this rank's machine, too.
    ///
    /// # Errors
    /// [`Error::Config`] where rank 0 refuses this rank, [`Error::Other`] where it does not answer.
    pub(super) fn connect(place: &RankPlace, secret: &JobSecret) -> Result<(Arc<Link>, IpAddr)> {
        let (rank, by) = (place.rank, Instant::now() + COMING);
        let mut stream = loop {
            match TcpStream::connect(&place.address) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > by => {
                    let (at, seconds) = (&place.address, COMING.as_secs());
                    return Err(Error::Other(format!("rank 0 did not answer at {at} within {seconds} s: {e}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        secret.enter(&mut stream, rank, place.size).map_err(|why| {
            Error::Config(format!(
                "rank 0 at {} does not let rank {rank} in ({why}); is {SECRET} the same for all ranks?",
                place.address
            ))
        })?;
        let io = |e: std::io::Error| Error::Other(format!("the connection to rank 0: {e}"));
        stream.set_nodelay(true).map_err(io)?;
        stream.set_read_timeout(Some(SILENCE)).map_err(io)?;
        stream.set_write_timeout(Some(HANDSHAKE)).map_err(io)?;
        let address = stream.local_addr().map_err(io)?.ip();
        let reading = stream.try_clone().map_err(io)?;
        let (stream, mailbox) = (Mutex::new(stream), Mailbox::new(place.size));
        let (orders, arrived) = channel();
        let arrived = Mutex::new(Some(arrived));
        let link = Arc::new(Link { mailbox, rank, stream, place: Mutex::default(), orders, arrived });
        let served = link.clone();
        let spawned = std::thread::Builder::new().name(THREAD.into()).spawn(move || served.serve(&reading));
        spawned.map_err(io)?;
        Ok((link, address))
    }

    pub(super) fn say(&self, frame: &Frame) -> Result<()> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&stream).map_err(|e| Error::Other(format!("rank 0 does not take a message: {e}")))
    }

    pub(super) fn is_at(&self, step: u64, micro_batch: u64) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = (step, micro_batch);
    }

    fn serve(&self, stream: &TcpStream) {
        loop {
            let frame = match Frame::read(stream) {
                Ok(Some(frame)) => frame,
                Ok(None) => self.leave("rank 0 is gone", 1),
                Err(e) => self.leave(&format!("rank 0 is gone: {e}"), 1),
            };
            match frame {
                Frame::Parts { call, parts } => self.mailbox.tell(|state| state.answers.push_back((call, parts))),
                Frame::Key { key, value } => self.mailbox.tell(|state| drop(state.keys.insert(key, value))),
                Frame::Ping => {
                    let (step, micro_batch) = *self.place.lock().unwrap_or_else(PoisonError::into_inner);
                    // Where it does not arrive, the next read says so.
                    let _ = self.say(&Frame::Progress { step, micro_batch });
                }
                Frame::End => {
                    transport::finish();
                    self.leave("", 0)
                }
                // Not here: holding a state may wait for an update, and this thread gives the signs of life.
                Frame::Hold { .. } | Frame::Release => {
                    self.mailbox.tell(|state| state.is_holding = frame != Frame::Release);
                    drop(self.orders.send(frame));
                }
                Frame::Fetch { .. } => drop(self.orders.send(frame)),
                Frame::Yield => {
                    lower_other_threads(YIELDING_NICE, &[MOMENTS_THREAD, THREAD]);
                    drop(self.orders.send(frame));
                }
                // What rank 0 alone hears.
                Frame::Part { .. }
                | Frame::Progress { .. }
                | Frame::Trouble { .. }
                | Frame::Held { .. }
                | Frame::Piece { .. } => {}
            }
        }
    }

    /// Ends this process, whatever its other threads are at: rank 0 has the state.
    fn leave(&self, why: &str, code: i32) -> ! {
        if !why.is_empty() {
            say(self.rank, why);
        }
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(code) }
    }
}
