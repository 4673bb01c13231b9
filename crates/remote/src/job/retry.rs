//! Doing again what a lost request may have stopped.
//!
//! Deliberately not here: what must not be done twice, and what a lease limits.

use std::time::Duration;

use super::error::Result;

/// How often something is tried.
pub(super) const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Does it again where that may help, with longer and longer pauses.
pub(super) async fn again<T, F: Future<Output = Result<T>>>(act: impl Fn() -> F) -> Result<T> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match act().await {
            Err(error) if error.is_worth_retrying() => tokio::time::sleep(pause).await,
            outcome => return outcome,
        }
        pause *= 2;
    }
    act().await
}
