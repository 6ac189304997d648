//! Starts the daemon and stops it again: the order in which things are opened, and who ends when.

use std::collections::BTreeMap;
use std::sync::mpsc::{SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, broadcast, oneshot, watch};
use tracing::{info, warn};

use super::apply::{Apply, needs_restart};
use super::begin::{self, Beginning, Begun};
use super::clock::{now, stopwatch};
use super::config_file::{self, ConfigFile};
use super::listeners::Listeners;
use super::live::{HANGS_AFTER, Machine, Memory, Sources, live, point};
use super::logins::{self, Change, Logins, Peers};
use super::messages::{HotStatus, Shared, Work, newest};
use super::off;
use super::saves::Saves;
use super::trouble::{Told, Trouble};
use crate::audit::{self, Audit, Snapshots};
use crate::config::{Backend, Config, ConfigError, Loaded};
use crate::dashboard::Handle;
use crate::enforce;
use crate::enforce::guard::Guarded;
use crate::metrics::Metrics;
use crate::notify::{Notifier, Reporter};
use crate::store::MAX_ENDED;
use crate::view::control::{Event, Request};
use crate::view::history::History;
use crate::view::live::Live;

/// Requests that may wait for the hot thread.
const REQUESTS: usize = 1024;
/// Work that may wait for the apply thread before the hot thread keeps it back.
const WORK: usize = 1024;
/// Decisions that a slow dashboard may lag behind.
const EVENTS: usize = 1024;
/// How long notices may still be delivered when the daemon ends.
const LAST_NOTICES: Duration = Duration::from_secs(3);

/// Seconds between two looks at CPU and memory while somebody watches.
const MACHINE_EVERY: u64 = 3;
/// The same while nobody does.
const MACHINE_EVERY_UNWATCHED: u64 = 15;
/// Who is logged in is looked at this often.
const SESSIONS_EVERY: Duration = Duration::from_secs(10);

