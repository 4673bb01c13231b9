//! Servers that tests talk to: an object store of our own, a proxy that breaks HTTP on purpose, and other programs.
//!
//! Each listens on a free port of the loopback and ends when its handle is dropped.

mod date;
mod listener;
mod objects;
mod port;
mod program;
mod proxy;
mod request;
mod state;

pub use objects::ObjectServer;
pub use port::free_port;
pub use program::{Program, azurite, chromedriver, moto, prometheus, promtool, sftp_server, ssh_in};
pub use proxy::{Fault, FaultProxy, Rule};
pub use state::{Behaviour, Crc64};
