//! The token of a page: of the user's own file, or made.
//!
//! Invariant: a file that others may read is refused, and no message shows a token.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ckptd_core::error::{Error, Result};
use ckptd_interop::mapped::read_small;
use ckptd_page::access::MIN_TOKEN;

const MAX_BYTES: u64 = 4096;

/// The token in the file at `path`.
pub fn of_file(path: &Path) -> Result<String> {
    let refuse = |what: String| Error::Config(format!("the token of the page: {}: {what}", path.display()));
    let mode = std::fs::metadata(path).map_err(|e| refuse(format!("{e}; write a token there")))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(refuse(format!("others may read it; chmod 600 {}", path.display())));
    }
    let bytes = read_small(path, MAX_BYTES).map_err(|e| refuse(e.to_string()))?;
    let token = String::from_utf8(bytes).map_err(|_| refuse("it is no text".into()))?.trim().to_owned();
    let is_plain = token.chars().all(|c| c.is_ascii_graphic());
    if token.len() < MIN_TOKEN || !is_plain {
        let what =
            format!("a token is at least {MIN_TOKEN} characters without spaces; `openssl rand -hex 16` makes one");
        return Err(refuse(what));
    }
    Ok(token)
}
