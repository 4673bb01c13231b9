//! A thread that serves HTTP/1.1 on a free port until its handle is dropped.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// A body that may break off.
pub type AnswerBody = BoxBody<Bytes, Broken>;

/// Ends a connection in the middle of an answer.
#[derive(Debug, thiserror::Error)]
#[error("broken off on purpose")]
pub struct Broken;

/// A body that does not break off.
pub fn whole(body: Bytes) -> AnswerBody {
    use http_body_util::BodyExt;
    http_body_util::Full::new(body).map_err(|never: Infallible| match never {}).boxed()
}

/// The connection that a request came by.
pub struct Connection(OwnedFd);

impl Connection {
    /// Lets the connection end with a reset instead of in order, once it ends.
    pub fn reset_at_end(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.0, Some(std::time::Duration::ZERO));
    }

    /// Closes it now.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// What answers requests. An error ends the connection.
pub trait Service: Send + Sync + 'static {
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Broken>> + Send;
}

/// A running listener.
pub struct Listener {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    /// On the loopback.
    pub fn start(service: Arc<impl Service>) -> Listener {
        Listener::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST), service)
    }

    /// At an address of this machine.
    pub fn start_at(address: IpAddr, service: Arc<impl Service>) -> Listener {
        let listener = std::net::TcpListener::bind((address, 0)).expect("the address has a free port");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.expect("a runtime can be started");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("the socket fits the runtime");
                tokio::select! { () = accept(listener, service) => {}, _ = stopped => {} }
            });
            runtime.shutdown_background();
        });
        Listener { address, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn accept(listener: TcpListener, service: Arc<impl Service>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve(stream, Arc::clone(&service)));
    }
}

async fn serve(stream: TcpStream, service: Arc<impl Service>) {
    let _ = stream.set_nodelay(true);
    let Ok(end) = stream.as_fd().try_clone_to_owned() else { return };
    let connection = Arc::new(Connection(end));
    let serve = service_fn(move |request| Arc::clone(&service).answer(request, Arc::clone(&connection)));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
}
