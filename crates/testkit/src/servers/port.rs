//! Ports that nothing else takes by chance.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// The lowest port that is given out.
const LOWEST: u16 = 10_000;
/// Ports between those that two processes try first.
const APART: u32 = 41;
/// Where the system's own begin if it does not say so, or says that all are its own.
const USUAL: u16 = 32_768;

/// A port of the loopback on which nobody listens, for a program that is to be told one. The system gives it to no
/// connection and to no listener that asks for any port: it lies below those.
pub fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let ports = u32::from(systems_own() - LOWEST);
    let first = std::process::id().wrapping_mul(APART);
    for _ in 0..ports {
        let tried = u32::from(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = LOWEST + (first.wrapping_add(tried) % ports) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of the loopback is free");
}

/// The lowest port that the system gives out.
fn systems_own() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let lowest = range.split_whitespace().next().and_then(|port| port.parse::<u16>().ok());
    lowest.filter(|port| *port > LOWEST).unwrap_or(USUAL)
}
