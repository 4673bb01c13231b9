//! Rank 0's side of the connections to all others.
//!
//! Invariant: it listens at one named address, until all ranks are there and no longer; who has not proved itself is
//! told to the log and costs nothing else. Deliberately not here: what is said (`together`).

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ckptd_core::protocol::{MessageLevel, RankProgress, WorkerEvent};
use ckptd_core::{Error, Result};

use super::frame::Frame;
use super::link::THREAD;
use super::mailbox::{ArrivedPart, LossCause, Mailbox, SignOfLife};
use super::pace::RankPace;
use super::secret::{Entered, HANDSHAKE, JobSecret};
use crate::events::EventSender;

/// How long the other ranks may take to come.
const GATHERING: Duration = Duration::from_secs(300);

/// Handshakes at a time; who comes beyond them has to wait.
const AT_THE_DOOR: usize = 64;

/// Strangers that are told one by one.
const TOLD: usize = 20;

/// How often ranks are asked for a sign of life.
const ASKING: Duration = Duration::from_secs(1);

/// Rank 0's connections.
pub(super) struct Hub {
    pub mailbox: Mailbox,
    /// To rank 1, 2, ...
    links: Vec<Mutex<TcpStream>>,
    over: AtomicBool,
    pub pace: Mutex<RankPace>,
    /// The others may not leave before rank 0.
    pub stay: AtomicBool,
}

/// Tells all ranks that the training or the session is over.
#[derive(Clone)]
pub struct RanksEnd(Option<Arc<Hub>>);

/// What came of a connection.
type AtTheDoor = (SocketAddr, std::result::Result<(Entered, TcpStream), String>);

impl RanksEnd {
    /// Of a rank that is alone.
    pub fn alone() -> RanksEnd {
        RanksEnd(None)
    }

    pub(super) fn of(hub: Arc<Hub>) -> RanksEnd {
        RanksEnd(Some(hub))
    }

    /// They leave at once, with success.
    pub fn leave(&self) {
        if let Some(hub) = &self.0 {
            hub.over.store(true, Ordering::Relaxed);
            hub.say_to_all(&Frame::End);
        }
    }

    /// Whether they leave only with rank 0: an MPI's launcher ends all ranks when one of them is gone.
    pub fn must_stay(&self) -> bool {
        self.0.as_ref().is_some_and(|hub| hub.stay.load(Ordering::Relaxed))
    }

    /// They leave the processors to rank 0.
    pub fn make_way(&self) {
        if let Some(hub) = &self.0 {
            hub.say_to_all(&Frame::Yield);
        }
    }
}

/// Listens where `address` says, and nowhere else.
pub(super) fn listen(address: &str) -> Result<TcpListener> {
    let wrong = |e: std::io::Error| {
        Error::Config(format!(
            "rank 0 cannot listen at {address}: {e}; MASTER_ADDR must be an address of its own machine, and the \
             port free"
        ))
    };
    let resolved: Vec<SocketAddr> = address.to_socket_addrs().map_err(wrong)?.collect();
    TcpListener::bind(resolved.as_slice()).map_err(wrong)
}

impl Hub {
    /// Waits for ranks 1 to `size` - 1.
    ///
    /// # Errors
    /// [`Error::Config`] where ranks contradict one another, [`Error::Other`] where they do not come.
    pub(super) fn gather(
        listener: &TcpListener,
        secret: &JobSecret,
        size: usize,
        events: &EventSender,
    ) -> Result<Arc<Hub>> {
        let io = |e: std::io::Error| Error::Other(format!("listening for the other ranks: {e}"));
        listener.set_nonblocking(true).map_err(io)?;
        let by = Instant::now() + GATHERING;
        let (results, came) = channel();
        let busy: Arc<AtomicUsize> = Arc::default();
        let mut links: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
        let mut strangers = 0;
        let mut told = Instant::now();
        while links.iter().any(Option::is_none) {
            let missing = || {
                let missing = links.iter().enumerate().filter(|(_, link)| link.is_none());
                missing.map(|(index, _)| (index + 1).to_string()).collect::<Vec<_>>().join(", ")
            };
            if Instant::now() > by {
                let (missing, seconds) = (missing(), GATHERING.as_secs());
                return Err(Error::Other(format!("of {size} ranks these did not come within {seconds} s: {missing}")));
            }
            if told.elapsed() > ASKING {
                told = Instant::now();
                let stage = format!("waiting for ranks {}", missing());
                events.send(WorkerEvent::Progress { stage, fraction: None });
                // Those that are there hear that rank 0 lives. One that is gone is noticed when all are there.
                links.iter().flatten().for_each(|link| drop(Frame::Ping.write(link)));
            }
            open_the_door(listener, secret, &busy, &results);
            match next(&came) {
                Some((_, Ok((entered, stream)))) => enter(&mut links, size, &entered, stream)?,
                Some((from, Err(why))) => {
                    strangers += 1;
                    if strangers <= TOLD {
                        let what = format!("a connection from {from} to the ranks' address was refused: {why}");
                        events.log(MessageLevel::Warn, what);
                    }
                }
                None => {}
            }
        }
        let links = links.into_iter().flatten().map(Mutex::new).collect();
        let pace = Mutex::new(RankPace::new());
        let (over, stay) = (AtomicBool::new(false), AtomicBool::new(false));
        let hub = Arc::new(Hub { mailbox: Mailbox::new(size), links, over, pace, stay });
        for rank in 1..size {
            hub.clone().listen_to(rank)?;
        }
        hub.clone().keep_asking(events.clone())?;
        Ok(hub)
    }

    /// The other ranks.
    pub(super) fn others(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.links.len()
    }

