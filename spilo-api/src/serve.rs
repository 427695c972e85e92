//! The server: a loop of connections, each bounded in time, all bounded in number.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::access::Caller;
use crate::io::{Io, with_causes};
use crate::tls::ServerTls;

/// Serves `router` on `listener` until `shutdown` ends, then gives open requests two seconds.
///
/// One request a connection, HTTP/1.0 or 1.1, as Patroni has it: health checks do not reuse
/// connections, and a connection that nobody uses holds no place.
///
/// # Errors
/// A listener that cannot be used. A failed connection is logged and ends alone.
///
/// # Cancellation
/// Dropping the future closes the listener and every connection.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    tls: Option<ServerTls>,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    serve_within(Limits::default(), listener, router, tls, shutdown).await
}

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many connections are served at a time; more wait in the queue of the kernel.
    pub(crate) connections: usize,
    /// How long the handshake of TLS may take, and then the head of the request.
    pub(crate) head: Duration,
    /// How long a connection may live, the longest switchover included.
    pub(crate) whole: Duration,
    /// How long open requests have at the end.
    pub(crate) drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            head: Duration::from_secs(5),
            whole: Duration::from_secs(300),
            drain: Duration::from_secs(2),
        }
    }
}

pub(crate) async fn serve_within(
    limits: Limits,
    listener: std::net::TcpListener,
    router: Router,
    tls: Option<ServerTls>,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let next = tokio::select! {
            biased;
            () = &mut shutdown => break,
            next = accept(&listener, &places) => next,
        };
        let (place, stream, address) = match next {
            Ok(next) => next,
            Err(error) => {
                // Usually no descriptors left; they come back when connections end.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, tls) = (router.clone(), tls.clone());
        connections.spawn(async move {
            let whole = connection(limits, stream, address, router, tls);
            if let Err(error) = tokio::time::timeout(limits.whole, whole)
                .await
                .unwrap_or_else(|_| Err("took too long".to_owned()))
            {
                tracing::debug!(%address, error, "an HTTP connection failed");
            }
            drop(place);
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((place, stream, address))
}

async fn connection(
    limits: Limits,
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    tls: Option<ServerTls>,
) -> Result<(), String> {
    // An answer is one small write; waiting for more of it only delays a health check.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let (io, certificate): (Box<dyn Io>, bool) = match tls {
        None => (Box::new(stream), false),
        Some(tls) => tokio::time::timeout(limits.head, tls.accept(stream))
            .await
            .map_err(|_| "the TLS handshake took too long".to_owned())?
            .map_err(|error| with_causes(&error))?,
    };
    let caller = Caller {
        address: address.ip().to_canonical(),
        certificate,
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(caller);
        router.call(request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .await
        .map_err(|error| with_causes(&error))
}

/// More than any request to this interface has before its body.
const MAX_HEAD_BYTES: usize = 16 * 1024;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
