//! The object store of the tests as a process of its own, for measurements: its processor time counts apart. Its
//! argument is the address that it listens at, else the loopback. It says its URL on standard output, and ends when
//! standard input does.
#![allow(clippy::expect_used)] // who measures by hand reads the panic

use std::net::{IpAddr, Ipv4Addr};

use ckptd_testkit::servers::ObjectServer;

fn main() {
    let address = std::env::args().nth(1).map(|address| address.parse().expect("the argument is an address"));
    let server = ObjectServer::start_at(address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    println!("{}", server.url());
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
}
