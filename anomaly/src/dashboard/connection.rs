//! One listener's connections: accepted, counted, bounded in number and time.
//!
//! A client can hold a place only as long as it makes progress: headers and
//! idle time, bodies, and answers that nobody reads each have a deadline.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tower::ServiceExt;

use super::auth::Peer;
use crate::metrics::Metrics;

/// TCP connections at once: a hundred dashboards with two each, and room.
const MAX_TCP: usize = 512;
/// Connections of one address beyond loopback.
const MAX_PER_ADDRESS: usize = 64;
/// Connections to the Unix socket, which TCP clients cannot take.
const MAX_UNIX: usize = 64;
/// Until the head of a request must be there; also how long a connection may be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is written to it.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);
/// Bound of a connection's read buffer, and so of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// After this, what is still being answered at the end is cut.
const DRAIN: Duration = Duration::from_secs(3);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 2\r\n\
Content-Length: 124\r\nConnection: close\r\n\r\n{\"type\":\"urn:anomaly:too_many_connections\",\"title\":\"Service Unavailable\",\
\"status\":503,\"detail\":\"too many open connections\"}\n";

/// What every connection is given.
#[derive(Clone)]
pub struct Shared {
    /// All routes.
    pub router: Router,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
    /// Becomes true when the server ends.
    pub closing: watch::Receiver<bool>,
}

/// A connection or the lack of one.
trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    async fn accept(&self) -> io::Result<(Self::Stream, Option<IpAddr>)>;
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn accept(&self) -> io::Result<(Self::Stream, Option<IpAddr>)> {
        let (stream, address) = TcpListener::accept(self).await?;
        // Frames of a stream are small and wanted now.
        let _ = stream.set_nodelay(true);
        Ok((stream, Some(address.ip().to_canonical())))
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn accept(&self) -> io::Result<(Self::Stream, Option<IpAddr>)> {
        let (stream, _) = UnixListener::accept(self).await?;
        Ok((stream, None))
    }
}

/// Serves a TCP listener until `closing`.
pub async fn serve_tcp(listener: TcpListener, peer: Peer, shared: Shared) {
    serve(listener, peer, MAX_TCP, shared).await;
}

/// Serves a Unix listener until `closing`.
pub async fn serve_unix(listener: UnixListener, shared: Shared) {
    serve(listener, Peer::Unix, MAX_UNIX, shared).await;
}

async fn serve(listener: impl Accept, peer: Peer, most: usize, shared: Shared) {
    let places = Arc::new(Semaphore::new(most));
    let addresses: Addresses = Arc::default();
    let mut closing = shared.closing.clone();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = closed(&mut closing) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: others' connections must end first.
                tracing::warn!(%error, "a connection to the dashboard could not be accepted");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        // Loopback is shared by everyone on the host and the proxy in front: no bound per address there.
        let address = address.filter(|_| peer == Peer::Network);
        match Place::take(&places, &addresses, address, &shared.metrics) {
            Some(place) => drop(connections.spawn(converse(stream, peer, shared.clone(), place))),
            None => {
                shared.metrics.http_refused.inc();
                drop(connections.spawn(turn_away(stream)));
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN, drained).await.is_err() {
        connections.shutdown().await;
    }
}

/// Ready once the server ends.
pub async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error says that nobody is left to close anything, which is an end as well.
    let _ = closing.wait_for(|c| *c).await;
}

async fn turn_away(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    // Best effort: the answer fits into the socket's buffer, or the client gets none.
    let _ = timeout(Duration::from_millis(100), stream.write_all(FULL)).await;
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    shared: Shared,
    place: Place,
) {
    let Shared { router, mut closing, .. } = shared;
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Impatient::new(stream)), service);
    tokio::pin!(connection);
    // A connection that breaks is the client's affair: timeouts, resets and nonsense end here.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    drop(place);
}

type Addresses = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A place among the connections, given back when it is dropped.
struct Place {
    _permit: OwnedSemaphorePermit,
    address: Option<(IpAddr, Addresses)>,
    metrics: Arc<Metrics>,
}

impl Place {
    fn take(
        places: &Arc<Semaphore>,
        addresses: &Addresses,
        address: Option<IpAddr>,
        metrics: &Arc<Metrics>,
    ) -> Option<Self> {
        let permit = places.clone().try_acquire_owned().ok()?;
        if let Some(address) = address {
            let mut table = addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let held = table.entry(address).or_default();
            if *held >= MAX_PER_ADDRESS {
                return None;
            }
            *held += 1;
        }
        metrics.http_connections.inc();
        Some(Self { _permit: permit, address: address.map(|a| (a, addresses.clone())), metrics: metrics.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.http_connections.dec();
        if let Some((address, table)) = &self.address {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = table.get_mut(address) {
                *held -= 1;
                if *held == 0 {
                    table.remove(address);
                }
            }
        }
    }
}

/// A stream whose writes fail when the other side takes nothing for [`WRITE_DEADLINE`].
struct Impatient<S> {
    stream: S,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    const fn new(stream: S) -> Self {
        Self { stream, waiting: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(WRITE_DEADLINE)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_for_one_too_many_is_well_formed() {
        let text = std::str::from_utf8(FULL).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
        let problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(problem["status"], 503);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_cut_off() {
        let (ours, theirs) = tokio::io::duplex(16);
        let mut writer = Impatient::new(ours);
        let error = writer.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[test]
    fn one_address_cannot_take_every_place() {
        let places = Arc::new(Semaphore::new(MAX_TCP));
        let (addresses, metrics) = (Addresses::default(), Arc::new(Metrics::default()));
        let address = |n| Some(IpAddr::from([192, 0, 2, n]));
        let held: Vec<_> = (0..MAX_PER_ADDRESS)
            .map(|_| Place::take(&places, &addresses, address(1), &metrics).expect("a place"))
            .collect();
        assert!(Place::take(&places, &addresses, address(1), &metrics).is_none());
        assert!(Place::take(&places, &addresses, address(2), &metrics).is_some());
        assert_eq!(metrics.http_connections.get(), MAX_PER_ADDRESS as i64);
        drop(held);
        assert_eq!(metrics.http_connections.get(), 0);
        assert!(addresses.lock().expect("not poisoned").is_empty());
        assert!(Place::take(&places, &addresses, address(1), &metrics).is_some());
    }
}
