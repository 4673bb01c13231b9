//! The group of ranks as rank 0 and the others see it: small messages over their connections to rank 0, gradients over
//! the transport.
//!
//! Invariant: rank 0 finds out which rank is the cause of a failure; the others leave after it. Deliberately not here:
//! what is exchanged.

use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ckptd_core::config::RankBackend;
use ckptd_core::protocol::Start;
use ckptd_core::{Error, Result};

use super::frame::Frame;
use super::group::{Incoming, Outgoing, RankGroup, Transport};
use super::held::{HeldParts, PartServer};
use super::hub::{self, Hub, RanksEnd};
use super::launch::LaunchedRanks;
use super::link::Link;
use super::mailbox::{ArrivedPart, Mailbox, SignOfLife};
use super::mesh::KeyStore;
use super::place::RankPlace;
use super::secret::JobSecret;
use super::transport;
use crate::events::EventSender;

/// Until rank 0 has said what to train. It may read texts for hours; that it lives is heard meanwhile.
const PREPARATION: Duration = Duration::from_secs(24 * 3600);

/// How long ranks may differ at least in reading a state.
const READING: Duration = Duration::from_secs(120);

/// How long rank 0 has to find out what happened and to save, before a rank that noticed it leaves.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// Values of float32 that a proof fits in.
const PROOF: usize = 8;

/// Rank 0 among the others.
pub struct Leader {
    hub: Arc<Hub>,
    size: usize,
    calls: u64,
    hang_timeout: Duration,
    patience: Duration,
    secret: JobSecret,
    address: IpAddr,
    transport: Option<Box<dyn Transport>>,
    _launched: Option<LaunchedRanks>,
}

/// Another rank.
pub struct Follower {
    link: Arc<Link>,
    rank: usize,
    size: usize,
    calls: u64,
    hang_timeout: Duration,
    patience: Duration,
    secret: JobSecret,
    address: IpAddr,
    transport: Option<Box<dyn Transport>>,
    /// What failed is that another rank was lost.
    lost_another: Arc<AtomicBool>,
}

/// How a rank tells rank 0 why it cannot go on.
#[derive(Clone)]
pub struct RankVoice {
    link: Arc<Link>,
    lost_another: Arc<AtomicBool>,
}

impl RankVoice {
    /// Says it. Where the cause is elsewhere, rank 0 gets the time to find it.
    pub fn fail(&self, what: &str) {
        let is_own = !self.lost_another.load(Ordering::Relaxed);
        let _ = self.link.say(&Frame::Trouble { what: what.to_owned(), is_own });
        if !is_own {
            std::thread::sleep(FIRST_WORD);
        }
    }
}

/// How long ranks wait for one another where a silent worker counts as hung after `hang_timeout`: rank 0 has the rest
/// of it to save.
fn patience(hang_timeout: Duration) -> Duration {
    hang_timeout / 2
}

impl Leader {
    /// Waits for the ranks that a launcher has started.
    ///
    /// # Errors
    /// [`Error::Config`] where the address is none, or ranks contradict one another; [`Error::Other`] for missing ones.
    pub fn listen(place: &RankPlace, hang_timeout: Duration, events: &EventSender) -> Result<Leader> {
        let listener = hub::listen(&place.address)?;
        Leader::with(&listener, place, None, hang_timeout, events)
    }

    /// Starts ranks 1 to `count` - 1 on this machine, as processes of its own, and waits for them.
    ///
    /// # Errors
    /// As [`Leader::listen`], and where a process cannot be started.
    pub fn launch(count: usize, hang_timeout: Duration, events: &EventSender) -> Result<Leader> {
        let listener = hub::listen("127.0.0.1:0")?;
        let address = listener.local_addr().map_err(|e| Error::Other(format!("the ranks' address: {e}")))?;
        let secret = JobSecret::random_text()?;
        let place = RankPlace { rank: 0, size: count, address: address.to_string(), secret };
        let launched = LaunchedRanks::start(&place)?;
        Leader::with(&listener, &place, Some(launched), hang_timeout, events)
    }

    fn with(
        listener: &TcpListener,
        place: &RankPlace,
        launched: Option<LaunchedRanks>,
        hang_timeout: Duration,
        events: &EventSender,
    ) -> Result<Leader> {
        let secret = JobSecret::of(&place.secret);
        let address = listener.local_addr().map_err(|e| Error::Other(format!("the ranks' address: {e}")))?.ip();
        let hub = Hub::gather(listener, &secret, place.size, events)?;
        let (size, patience) = (place.size, hang_timeout.max(READING));
        Ok(Leader {
            hub,
            size,
            calls: 0,
            hang_timeout,
            patience,
            secret,
            address,
            transport: None,
            _launched: launched,
        })
    }

    /// What tells the others that it is over.
    pub fn end(&self) -> RanksEnd {
        RanksEnd::of(self.hub.clone())
    }

