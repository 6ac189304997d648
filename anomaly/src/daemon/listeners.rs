//! The dashboard's two listeners, the Unix socket and the TCP port: bound, and bound again until it works, whatever has
//! them meanwhile. What cannot be bound is a fault that people are shown; what is served on them is the dashboard's.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::watch;
use tracing::info;

use super::trouble::Trouble;
use crate::config::Dashboard;
use crate::dashboard;
use crate::dashboard::Handle;

/// A port or socket that is taken (by a daemon that is just ending) is tried again this often.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// The word of `degraded` for a listener that is missing.
const WORD: &str = "dashboard";

/// What is being served, and how that is ended.
pub(super) struct Listeners {
    faults: Arc<Faults>,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Listeners {
    /// Begins to bind and to serve; must be called within the runtime.
    pub(super) fn start(handle: Handle, settings: Dashboard) -> Self {
        let (stop, stopped) = watch::channel(false);
        let faults = Arc::new(Faults::default());
        let noted = Arc::clone(&faults);
        let serving = tokio::spawn(async move {
            // The socket serves at once, also while the port is still taken.
            let over_unix = serve_unix(handle.clone(), &settings.socket, &noted, stopped.clone());
            let over_tcp = serve_tcp(handle, settings.listen, &noted, stopped.clone());
            tokio::join!(over_unix, over_tcp);
        });
        Self { faults, stop, serving }
    }

    /// What is not bound now.
    pub(super) fn faults(&self) -> Vec<Trouble> {
        self.faults.all()
    }

    /// Lets what is being answered finish, and ends.
    pub(super) async fn end(self) {
        self.stop.send_replace(true);
        let _ = self.serving.await;
    }
}

/// Why a listener is not bound, by its key.
#[derive(Default)]
struct Faults(Mutex<Vec<Trouble>>);

impl Faults {
    fn all(&self) -> Vec<Trouble> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the fault of a listener, or removes it with none.
    fn set(&self, which: &str, reason: Option<String>) {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults.retain(|fault| fault.which != which);
        faults.extend(reason.map(|reason| Trouble { word: WORD, which: which.into(), reason }));
    }
}

/// Resolves when the daemon stops, as often as it is asked: also after another one has waited for it.
async fn end_of(mut stopped: watch::Receiver<bool>) {
    // It fails where the sender is gone: that is the end, too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve_tcp(handle: Handle, listen: Option<SocketAddr>, faults: &Faults, stopped: watch::Receiver<bool>) {
    let Some(address) = listen else { return };
    let bind = || {
        bind_port(address).map_err(|failure| {
            let why = if failure.kind() == io::ErrorKind::AddrInUse {
                "another program has it"
            } else {
                "it cannot be opened"
            };
            format!("nothing is served on dashboard.listen = {address}: {why} ({failure})")
        })
    };
    let Some(listener) = bind_again("listen", bind, faults, stopped.clone()).await else { return };
    info!("dashboard on http://{}", listener.local_addr().unwrap_or(address));
    dashboard::serve(handle, Some(listener), None, end_of(stopped)).await;
}

async fn serve_unix(handle: Handle, path: &Path, faults: &Faults, stopped: watch::Receiver<bool>) {
    let bind = || {
        bind_socket(path)
            .map_err(|failure| format!("{failure:#}; `anomaly status` and its like do not reach this daemon"))
    };
    let Some(listener) = bind_again("socket", bind, faults, stopped.clone()).await else { return };
    dashboard::serve(handle, None, Some(listener), end_of(stopped)).await;
    let _ = std::fs::remove_file(path);
}

/// Binds until it works; nothing where the daemon stops before.
async fn bind_again<T>(
    which: &str,
    mut bind: impl FnMut() -> Result<T, String>,
    faults: &Faults,
    stopped: watch::Receiver<bool>,
) -> Option<T> {
    loop {
        match bind() {
            Ok(listener) => {
                faults.set(which, None);
                return Some(listener);
            }
            Err(reason) => {
                let reason = format!("{reason}; it is tried again every {} s", BIND_AGAIN.as_secs());
                // It is logged and reported with everything else that is degraded.
                faults.set(which, Some(reason));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(BIND_AGAIN) => {}
            () = end_of(stopped.clone()) => return None,
        }
    }
}

fn bind_port(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // What an earlier daemon's connections have left there is in nobody's way.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A Unix socket that root and its group may use. One left behind by a daemon that died is replaced.
fn bind_socket(path: &Path) -> Result<UnixListener> {
    let place = || format!("dashboard.socket = {}", path.display());
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("{}: another daemon answers there", place());
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(place)?;
    }
    match std::fs::remove_file(path) {
        Err(failure) if failure.kind() != std::io::ErrorKind::NotFound => return Err(failure).with_context(place),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(place)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).with_context(place)?;
    Ok(listener)
}
