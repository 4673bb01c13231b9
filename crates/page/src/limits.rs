//! Bounds on what clients may cost.
//!
//! Invariant: a connection on which nothing can be written for a while ends; unknown clients together get so many
//! answers per second and no more.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client may take nothing of what it asked for.
pub(crate) const STALL: Duration = Duration::from_secs(10);

/// A connection that fails once its client takes nothing for [`STALL`].
pub(crate) struct PatientStream {
    inner: TcpStream,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl PatientStream {
    pub(crate) fn new(inner: TcpStream) -> PatientStream {
        PatientStream { inner, stalled: None }
    }

    /// `moved`, or an error where the client has stood still for too long.
    fn watched<T>(&mut self, moved: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            self.stalled = None;
            return moved;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + STALL)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for PatientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for PatientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watched(moved, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.inner).poll_flush(context);
        self.watched(moved, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.inner).poll_shutdown(context);
        self.watched(moved, context)
    }
}

/// Answers per second to those who do not know the token.
const RATE: f64 = 50.0;
/// And at once, after a pause.
const BURST: f64 = 100.0;

/// A bucket of answers that fills again with time.
pub(crate) struct AnswerBudget(Mutex<(f64, Instant)>);

impl AnswerBudget {
    pub(crate) fn new() -> AnswerBudget {
        AnswerBudget(Mutex::new((BURST, Instant::now())))
    }

    /// Whether one more answer is left.
    pub(crate) fn take(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (left, at) = *state;
        let left = (left + RATE * (now - at).as_secs_f64()).min(BURST);
        let is_left = left >= 1.0;
        *state = (if is_left { left - 1.0 } else { left }, now);
        is_left
    }
}
