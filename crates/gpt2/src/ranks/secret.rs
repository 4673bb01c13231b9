//! Who may enter: a handshake by which both sides prove that they know the job's secret, without sending it.
//!
//! Rank 0 sends a random nonce; the other side answers with its rank, a nonce of its own and a keyed hash of all of
//! them; rank 0 answers with another one. Invariant: nothing but these fixed-size messages is read of a peer that has
//! not proved itself, and both sides give it [`HANDSHAKE`] of time. Deliberately not here: encryption; what is said
//! afterwards can be read by whoever can read the network, see docs/ranks.md.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ckptd_core::{Error, Result};

/// How long a handshake may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

const MAGIC: [u8; 8] = *b"ckptdrk1";
const CONTEXT: &str = "ckptd ranks v1";
const NONCE: usize = 32;

/// The random text that all ranks of a job share, as a key.
#[derive(Clone)]
pub struct JobSecret([u8; 32]);

/// Who has entered.
pub(super) struct Entered {
    pub rank: usize,
    pub size: usize,
}

impl JobSecret {
    /// Of the text that the environment holds.
    pub fn of(text: &str) -> JobSecret {
        JobSecret(blake3::derive_key(CONTEXT, text.as_bytes()))
    }

    /// A new text: 256 random bits as hex.
    ///
    /// # Errors
    /// [`Error::Other`] where the system has none.
    pub fn random_text() -> Result<String> {
        Ok(nonce()?.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The proof that whoever says `parts` for `purpose` knows the secret.
    pub(super) fn proof(&self, purpose: &str, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(purpose.as_bytes()).update(&[0]);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }

    /// Rank 0's side, on a connection that was accepted: who is there, or why nobody is let in.
    pub(super) fn admit(&self, stream: &mut TcpStream) -> Result<Entered, String> {
        let by = Instant::now() + HANDSHAKE;
        let ours = nonce().map_err(|e| e.to_string())?;
        write(stream, &[&MAGIC, &ours])?;
        let magic: [u8; 8] = read(stream, by)?;
        if magic != MAGIC {
            return Err("it does not speak as a rank of ckptd does".into());
        }
        let (rank, size): ([u8; 4], [u8; 4]) = (read(stream, by)?, read(stream, by)?);
        let theirs: [u8; NONCE] = read(stream, by)?;
        let proof: [u8; 32] = read(stream, by)?;
        // Compared in constant time.
        if self.proof("rank", &[&ours, &theirs, &rank, &size]) != proof {
            return Err("it does not know the job's secret".into());
        }
        write(stream, &[self.proof("rank 0", &[&ours, &theirs, &rank, &size]).as_bytes()])?;
        Ok(Entered { rank: u32::from_le_bytes(rank) as usize, size: u32::from_le_bytes(size) as usize })
    }

    /// The other side, on a connection to rank 0.
    pub(super) fn enter(&self, stream: &mut TcpStream, rank: usize, size: usize) -> Result<(), String> {
        let by = Instant::now() + HANDSHAKE;
        let magic: [u8; 8] = read(stream, by)?;
        let theirs: [u8; NONCE] = read(stream, by)?;
        if magic != MAGIC {
            return Err("something else than rank 0 of a ckptd job listens there".into());
        }
        let ours = nonce().map_err(|e| e.to_string())?;
        let (rank, size) = ((rank as u32).to_le_bytes(), (size as u32).to_le_bytes());
        let proof = self.proof("rank", &[&theirs, &ours, &rank, &size]);
        write(stream, &[&MAGIC, &rank, &size, &ours, proof.as_bytes()])?;
        let answer: [u8; 32] = read(stream, by)?;
        if self.proof("rank 0", &[&theirs, &ours, &rank, &size]) != answer {
            return Err("rank 0 does not know this job's secret".into());
        }
        Ok(())
    }
}

fn nonce() -> Result<[u8; NONCE]> {
    let mut bytes = [0; NONCE];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(NONCE) => Ok(bytes),
        Ok(_) => Err(Error::Other("the system gives too few random bytes".into())),
        Err(e) => Err(Error::Other(format!("random bytes: {e}"))),
    }
}

fn write(stream: &mut TcpStream, parts: &[&[u8]]) -> Result<(), String> {
    let message = parts.concat();
    let written = stream.set_write_timeout(Some(HANDSHAKE)).and_then(|()| stream.write_all(&message));
    written.map_err(|e| format!("the handshake: {e}"))
}

/// The next bytes, before `by`: one that sends a byte now and then does not stay for longer.
fn read<const N: usize>(stream: &mut TcpStream, by: Instant) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the handshake was not over in time".into());
        }
        let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut bytes[filled..]));
        match read {
            Ok(0) => return Err("it hung up during the handshake".into()),
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("the handshake: {e}")),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{Shutdown, TcpListener};

    use super::*;

    /// What both sides make of a handshake.
    fn meet(here: &str, there: &str) -> (Result<(usize, usize), String>, Result<(), String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let there = JobSecret::of(there);
        let other = std::thread::spawn(move || there.enter(&mut TcpStream::connect(address).unwrap(), 2, 3));
        let (mut stream, _) = listener.accept().unwrap();
        let admitted = JobSecret::of(here).admit(&mut stream).map(|entered| (entered.rank, entered.size));
        stream.shutdown(Shutdown::Both).unwrap();
        (admitted, other.join().unwrap())
    }

    #[test]
    fn both_sides_must_know_the_secret() {
        assert_eq!(meet("a", "a"), (Ok((2, 3)), Ok(())));
        let (here, there) = meet("a", "b");
        assert!(here.unwrap_err().contains("secret") && there.is_err());
    }

    #[test]
    fn a_proof_is_worth_nothing_elsewhere() {
        let secret = JobSecret::of("a");
        let proof = secret.proof("rank", &[b"ab", b"c"]);
        assert_ne!(proof, secret.proof("rank", &[b"a", b"bc"]));
        assert_ne!(proof, secret.proof("mesh", &[b"ab", b"c"]));
        assert_ne!(proof, JobSecret::of("b").proof("rank", &[b"ab", b"c"]));
        assert_ne!(JobSecret::random_text().unwrap(), JobSecret::random_text().unwrap());
    }
}