    pub(super) fn say(&self, rank: usize, frame: &Frame) {
        let link = self.links[rank - 1].lock().unwrap_or_else(PoisonError::into_inner);
        if frame.write(&link).is_err() {
            drop(link);
            self.mailbox.lose(rank, LossCause::Gone);
        }
    }

    pub(super) fn say_to_all(&self, frame: &Frame) {
        self.others().for_each(|rank| self.say(rank, frame));
    }

    /// Takes in what `rank` says, on a thread of its own.
    fn listen_to(self: Arc<Hub>, rank: usize) -> Result<()> {
        let failed = |e: std::io::Error| Error::Other(format!("the connection to rank {rank}: {e}"));
        let stream = self.links[rank - 1].lock().unwrap_or_else(PoisonError::into_inner).try_clone();
        let stream = stream.map_err(failed)?;
        let body = move || {
            loop {
                match Frame::read(&stream) {
                    Ok(Some(frame)) => self.take(rank, frame),
                    Ok(None) | Err(_) => return self.mailbox.lose(rank, LossCause::Gone),
                }
            }
        };
        std::thread::Builder::new().name(THREAD.into()).spawn(body).map(drop).map_err(failed)
    }

    fn take(&self, rank: usize, frame: Frame) {
        let mailbox = &self.mailbox;
        mailbox.tell(|state| state.signs[rank].at = Instant::now());
        match frame {
            Frame::Part { call, bytes } => {
                let part = ArrivedPart { call, bytes, at: Instant::now() };
                mailbox.tell(|state| state.parts[rank].push_back(part));
            }
            Frame::Key { key, value } => self.publish(key, value),
            Frame::Progress { step, micro_batch } => {
                mailbox.tell(|state| state.signs[rank] = SignOfLife { at: Instant::now(), step, micro_batch });
            }
            Frame::Trouble { what, is_own: true } => mailbox.lose(rank, LossCause::Failed(what)),
            Frame::Trouble { what, is_own: false } => mailbox.lose(rank, LossCause::LostAnother(what)),
            Frame::Held { capture, step, trouble } => {
                mailbox.tell(|state| state.held[rank] = Some((capture, step, trouble)));
            }
            Frame::Piece { piece, bytes } => mailbox.tell(|state| drop(state.pieces.insert(piece, bytes))),
            // What rank 0 alone says.
            Frame::Parts { .. }
            | Frame::Ping
            | Frame::End
            | Frame::Hold { .. }
            | Frame::Fetch { .. }
            | Frame::Release
            | Frame::Yield => {}
        }
    }

    /// Gives a key to all ranks.
    pub(super) fn publish(&self, key: Vec<u8>, value: Vec<u8>) {
        self.say_to_all(&Frame::Key { key: key.clone(), value: value.clone() });
        self.mailbox.tell(|state| drop(state.keys.insert(key, value)));
    }

    /// How far all ranks are.
    fn progress(&self) -> Vec<RankProgress> {
        let pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = |(rank, sign): (usize, &SignOfLife)| RankProgress {
            rank: rank as u64,
            step: sign.step,
            micro_batch: sign.micro_batch,
            silent_ms: if rank == 0 { 0.0 } else { sign.at.elapsed().as_secs_f64() * 1e3 },
            lag_ms: pace.lag_ms(rank),
        };
        self.mailbox.signs().iter().enumerate().map(progress).collect()
    }

    fn keep_asking(self: Arc<Hub>, events: EventSender) -> Result<()> {
        let body = move || {
            while !self.over.load(Ordering::Relaxed) {
                self.say_to_all(&Frame::Ping);
                events.send(WorkerEvent::Ranks { ranks: self.progress() });
                std::thread::sleep(ASKING);
            }
        };
        let spawned = std::thread::Builder::new().name(THREAD.into()).spawn(body);
        spawned.map(drop).map_err(|e| Error::Other(format!("starting a thread for the ranks: {e}")))
    }
}

/// Begins a handshake with each connection that waits, on a thread of its own.
fn open_the_door(listener: &TcpListener, secret: &JobSecret, busy: &Arc<AtomicUsize>, results: &Sender<AtTheDoor>) {
    while busy.load(Ordering::Relaxed) < AT_THE_DOOR
        && let Ok((mut stream, from)) = listener.accept()
    {
        busy.fetch_add(1, Ordering::Relaxed);
        let (secret, busy_too, results) = (secret.clone(), busy.clone(), results.clone());
        let body = move || {
            let outcome = match stream.set_nonblocking(false) {
                Ok(()) => secret.admit(&mut stream).map(|entered| (entered, stream)),
                Err(e) => Err(e.to_string()),
            };
            busy_too.fetch_sub(1, Ordering::Relaxed);
            let _ = results.send((from, outcome));
        };
        if std::thread::Builder::new().name(THREAD.into()).spawn(body).is_err() {
            busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn next(came: &Receiver<AtTheDoor>) -> Option<AtTheDoor> {
    came.recv_timeout(Duration::from_millis(10)).ok()
}

/// Takes in a rank that has proved itself.
fn enter(links: &mut [Option<TcpStream>], size: usize, entered: &Entered, stream: TcpStream) -> Result<()> {
    let rank = entered.rank;
    if entered.size != size {
        let theirs = entered.size;
        return Err(Error::Config(format!(
            "rank {rank} was started as one of {theirs} ranks, rank 0 as one of {size}"
        )));
    }
    let place = rank.checked_sub(1).and_then(|index| links.get_mut(index));
    let Some(place) = place.filter(|place| place.is_none()) else {
        return Err(Error::Config(format!("two processes were started as rank {rank} of {size}")));
    };
    let set = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(None));
    set.and_then(|()| stream.set_write_timeout(Some(HANDSHAKE)))
        .map_err(|e| Error::Other(format!("the connection to rank {rank}: {e}")))?;
    *place = Some(stream);
    Ok(())
}