    /// Says to all what to train, and connects them with one another.
    ///
    /// # Errors
    /// That a rank is lost; [`Error::Config`] where this program was built without the backend.
    pub fn begin(&mut self, start: &Start) -> Result<()> {
        let backend = start.config.ranks.backend;
        transport::is_built_with(backend)?;
        let json = serde_json::to_vec(start).map_err(|e| Error::Other(format!("writing a job: {e}")))?;
        self.broadcast(&json)?;
        let mark = JobSecret::random_text()?;
        let mark = self.broadcast(mark.as_bytes())?;
        self.hub.stay.store(backend == RankBackend::Mpi, Ordering::Relaxed);
        let transport = transport::connect(backend, self.hub.clone(), (0, self.size), self.address, self.patience);
        self.transport = Some(transport.map_err(|what| self.broken(&self.hub.others().collect::<Vec<_>>(), &what))?);
        let secret = self.secret.clone();
        recognise(self, &secret, &mark)
    }

    /// From now on all are at the same steps.
    pub fn settle(&mut self) {
        self.patience = patience(self.hang_timeout);
    }

    /// What gives rank 0 the parts of the state that others hold.
    pub fn held_parts(&self) -> HeldParts {
        // Half of the others' time: the training waits behind it, and names a rank that hangs.
        HeldParts::new(self.hub.clone(), patience(self.hang_timeout) / 2)
    }

    /// What all ranks say in the next call, and when each said it. `pass` is called when all have said it, and before
    /// any of them hears of it.
    fn collect(&mut self, bytes: &[u8], pass: &mut dyn FnMut()) -> Result<(Vec<Vec<u8>>, Vec<Instant>)> {
        self.calls += 1;
        let (call, now) = (self.calls, Instant::now());
        let by = now + self.patience;
        let (mut parts, mut came) = (vec![bytes.to_vec()], vec![now]);
        for rank in self.hub.others() {
            let left = by.saturating_duration_since(Instant::now());
            match self.hub.mailbox.wait_for(left, |state| state.parts[rank].pop_front()) {
                Some(ArrivedPart { call: number, bytes, at }) if number == call => {
                    parts.push(bytes);
                    came.push(at);
                }
                Some(ArrivedPart { call: number, .. }) => {
                    return Err(Error::Other(format!("rank {rank} is at call {number} where rank 0 is at {call}")));
                }
                None => return Err(self.broken(&(rank..self.size).collect::<Vec<_>>(), "it said nothing in time")),
            }
        }
        pass();
        self.hub.say_to_all(&Frame::Parts { call, parts: parts.clone() });
        Ok((parts, came))
    }

    /// Why a call failed that waited for `awaited`.
    fn broken(&self, awaited: &[usize], what: &str) -> Error {
        let mailbox = &self.hub.mailbox;
        let cause = mailbox.culprit();
        let cause = cause.or_else(|| mailbox.laggard(awaited, || self.hub.say_to_all(&Frame::Ping)));
        let cause = cause.or_else(|| mailbox.effect());
        Error::Other(cause.unwrap_or_else(|| {
            let ranks = awaited.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!("rank 0 has lost contact with ranks {ranks}: {what}")
        }))
    }
}

impl RankGroup for Leader {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&mut self, sends: &[Outgoing<'_>], receives: &mut [Incoming<'_>]) -> Result<()> {
        let Some(transport) = &mut self.transport else { return Err(unconnected()) };
        transport.exchange(sends, receives, self.patience).map_err(|(peer, what)| {
            let mut awaited: Vec<usize> = self.hub.others().collect();
            // The one that failed first stands first.
            awaited.sort_by_key(|rank| *rank != peer);
            self.broken(&awaited, &what)
        })
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.collect(bytes, &mut || ()).map(|(parts, _)| parts)
    }

    fn meet(&mut self, bytes: &[u8], pass: &mut dyn FnMut()) -> Result<Vec<Vec<u8>>> {
        let (parts, came) = self.collect(bytes, pass)?;
        self.hub.pace.lock().unwrap_or_else(PoisonError::into_inner).met(&came);
        Ok(parts)
    }

    fn is_at(&self, step: u64, micro_batch: u64) {
        self.hub.mailbox.tell(|state| state.signs[0] = SignOfLife { at: Instant::now(), step, micro_batch });
    }
}

impl Follower {
    /// Connects to rank 0.
    ///
    /// # Errors
    /// [`Error::Config`] where rank 0 refuses this rank, [`Error::Other`] where it does not answer.
    pub fn join(place: &RankPlace) -> Result<Follower> {
        let secret = JobSecret::of(&place.secret);
        let (link, address) = Link::connect(place, &secret)?;
        Ok(Follower {
            link,
            rank: place.rank,
            size: place.size,
            calls: 0,
            hang_timeout: PREPARATION,
            patience: PREPARATION,
            secret,
            address,
            transport: None,
            lost_another: Arc::default(),
        })
    }

