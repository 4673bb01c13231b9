//! Numbers that nobody else draws.

/// 16 hexadecimal digits from the system's randomness.
pub fn nonce() -> String {
    let mut bytes = [0; 8];
    // Without randomness there is no name that is surely our own: the time and the process are the next best.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = (now.as_nanos() as u64 ^ u64::from(std::process::id()) << 48).to_le_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
