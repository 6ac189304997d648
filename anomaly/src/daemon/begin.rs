//! What need not wait for the enforcer when the daemon starts: what was saved is read, and the hot thread begins with the
//! logs. With XDP that is done while the program is loaded. What is decided waits for the apply thread.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::apply::{Wanted, never_drop, still_to_drop, wanted};
use super::clock::now;
use super::hot::{Hot, Parts};
use super::logins::{Logins, Peers};
use super::messages::{HotStatus, Shared, Work};
use super::saves::Saves;
use crate::audit;
use crate::config::Config;
use crate::enforce::guard::{self, Guarded};
use crate::enforce::{Drop, EnforceError, Enforcer, Reconciled, reconcile};
use crate::engine::{Ban, Engine, State};
use crate::report::HistoryPoint;
use crate::store::{self, Store};
use crate::tail::Checkpoint;
use crate::view::control::Request;

/// Who must never be banned, being looked for: the kernel's list of connections takes it some 10 ms to write.
pub(super) type Guard = JoinHandle<Found>;

/// Who must never be banned, as found at the start.
pub(super) struct Found {
    /// Because the host lives on it.
    host: Vec<Guarded>,
    logged_in: Vec<IpNet>,
    peers: Peers,
}

/// Begins to look for those who must never be banned.
pub(super) fn look_for_guarded() -> Guard {
    std::thread::spawn(|| {
        let (host, logged_in) = (guard::find(&[]), guard::logged_in());
        // Where sessions can be seen, a connection proves nothing that they do not.
        let peers = if logged_in.recorded { Vec::new() } else { ssh_peers() };
        let peers = Peers::new(peers, guard::login_grace() + guard::SSH_GRACE_MARGIN);
        Found { host, logged_in: prefixes(logged_in.from), peers }
    })
}

/// Where people are logged in from now.
pub(super) fn logged_in() -> Vec<IpNet> {
    prefixes(guard::logged_in().from)
}

/// Who has a connection to sshd now.
pub(super) fn ssh_peers() -> Vec<IpNet> {
    prefixes(guard::ssh_peers())
}

fn prefixes(addresses: Vec<std::net::IpAddr>) -> Vec<IpNet> {
    addresses.into_iter().map(IpNet::from).collect()
}

/// Both the host's and those of `logins`.
pub(super) fn guarded(host: &[Guarded], logins: &Logins) -> Vec<Guarded> {
    let logins = logins.exempt().map(|prefix| Guarded { prefix, why: guard::Why::LoggedIn });
    host.iter().copied().chain(logins).collect()
}

/// What [`begin`] needs.
pub(super) struct Beginning {
    pub(super) config: Config,
    pub(super) guard: Guard,
    /// Requests from people and wake-ups, and the other end of them.
    pub(super) requests: Receiver<Request>,
    pub(super) wake: SyncSender<Request>,
    /// To the apply thread.
    pub(super) work: SyncSender<Work>,
    pub(super) picture: Shared<HotStatus>,
    pub(super) saves: Arc<Saves>,
}

/// What [`begin`] has made.
pub(super) struct Begun {
    /// With those who must never be banned.
    pub(super) config: Config,
    /// Never banned because the host lives on it.
    pub(super) host: Vec<Guarded>,
    pub(super) logins: Logins,
    /// Both of them.
    pub(super) guarded: Vec<Guarded>,
    /// Not banned by the detector for a while.
    pub(super) peers: Peers,
    pub(super) store: Store,
    pub(super) history: Vec<HistoryPoint>,
    /// What to show as degraded: word and reason.
    pub(super) trouble: Option<(&'static str, String)>,
    /// Bans that are in force.
    pub(super) restored: usize,
    /// Those of them that are to be dropped.
    pub(super) wanted: Wanted,
    /// The end of the audit log, and bans that it does not tell.
    pub(super) newest_lines: audit::Newest,
    pub(super) untold: Vec<Ban>,
    pub(super) hot_thread: JoinHandle<()>,
    pub(super) hot_ended: oneshot::Receiver<()>,
}

/// Who must never be banned.
struct Protected {
    host: Vec<Guarded>,
    logins: Logins,
    /// Both of them.
    guarded: Vec<Guarded>,
    peers: Peers,
}

impl Protected {
    /// Waits until they are found; nothing where that failed.
    fn found(guard: Guard) -> Option<Self> {
        // Without the trusted proxies, which a new configuration may name no longer; `config` has the present ones.
        let Found { host, logged_in, peers } = guard.join().ok()?;
        let mut logins = Logins::default();
        logins.look(now(), logged_in);
        let guarded = guarded(&host, &logins);
        Some(Self { host, logins, guarded, peers })
    }
}

/// What can be enforced before everything is read.
pub(super) enum Early {
    /// So many IPv4 prefixes, probably.
    Count(usize),
    /// What must never be dropped, and what is to be.
    Bans { never_drop: Vec<IpNet>, drops: Vec<Drop> },
}

/// Lets the enforcer drop who was banned, as soon as that is known, and not who must never be; how it went, where it was
/// known at all.
pub(super) fn enforce_early(
    enforcer: &mut dyn Enforcer,
    told: &Receiver<Early>,
) -> Option<Result<Reconciled, EnforceError>> {
    told.iter().find_map(|early| match early {
        Early::Count(bans) => {
            enforcer.reserve(bans);
            None
        }
        Early::Bans { never_drop, drops } => {
            // It is set again when all is read, and a failure told.
            let _ = enforcer.set_never_drop(&never_drop);
            Some(reconcile(enforcer, &drops))
        }
    })
}

/// Reads what was saved and starts the hot thread with it. `tell` is told of the bans before the rest is read.
///
/// # Errors
/// When the database or a log cannot be opened.
pub(super) fn begin(beginning: Beginning, mut tell: impl FnMut(Early)) -> Result<Begun> {
    let Beginning { mut config, guard, requests, wake, work, picture, saves } = beginning;
    let (mut looked_for, mut found) = (Some(guard), None);
    let mut look = || looked_for.take().and_then(Protected::found);
    let Opened { store, state, checkpoints, history, trouble } =
        open_store(&config.store_path, &mut |early| match early {
            store::Early::Count(bans) => tell(Early::Count(bans)),
            store::Early::Bans(bans) => {
                found = found.take().or_else(&mut look);
                if let Some(Protected { guarded, .. }) = &found {
                    let drops = still_to_drop(bans.iter().map(|ban| (&ban.prefix, ban.until)));
                    tell(Early::Bans { never_drop: never_drop(guarded, &config), drops });
                }
            }
        })?;
    let Some(Protected { host, logins, guarded, peers }) = found.or_else(look) else {
        bail!("who must never be banned could not be found out: see the fault above");
    };
    config.engine.never_ban.extend(guarded.iter().map(|guarded| guarded.prefix));
    config.engine.spared = peers.spared().to_vec();
    let newest_lines = audit::Newest::read(&config.audit.path);
    let untold = newest_lines.untold_bans(&state.bans);
    let (restored, wanted) = (state.bans.len(), wanted(state.bans.iter()));
    let engine = Engine::new(config.engine.clone(), hash_seed());
    let mut hot = Hot::new(config.clone(), Parts { engine, checkpoints, requests, wake, work, picture, saves })?;
    let (hot_thread, hot_ended) = spawn("anomaly-hot", move || {
        if hot.restore(state).is_err() {
            warn!(
                "what an earlier version had saved cannot all be read: the newest minute is counted anew, and perhaps the baseline learned (bans and offences are kept)"
            );
        }
        hot.run();
    })?;
    Ok(Begun {
        config,
        host,
        logins,
        guarded,
        peers,
        store,
        history,
        trouble,
        restored,
        wanted,
        newest_lines,
        untold,
        hot_thread,
        hot_ended,
    })
}

/// A thread, and a receiver that is closed when it ends, however it does.
pub(super) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(JoinHandle<()>, oneshot::Receiver<()>)> {
    let (alive, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _alive = alive;
        body();
    })?;
    Ok((thread, ended))
}