    /// Hears what to train, and connects to all other ranks.
    ///
    /// # Errors
    /// That a rank is lost, or that rank 0 is of another release.
    pub fn begin(&mut self) -> Result<Start> {
        let json = self.broadcast(&[])?;
        let start: Start = serde_json::from_slice(&json)
            .map_err(|e| Error::Other(format!("rank 0 says what this release does not understand: {e}")))?;
        self.hang_timeout = start.config.worker.hang_timeout.0;
        // It is rank 0 that names the one which is the cause: it has to lose patience first.
        self.patience = 2 * self.hang_timeout.max(READING);
        let mark = self.broadcast(&[])?;
        let (backend, at) = (start.config.ranks.backend, (self.rank, self.size));
        transport::is_built_with(backend)?;
        let transport = transport::connect(backend, self.link.clone(), at, self.address, self.patience);
        self.transport = Some(transport.map_err(|what| self.lost("the others", &what))?);
        let secret = self.secret.clone();
        recognise(self, &secret, &mark)?;
        Ok(start)
    }

    /// From now on all are at the same steps.
    pub fn settle(&mut self) {
        self.patience = 2 * patience(self.hang_timeout);
    }

    /// What serves rank 0's snapshots; once.
    pub fn part_server(&self) -> Option<PartServer> {
        let orders = self.link.arrived.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(PartServer { orders, link: self.link.clone() })
    }

    /// What tells rank 0 why this rank cannot go on.
    pub fn voice(&self) -> RankVoice {
        RankVoice { link: self.link.clone(), lost_another: self.lost_another.clone() }
    }

    fn lost(&self, whom: &str, what: &str) -> Error {
        self.lost_another.store(true, Ordering::Relaxed);
        Error::Other(format!("rank {} has lost contact with {whom}: {what}", self.rank))
    }
}

impl RankGroup for Follower {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&mut self, sends: &[Outgoing<'_>], receives: &mut [Incoming<'_>]) -> Result<()> {
        let Some(transport) = &mut self.transport else { return Err(unconnected()) };
        let exchanged = transport.exchange(sends, receives, self.patience);
        exchanged.map_err(|(peer, what)| self.lost(&format!("rank {peer}"), &what))
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.calls += 1;
        let call = self.calls;
        self.link.say(&Frame::Part { call, bytes: bytes.to_vec() }).map_err(|e| self.lost("rank 0", &e.to_string()))?;
        match self.link.mailbox.wait_beside_snapshots(self.patience, |state| state.answers.pop_front()) {
            Some((number, parts)) if number == call => Ok(parts),
            Some((number, _)) => Err(self.lost("rank 0", &format!("it is at call {number}, not at {call}"))),
            None => Err(self.lost("rank 0", "it said nothing in time")),
        }
    }

    fn is_at(&self, step: u64, micro_batch: u64) {
        self.link.is_at(step, micro_batch);
    }
}

impl KeyStore for Hub {
    fn set(&self, key: &[u8], value: &[u8]) -> bool {
        self.publish(key.to_vec(), value.to_vec());
        true
    }

    fn get(&self, key: &[u8], patience: Duration) -> Option<Vec<u8>> {
        wait_for_key(&self.mailbox, key, patience)
    }
}

impl KeyStore for Link {
    fn set(&self, key: &[u8], value: &[u8]) -> bool {
        self.say(&Frame::Key { key: key.to_vec(), value: value.to_vec() }).is_ok()
    }

    fn get(&self, key: &[u8], patience: Duration) -> Option<Vec<u8>> {
        wait_for_key(&self.mailbox, key, patience)
    }
}

fn wait_for_key(mailbox: &Mailbox, key: &[u8], patience: Duration) -> Option<Vec<u8>> {
    mailbox.wait_for(patience, |state| state.keys.get(key).cloned())
}

/// Makes sure that whoever is at the other end of each connection of the mesh is the rank that it should be: each
/// proves to each that it knows the secret and this session's mark, which went over the connections to rank 0 alone.
fn recognise(group: &mut dyn RankGroup, secret: &JobSecret, mark: &[u8]) -> Result<()> {
    let (rank, size) = (group.rank(), group.size());
    let proof = |from: usize, to: usize| {
        let parts: [&[u8]; 3] = [mark, &(from as u64).to_le_bytes(), &(to as u64).to_le_bytes()];
        let bytes = *secret.proof("mesh", &parts).as_bytes();
        let words = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_bits(u32::from_le_bytes(*word)));
        words.collect::<Vec<f32>>()
    };
    let peers: Vec<usize> = (0..size).filter(|peer| *peer != rank).collect();
    let ours: Vec<Vec<f32>> = peers.iter().map(|&peer| proof(rank, peer)).collect();
    let mut theirs = vec![[0f32; PROOF]; peers.len()];
    let sends: Vec<Outgoing<'_>> = peers.iter().zip(&ours).map(|(&peer, values)| Outgoing { peer, values }).collect();
    let mut receives: Vec<Incoming<'_>> =
        peers.iter().zip(&mut theirs).map(|(&peer, values)| Incoming { peer, values }).collect();
    group.exchange(&sends, &mut receives)?;
    for (&peer, values) in peers.iter().zip(&theirs) {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        if bits(values) != bits(&proof(peer, rank)) {
            return Err(Error::Other(format!(
                "a stranger answered rank {rank} in the place of rank {peer}; see docs/ranks.md for what the network \
                 must be"
            )));
        }
    }
    Ok(())
}

fn unconnected() -> Error {
    Error::Other("the ranks are not connected yet".into())
}
