//! The token of a page: of the user's own file, or made.
//!
//! Invariant: a file that others may read is refused, and no message shows a token.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ckptd_core::error::{Error, Result};
use ckptd_core::store::records::{MIN_PAGE_TOKEN, page_token};
use ckptd_interop::mapped::read_small;

const MAX_BYTES: u64 = 4096;

/// The token in the file at `path`.
pub fn of_file(path: &Path) -> Result<String> {
    let refuse = |what: String| Error::Config(format!("the token of the page: {}: {what}", path.display()));
    let mode = std::fs::metadata(path).map_err(|e| refuse(format!("{e}; write a token there")))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(refuse(format!("others may read it; chmod 600 {}", path.display())));
    }
    let bytes = read_small(path, MAX_BYTES).map_err(|e| refuse(e.to_string()))?;
    page_token(&bytes).ok_or_else(|| {
        let least = MIN_PAGE_TOKEN;
        refuse(format!("a token is at least {least} characters without spaces; `openssl rand -hex 16` makes one"))
    })
}