struct Opened {
    store: Store,
    state: State,
    checkpoints: Vec<Checkpoint>,
    history: Vec<HistoryPoint>,
    /// As in [`Begun`].
    trouble: Option<(&'static str, String)>,
}

/// Opens the database. One that cannot be written does not keep the daemon from protecting the host; one
/// that cannot be read does, because a start without it would lift every ban. `tell` as in [`Store::open_telling`].
fn open_store(path: &Path, tell: &mut dyn FnMut(store::Early<'_>)) -> Result<Opened> {
    let opened = Store::open_telling(path, now(), tell).with_context(|| format!("store.path = {}", path.display()))?;
    let store::Opened { store, loaded, quarantined, trouble } = opened;
    let mut trouble = trouble.map(|t| ("store", t.to_string()));
    if let Some(q) = quarantined {
        let moved = q.moved_to.display();
        error!(
            "{} was damaged ({}); it was moved to {moved} and a new one started: bans, offences and what was learned are lost",
            path.display(),
            q.problem
        );
        // A word of its own: it stays until the next start, however well the new database works.
        trouble = Some(("store_damaged", format!("the database was damaged and started anew; the old one is {moved}")));
    }
    let read = |log: &Path, bytes: &[u8]| {
        serde_json::from_slice(bytes)
            .map_err(|error| warn!("{}: where reading stopped is not readable: {error}", log.display()))
            .ok()
    };
    let checkpoints = loaded.checkpoints.iter().filter_map(|(log, bytes)| read(log, bytes)).collect();
    let day_ago = now().minus(Duration::from_secs(86_400)).as_secs();
    let history = store.reader().history(day_ago).unwrap_or_default();
    Ok(Opened { store, state: loaded.state, checkpoints, history, trouble })
}

/// The seed of the engine's hashes: the clients choose the addresses and paths that are hashed, so it must be unpredictable.
fn hash_seed() -> u64 {
    RandomState::new().hash_one(0u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::dry_run::DryRun;

    #[test]
    fn who_was_banned_is_dropped_as_soon_as_that_is_told() {
        let (teller, told) = std::sync::mpsc::channel();
        let forever = |prefix: &str| Drop { prefix: prefix.parse().expect("a prefix"), left: None };
        let mut enforcer = DryRun::default();
        // Left by an earlier life, and wanted by nobody.
        assert!(enforcer.ban(&[forever("203.0.113.8/32")])[0].is_ok());
        teller.send(Early::Count(1)).expect("open");
        let drops = vec![forever("203.0.113.7/32")];
        teller.send(Early::Bans { never_drop: Vec::new(), drops: drops.clone() }).expect("open");
        let done = enforce_early(&mut enforcer, &told).expect("told").expect("done");
        assert_eq!((done.wanted, done.enforced, done.orphans.len()), (1, 1, 1));
        let held: Vec<IpNet> = enforcer.banned().expect("a list").iter().map(|held| held.prefix).collect();
        assert_eq!(held, [drops[0].prefix]);
        // The thread that reads ends without having told anything.
        drop(teller);
        assert!(enforce_early(&mut enforcer, &told).is_none());
    }
}
