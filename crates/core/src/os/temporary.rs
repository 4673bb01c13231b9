//! Names of temporary files, which a small file has until it is whole and renamed.
//!
//! Invariant: a name tells which process writes it, so that what a killed one left can be removed.

/// What this process writes before it is renamed to `name`.
pub fn temporary_file(name: &str) -> String {
    format!("{name}.{}.new", std::process::id())
}

/// The process that wrote a temporary file, or `None` where the name is not that of one.
pub fn parse_temporary_file(name: &str) -> Option<u32> {
    name.strip_suffix(".new")?.rsplit_once('.')?.1.parse().ok()
}
