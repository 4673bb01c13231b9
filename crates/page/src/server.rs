//! Connections: who may have one, and for how long.
//!
//! A thread of its own serves them all, at a low priority. Invariant: connections are few, each carries one request
//! whose head is small and comes soon, and one that stands still ends. Deliberately not here: what is answered
//! (routes).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::debug;

use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::lower_priority;

use crate::access::PageAccess;
use crate::board::JobBoard;
use crate::limits::PatientStream;
use crate::routes;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 96;
/// Largest head of a request, in bytes, and how many lines it may have.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long a head may take to come.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long its thread may take to end.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Others have the processor first.
const NICE: i32 = 10;

/// A page that is served, for as long as this lives.
pub struct PageServer {
    address: SocketAddr,
    board: JobBoard,
    /// `None` once it was told to end.
    stop: Option<oneshot::Sender<()>>,
    /// Closed by the thread's end.
    end: std::sync::mpsc::Receiver<()>,
}

impl PageServer {
    /// Serves the jobs of `board` on `address`; `access` makes of the port who may look.
    ///
    /// # Errors
    /// Where nothing can listen there, or no thread can be started.
    pub fn start(address: SocketAddr, board: JobBoard, access: impl FnOnce(u16) -> PageAccess) -> Result<PageServer> {
        let failed = |what: &str, e: std::io::Error| Error::Other(format!("{what} {address}: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .map_err(|e| failed("starting the page on", e))?;
        let bound = std::net::TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let _context = runtime.enter();
            Ok((TcpListener::from_std(listener)?, address))
        });
        let (listener, address) = bound.map_err(|e| failed("listening on", e))?;
        let router = routes::router(board.clone(), access(address.port()));
        let ((stop, stopped), (ends, end)) = (oneshot::channel(), std::sync::mpsc::channel());
        let serve = move || {
            lower_priority(NICE);
            runtime.block_on(async {
                tokio::select! { () = accept(listener, router) => {}, _ = stopped => {} }
            });
            runtime.shutdown_background();
            drop(ends);
        };
        let thread = std::thread::Builder::new().name("page".into()).spawn(serve);
        thread.map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(PageServer { address, board, stop: Some(stop), end })
    }

    /// Where it is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.board.close();
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        // The next session of this process wants the same port.
        let _ = self.end.recv_timeout(END_PATIENCE);
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Out of file descriptors, for one: that passes, or it does not, but it must not spin.
                debug!("a client of the page could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A client too many is turned away.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        tokio::spawn(answer(client, router.clone(), place));
    }
}

async fn answer(client: TcpStream, router: Router, place: OwnedSemaphorePermit) {
    let _ = client.set_nodelay(true);
    // A client that is gone without a word takes no place for longer.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&client, crate::limits::STALL.as_millis() as u32);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(PatientStream::new(client)), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        debug!("a client of the page: {error}");
    }
    drop(place);
}
