//! Ports that nothing else takes by chance, for a program that is to be told one before it listens.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// The lowest port that is given out.
const LOWEST: u16 = 10_000;
/// Ports between those that two processes try first.
const APART: u32 = 41;
/// Where the system's own begin if it does not say so, or says that all are its own.
const USUAL: u16 = 32_768;

/// A port of `host` on which nobody listens. The system gives it to no connection and to no listener that asks for any
/// port: it lies below those.
///
/// # Errors
/// Where nobody can listen at `host`, or no port is free.
pub fn free_port(host: &str) -> io::Result<u16> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let ports = u32::from(systems_own() - LOWEST);
    let first = std::process::id().wrapping_mul(APART);
    let mut last = None;
    for _ in 0..ports {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = LOWEST + (first.wrapping_add(tried) % ports) as u16;
        match TcpListener::bind((host, port)) {
            Ok(_) => return Ok(port),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// The lowest port that the system gives out.
fn systems_own() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let lowest = range.split_whitespace().next().and_then(|port| port.parse::<u16>().ok());
    lowest.filter(|port| *port > LOWEST).unwrap_or(USUAL)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_and_none_that_the_system_gives_out() {
        let ports: Vec<u16> = (0..50).map(|_| free_port("127.0.0.1").unwrap()).collect();
        assert!(ports.iter().all(|port| (LOWEST..systems_own()).contains(port)), "{ports:?}");
        let taken = TcpListener::bind(("127.0.0.1", free_port("127.0.0.1").unwrap())).unwrap();
        let taken = taken.local_addr().unwrap().port();
        assert!((0..50).all(|_| free_port("127.0.0.1").unwrap() != taken));
        assert!(free_port("192.0.2.1").is_err(), "an address of nobody");
    }
}
