//! One anomaly per network namespace: two would remove each other's rules as orphans.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use rustix::thread::CapabilitySet;

use crate::enforce::EnforceError;

/// Name of the abstract socket that is the claim. Abstract sockets belong to a network namespace,
/// like the rules, whatever file systems the processes see; the kernel gives it back when its
/// owner dies, however that happens.
const CLAIM: &[u8] = b"anomaly/iptables";

/// Claims this network namespace for as long as the answer lives. `None` when a stranger without
/// privileges sits on the name: that must not stop enforcement.
///
/// # Errors
/// [`EnforceError::Kernel`] when another anomaly has it.
pub(super) fn namespace() -> Result<Option<UnixListener>, EnforceError> {
    let doing = || "claiming the firewall of this network namespace".to_string();
    let plain = |source| EnforceError::Kernel { doing: doing(), source, hint: None };
    let address = SocketAddr::from_abstract_name(CLAIM).map_err(plain)?;
    let source = match UnixListener::bind_addr(&address) {
        Ok(listener) => return Ok(Some(listener)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => error,
        Err(error) => return Err(plain(error)),
    };
    let owner =
        UnixStream::connect_addr(&address).ok().and_then(|stream| rustix::net::sockopt::socket_peercred(&stream).ok());
    match owner {
        Some(owner) if !owner.uid.is_root() && owner.uid != rustix::process::geteuid() => {
            tracing::warn!(uid = owner.uid.as_raw(), "a user without privileges holds the claim of anomaly; ignored");
            Ok(None)
        }
        owner => {
            let pid = owner.map_or_else(|| "unknown".into(), |owner| owner.pid.to_string());
            let hint =
                format!("another anomaly (pid {pid}) sets iptables rules here: one instance per network namespace");
            Err(EnforceError::Kernel { doing: doing(), source, hint: Some(hint) })
        }
    }
}

/// Makes sure that this process may set rules at all.
///
/// # Errors
/// [`EnforceError::Kernel`] without CAP_NET_ADMIN.
pub(super) fn require_net_admin() -> Result<(), EnforceError> {
    if rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN)) {
        return Ok(());
    }
    Err(EnforceError::Kernel {
        doing: "setting iptables rules".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
        hint: Some("CAP_NET_ADMIN is missing: run as root, or give the service or container NET_ADMIN".into()),
    })
}