/// Reads the configuration again; called on SIGHUP.
pub type Reload = Box<dyn Fn() -> Result<Loaded, ConfigError> + Send>;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, before anything is attached where that can be known; or a thread that ended by itself.
pub fn run(loaded: Loaded, reload: Reload) -> Result<()> {
    let uptime = stopwatch();
    let mut config = loaded.config;
    // A dry run drops nothing, so it is no news that banned clients go on.
    config.engine.self_proof = config.enforcer.backend != Backend::DryRun;
    // Fails if one is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let prepared = enforce::prepare(&config.enforcer);
    let notifier = Notifier::start(&config.notify, &Reporter::of(&config))?;

    let config_file = ConfigFile::new(loaded.path.as_deref(), &config);
    match &loaded.path {
        Some(path) => info!("anomaly {} with {}", env!("CARGO_PKG_VERSION"), path.display()),
        None => info!("anomaly {} with the built-in defaults", env!("CARGO_PKG_VERSION")),
    }
    let (request_sender, requests) = sync_channel(REQUESTS);
    let (work_sender, work) = sync_channel(WORK);
    let (events, _) = broadcast::channel(EVENTS);
    let (hot_picture, apply_picture) = (Shared::default(), Shared::default());
    let news = Arc::new(Notify::new());
    let metrics = Arc::new(Metrics::default());
    let saves = Arc::new(Saves::default());
    let mut beginning = Some(Beginning {
        config: config.clone(),
        guard: begin::look_for_guarded(),
        requests,
        wake: request_sender.clone(),
        work: work_sender.clone(),
        picture: Arc::clone(&hot_picture),
        saves: Arc::clone(&saves),
    });
    // What was banned is read and the logs are begun with while the XDP program is loaded, which takes longest; but not
    // before it is sure that no other daemon is at work with them.
    let (mut begun, (teller, told)) = (None, channel());
    let opened = enforce::open(&config.enforcer, prepared, &mut || {
        let teller = teller.clone();
        let tell = move |early| {
            // Nobody listens where the enforcer could not be opened.
            let _ = teller.send(early);
        };
        if let Some(beginning) = beginning.take() {
            begun = Some(std::thread::spawn(|| begin::begin(beginning, tell)));
        }
    });
    drop(teller);
    let opened = opened.map(|(enforcer, incidents)| {
        let mut enforcer = if config.enforcer.backend == Backend::DryRun {
            // Nor does Nginx refuse anybody: whoever is on the list has been put there by an earlier daemon.
            if let Err(failure) = enforce::deny_map::clear(&config.nginx) {
                warn!("Nginx goes on refusing clients in this dry run: {failure}");
            }
            enforcer
        } else {
            enforce::deny_map::wrap(enforcer, &config.nginx)
        };
        off::clear(&config.dashboard.socket);
        // While the rest is read; nothing comes where that is not done on a thread, or fails.
        let early = begin::enforce_early(enforcer.as_mut(), &told);
        (enforcer, incidents, early)
    });
    // Also where the enforcer could not be opened: a damaged database that is just being moved away must be told of.
    let begun = begun.map(std::thread::JoinHandle::join);
    let (enforcer, incidents, early) = opened?;
    let begun = match beginning {
        Some(beginning) => begin::begin(beginning, |_| {})?,
        None => begun.and_then(Result::ok).context("nothing was begun: see the fault above")??,
    };
    let Begun { config, host, logins, guarded, peers, store, history: past, trouble, restored, wanted, .. } = begun;
    let reader = store.reader();
    let mut history = History::default();
    history.restore(past);
    let mut apply = Apply {
        store,
        reader,
        enforcer,
        audit: Audit::open(&config.audit.path, config.audit.max_bytes),
        snapshots: Snapshots::open(&config.audit.snapshot_path, config.audit.max_bytes),
        notifier: notifier.clone(),
        events: events.clone(),
        metrics: Arc::clone(&metrics),
        picture: Arc::clone(&apply_picture),
        news: Arc::clone(&news),
        saves,
        config: Box::new(config.clone()),
        guarded,
        wanted,
        counts: Arc::default(),
        held: 0,
        unlisted: None,
        off: false,
        not_effective: BTreeMap::new(),
        degraded: BTreeMap::new(),
        told: Told::default(),
    };
    let started = audit::Event::Started { version: env!("CARGO_PKG_VERSION"), restored_bans: restored };
    apply.write(&started);
    apply.incidents(incidents);
    // What a damaged database has told is not what is wanted.
    let early = early.filter(|_| trouble.is_none());
    if let Some((word, reason)) = trouble {
        apply.degrade(word, Some(reason));
    }
    apply.set_never_drop();
    match early {
        Some(early) => apply.reconciled(early, false),
        None => apply.reconcile(false),
    }
    // It only fails where the hot thread has ended, which is noticed below.
    let _ = request_sender.send(Request::Enforced(now()));
    let newest_lines = begun.newest_lines;
    let ended = newest_lines.begins().map(|begins| apply.reader.ended(begins, MAX_ENDED as usize).unwrap_or_default());
    apply.tell_late(&begun.untold, &newest_lines.untold_ends(ended.unwrap_or_default()));
    apply.publish();
    let coverage = apply.enforcer.coverage();
    let interfaces: Vec<String> =
        coverage.attachments.iter().map(|a| format!("{} ({})", a.interface, a.mode)).collect();
    let name = apply.enforcer.name().as_str();
    info!(
        "enforcer {name}{}{}; {restored} bans restored",
        if interfaces.is_empty() { "" } else { " on " },
        interfaces.join(", ")
    );

    if !peers.spared().is_empty() {
        let peers: Vec<String> = peers.spared().iter().map(|prefix| prefix.addr().to_string()).collect();
        info!(
            "who is logged in cannot be seen here; not banned by itself for the first minutes, because it is connected to sshd: {}",
            peers.join(", ")
        );
    }
    let (hot_thread, hot_ended) = (begun.hot_thread, begun.hot_ended);
    let (apply_thread, apply_ended) = begin::spawn("anomaly-apply", move || apply.run(&work))?;
    let service = Service {
        hot_picture,
        apply_picture,
        news,
        metrics: Arc::clone(&metrics),
        history: Arc::new(Mutex::new(history)),
        requests: request_sender.clone(),
        work: work_sender.clone(),
        events,
        config,
        host,
        logins,
        peers,
        logins_changed: false,
        reload,
        config_file,
    };
    let outcome = runtime.block_on(service.serve(uptime, hot_ended, apply_ended));
    // The hot thread hands everything over before it ends, and the apply thread ends after that.
    let _ = request_sender.send(Request::Stop);
    let joined = hot_thread.join().is_ok();
    drop(work_sender);
    let joined = apply_thread.join().is_ok() && joined;
    runtime.block_on(notifier.finish(LAST_NOTICES));
    outcome?;
    if !joined {
        bail!("a thread of the daemon ended by a fault; see the log above");
    }
    Ok(())
}

/// What serves people and signals.
struct Service {
    hot_picture: Shared<HotStatus>,
    apply_picture: Shared<super::messages::ApplyStatus>,
    news: Arc<Notify>,
    metrics: Arc<Metrics>,
    history: Arc<Mutex<History>>,
    requests: SyncSender<Request>,
    work: SyncSender<Work>,
    events: broadcast::Sender<Event>,
    config: Config,
    /// Never banned because the host lives on it.
    host: Vec<Guarded>,
    /// Never banned because somebody is logged in there.
    logins: Logins,
    /// Not banned by the detector for a while.
    peers: Peers,
    /// Not yet told to the two threads.
    logins_changed: bool,
    reload: Reload,
    config_file: ConfigFile,
}

