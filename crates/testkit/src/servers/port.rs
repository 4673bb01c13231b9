//! Ports that nothing else takes by chance.

/// A port of the loopback on which nobody listens, for a program that is to be told one.
pub fn free_port() -> u16 {
    ckptd_core::os::port::free_port("127.0.0.1").expect("a port of the loopback is free")
}