impl Service {
    async fn serve(
        mut self,
        uptime: impl Fn() -> Duration,
        mut hot_ended: oneshot::Receiver<()>,
        mut apply_ended: oneshot::Receiver<()>,
    ) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sessions = tokio::time::interval(SESSIONS_EVERY);
        sessions.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut machine, mut memory) = (Machine::new(), Memory::default());
        let mut seconds = 0u64;
        // The first picture, so that nobody ever sees none.
        let first = self.first_picture(&mut hot_ended).await?;
        let (live_sender, live) = watch::channel(self.picture(&first, &machine, &mut memory, uptime(), Vec::new()));
        let listeners = self.start_dashboard(live);
        tell_systemd(&[NotifyState::Ready]);
        loop {
            tokio::select! {
                _ = second.tick() => {
                    // Half of what an idle daemon costs is to read these figures.
                    let watched = self.metrics.http_streams.get() > 0;
                    let every = if watched { MACHINE_EVERY } else { MACHINE_EVERY_UNWATCHED };
                    if seconds < 2 || seconds.is_multiple_of(every) {
                        machine.refresh();
                    }
                    seconds += 1;
                    if let Some(hot) = newest(&self.hot_picture) {
                        let live = self.picture(&hot, &machine, &mut memory, uptime(), listeners.faults());
                        if now().since(hot.at) < HANGS_AFTER {
                            tell_systemd(&[NotifyState::Watchdog]);
                        }
                        self.remember(&live);
                        if let Some(news) = memory.news() {
                            // Where it is full, the apply thread is what hangs; the same is tried a second later.
                            if self.work.try_send(Work::Health(news)).is_ok() {
                                memory.told();
                            }
                        }
                        let _ = live_sender.send(live);
                    }
                }
                () = self.news.notified() => {
                    if let Some(hot) = newest(&self.hot_picture) {
                        let _ = live_sender.send(self.picture(&hot, &machine, &mut memory, uptime(), listeners.faults()));
                    }
                }
                _ = sessions.tick() => {
                    self.guard_logins(uptime());
                    self.look_at_config_file();
                }
                () = received(&mut hangup) => self.reload().await,
                () = received(&mut terminate) => break,
                () = received(&mut interrupt) => break,
                _ = &mut hot_ended => bail!("the reading thread ended by a fault; see the log above"),
                _ = &mut apply_ended => bail!("the applying thread ended by a fault; see the log above"),
            }
        }
        info!("stopping");
        tell_systemd(&[NotifyState::Stopping]);
        listeners.end().await;
        Ok(())
    }

    async fn first_picture(&self, hot_ended: &mut oneshot::Receiver<()>) -> Result<Arc<HotStatus>> {
        loop {
            if let Some(picture) = newest(&self.hot_picture) {
                return Ok(picture);
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(2)) => {}
                _ = &mut *hot_ended => bail!("the reading thread ended by a fault; see the log above"),
            }
        }
    }

    fn picture(
        &self,
        hot: &HotStatus,
        machine: &Machine,
        memory: &mut Memory,
        uptime: Duration,
        unbound: Vec<Trouble>,
    ) -> Arc<Live> {
        let apply = newest(&self.apply_picture);
        let live = live(&Sources { hot, apply: apply.as_deref(), machine, now: now(), uptime, unbound }, memory);
        self.metrics.snapshot(&hot.snapshot);
        self.metrics.logs(&hot.totals, &hot.rejected, hot.read_errors);
        if let Some(apply) = &apply {
            self.metrics.packets(&apply.coverage.totals);
        }
        self.metrics.live(&live);
        Arc::new(live)
    }

    /// Adds the second to the graph, and each whole minute to the store.
    fn remember(&self, live: &Live) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push(point(live, now()));
        // A graph with a hole is better than a daemon that waits.
        history.offer_minute(|minute| self.work.try_send(Work::History(minute)).is_ok());
    }

    fn start_dashboard(&self, live: watch::Receiver<Arc<Live>>) -> Listeners {
        let handle = Handle {
            live,
            events: self.events.clone(),
            requests: self.requests.clone(),
            history: Arc::clone(&self.history),
            metrics: Arc::clone(&self.metrics),
            token: self.config.dashboard.token.clone(),
            public_url: self.config.notify.dashboard_url.clone(),
        };
        Listeners::start(handle, self.config.dashboard.clone())
    }

    /// SIGHUP: everything or nothing of the new configuration.
    async fn reload(&mut self) {
        let outcome = match (self.reload)() {
            Ok(loaded) => {
                let outcome = self.take(loaded.config).await;
                self.config_file.reloaded(None, outcome.is_ok());
                outcome.map_err(|problem| format!("{problem}; the old configuration stays in force"))
            }
            Err(problem) => {
                self.config_file.reloaded(Some(&problem), false);
                Err(config_file::reason(&problem))
            }
        };
        let work = self.work.clone();
        // The apply thread may be busy with a firewall that hangs; nobody else may wait for it.
        tokio::task::spawn_blocking(move || {
            // It only fails when the daemon ends.
            let _ = work.send(Work::Reloaded(outcome));
        });
    }

    /// A file that the next start would refuse is a fault before that start.
    fn look_at_config_file(&mut self) {
        let Some(news) = self.config_file.look(&self.reload) else { return };
        let work = self.work.clone();
        tokio::task::spawn_blocking(move || {
            // It only fails when the daemon ends.
            let _ = work.send(Work::ConfigFile(news));
        });
    }

    /// Exempts the addresses that have logged in since, most likely those of the host's operators, and ends that with the session.
    fn guard_logins(&mut self, uptime: Duration) {
        let change = self.logins.look(now(), begin::logged_in());
        let shown = |prefixes: &[IpNet]| {
            let addresses: Vec<String> = prefixes.iter().map(|prefix| prefix.addr().to_string()).collect();
            addresses.join(", ")
        };
        if change.crowded > 0 {
            warn!(
                "people are logged in from more than {} addresses; only the newest are exempt from bans: list yours in allowlist",
                logins::MOST
            );
        }
        if !change.added.is_empty() {
            info!("not banned, because somebody is logged in from there: {}", shown(&change.added));
        }
        if !change.ended.is_empty() {
            info!("no longer exempt from bans, because nobody is logged in from there: {}", shown(&change.ended));
        }
        let gone = self.peers.look(uptime, begin::ssh_peers);
        if !gone.is_empty() {
            info!(
                "no longer spared, because sshd would have closed an idle connection, or it has ended: {}",
                shown(&gone)
            );
        }
        self.logins_changed |= change != Change::default() || !gone.is_empty();
        if !self.logins_changed {
            return;
        }
        let mut config = self.config.clone();
        config.engine.never_ban = [&config.trusted_proxies[..], &self.never_ban()].concat();
        config.engine.spared = self.peers.spared().to_vec();
        let (reply, _) = oneshot::channel();
        let request = Request::Configure { config: Box::new(config.clone()), reply };
        // Where either is too busy it is tried again with the next look; both take the same addresses twice.
        if self.requests.try_send(request).is_err() || self.work.try_send(Work::Guard(self.guarded())).is_err() {
            return;
        }
        self.logins_changed = false;
        self.config = config;
    }

    /// Never banned, whatever the configuration says.
    fn guarded(&self) -> Vec<Guarded> {
        begin::guarded(&self.host, &self.logins)
    }

    fn never_ban(&self) -> Vec<IpNet> {
        self.guarded().iter().map(|guarded| guarded.prefix).collect()
    }

    async fn take(&mut self, mut config: Config) -> Result<Box<Config>, String> {
        for key in needs_restart(&self.config, &config) {
            warn!("{key} has changed and takes effect at the next restart");
        }
        config.engine.never_ban.extend(self.never_ban());
        config.engine.spared = self.peers.spared().to_vec();
        config.engine.self_proof = self.config.engine.self_proof;
        config.enforcer = crate::config::Enforcer { on_stop: config.enforcer.on_stop, ..self.config.enforcer.clone() };
        config.store_path.clone_from(&self.config.store_path);
        config.name.clone_from(&self.config.name);
        config.notify = self.config.notify.clone();
        config.dashboard = self.config.dashboard.clone();
        config.nginx = self.config.nginx.clone();
        let (reply, answer) = oneshot::channel();
        let request = Request::Configure { config: Box::new(config.clone()), reply };
        self.requests.try_send(request).map_err(|_| "the daemon is too busy; send SIGHUP again".to_owned())?;
        answer.await.map_err(|_| "the daemon is stopping".to_owned())?.map_err(|e| e.to_string())?;
        self.config = config.clone();
        Ok(Box::new(config))
    }
}

/// Does nothing where no systemd listens.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(failure) = sd_notify::notify(state) {
        warn!("systemd cannot be told {state:?}: {failure}");
    }
}

async fn received(signal: &mut Signal) {
    // A signal stream that has ended can deliver nothing more; then there is nothing to wait for.
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}
