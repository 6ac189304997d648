//! Drops in the kernel: bans are entries of the maps of an XDP program.
//!
//! Opening locks the pin directory, takes over what an earlier daemon left there (or makes it anew)
//! and attaches the program to every interface it can. It decides nothing, and it never takes an
//! interface away from somebody else's program.

mod attach;
mod counts;
mod needs;
mod netlink;
mod offline;
mod pins;
mod program;
mod raw;
mod room;
mod search;
mod tables;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use anomaly_common::{Ban, NEVER, State, switch};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use rustix::time::{ClockId, clock_gettime};

use super::{Attachment, Coverage, Drop, EnforceError, Enforcer, Fault, Held, Incident, Name, Totals};
use crate::config::{self, Backend};
use attach::Attached;
use counts::held_of;
use needs::{check_capabilities, choose};
use netlink::Watch;
use offline::take_down;
use pins::PinDir;
use program::{Kernel, Options, failed};
use tables::Kind;

pub use attach::owner;
pub use needs::{open_members, wanted_interfaces};
pub(super) use netlink::{Attributes, align, u16_at, u32_at};
pub use netlink::{Interface, interfaces};
pub use offline::{Removed, down, off};
pub use program::{Loader, OBJECT};
pub use search::{Found, find};

/// The enforcer over XDP. Made by [`XdpEnforcer::open`].
pub struct XdpEnforcer {
    dir: PinDir,
    kernel: Kernel,
    loader: Loader,
    object: Vec<u8>,
    settings: config::Enforcer,
    attached: Vec<Attached>,
    /// Interfaces that should be covered and are not, with the reason.
    uncovered: BTreeMap<String, String>,
    watch: Option<Watch>,
    logger: Option<EbpfLogger<ProbeLog>>,
    /// Told at the next [`Enforcer::maintain`].
    incidents: Vec<Incident>,
    /// By table: those that end first, the next to go last. Some may have been lifted or prolonged since.
    next_to_go: HashMap<usize, Vec<(IpNet, u64)>>,
    /// Bans that gave way, with their ends: they do not push others out in turn.
    gave_way: HashMap<IpNet, u64>,
    /// What bans had counted whose entries were removed although nobody lifted them: they ran out, or gave way.
    gone: HashMap<IpNet, Ban>,
    switched_off: bool,
    /// The kernel program could not be told that the daemon lives.
    mute: bool,
    /// Calls of [`Enforcer::maintain`].
    rounds: u64,
}

/// Interfaces without XDP are tried again after so many calls of [`Enforcer::maintain`].
const RETRY_ROUNDS: u64 = 10;

impl std::fmt::Debug for XdpEnforcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XdpEnforcer")
            .field("dir", &self.dir)
            .field("attached", &self.attached)
            .field("uncovered", &self.uncovered)
            .finish_non_exhaustive()
    }
}

impl XdpEnforcer {
    /// Locks `enforcer.pin_dir`, loads the program, takes over pinned bans, attaches to the
    /// interfaces, and turns enforcement on (also after [`off`]).
    ///
    /// Succeeds when at least one interface is covered; each one that is not comes back as
    /// [`Incident::Fallback`] with `interface: Some(..)` and `from: "xdp"`, and has mode `none` in
    /// [`Enforcer::coverage`]. Generic XDP is reported as a fallback from `xdp native` to `xdp generic`.
    ///
    /// # Errors
    /// [`EnforceError::InUse`]: stop, do not fall back. [`EnforceError::NoInterface`]: a configured
    /// interface does not exist; also a reason to stop. [`EnforceError::Kernel`]: XDP cannot be had here, with the
    /// reason and a hint; `auto` takes the iptables rung.
    pub fn open(settings: &config::Enforcer) -> Result<(Self, Vec<Incident>), EnforceError> {
        Self::open_object(settings, OBJECT)
    }

    /// The same with another build of the kernel program, for tests of a fresh one.
    ///
    /// # Errors
    /// As [`XdpEnforcer::open`].
    pub fn open_object(settings: &config::Enforcer, object: &[u8]) -> Result<(Self, Vec<Incident>), EnforceError> {
        Self::open_claimed(settings, object, Loader::make, &mut || {})
    }

    /// The same with a loader that may have been made meanwhile; `claimed` is called as soon as no other daemon can have
    /// the pin directory.
    ///
    /// # Errors
    /// As [`XdpEnforcer::open`].
    pub(super) fn open_claimed(
        settings: &config::Enforcer,
        object: &[u8],
        loader: impl FnOnce() -> Loader,
        claimed: &mut dyn FnMut(),
    ) -> Result<(Self, Vec<Incident>), EnforceError> {
        let slow = check_capabilities()?;
        let wanted = wanted_interfaces(settings)?;
        if wanted.is_empty() {
            return Err(EnforceError::Kernel {
                doing: "finding the interfaces to cover".into(),
                source: std::io::ErrorKind::NotFound.into(),
                hint: Some("no interface carries a default route; name them in enforcer.interfaces".into()),
            });
        }
        for line in open_members(&wanted) {
            tracing::warn!("{line}");
        }
        let dir = PinDir::lock(&settings.pin_dir)?;
        claimed();
        // Before looking, so that nothing that happens meanwhile is missed.
        let watch = Watch::new().map_err(|e| failed("watching interfaces; netlink", "", e)).ok();
        let stage = dir.fresh_stage()?;
        let mut loader = loader();
        let kernel = Kernel::load(&dir, &stage, options(settings, object, [None; 3]), &mut loader)?;
        let mut enforcer = Self {
            dir,
            kernel,
            loader,
            object: object.to_vec(),
            settings: settings.clone(),
            attached: Vec::new(),
            uncovered: BTreeMap::new(),
            watch,
            logger: None,
            incidents: slow.into_iter().collect(),
            next_to_go: HashMap::new(),
            gave_way: HashMap::new(),
            gone: HashMap::new(),
            switched_off: false,
            mute: false,
            rounds: 0,
        };
        enforcer.remember_left_behind();
        enforcer
            .kernel
            .switch
            .set(0, switch::ENFORCE, 0)
            .map_err(|e| failed("writing", "SWITCH", tables::io_error(e)))?;
        enforcer.heartbeat()?;
        enforcer.start_log();
        let mut refusal = None;
        for interface in &wanted {
            if let Err(e) = enforcer.cover(interface) {
                refusal = Some((interface.name.clone(), e));
            }
        }
        if let (true, Some((interface, refusal))) = (enforcer.attached.is_empty(), refusal) {
            enforcer.dir.remove()?;
            return Err(EnforceError::Kernel {
                doing: format!("attaching XDP to {interface}"),
                source: refusal.source,
                hint: Some(refusal.reason),
            });
        }
        enforcer.dir.publish(&stage)?;
        enforcer.drop_links_of_others(&wanted)?;
        enforcer.dir.remove_other_versions()?;
        let incidents = std::mem::take(&mut enforcer.incidents);
        Ok((enforcer, incidents))
    }

    /// The loaded program, for `BPF_PROG_TEST_RUN`: with or without support for packets in several
    /// buffers.
    ///
    /// # Errors
    /// The kernel's, when it refuses the program.
    pub fn program(&mut self, frags: bool) -> std::io::Result<&mut aya::programs::Xdp> {
        self.kernel.xdp(frags)
    }

    /// Counts what would be dropped, and passes it; or drops again.
    ///
    /// # Errors
    /// The kernel's, when the control map cannot be written.
    pub fn set_monitor(&mut self, monitor: bool) -> Result<(), EnforceError> {
        let value = if monitor { switch::MONITOR } else { switch::ENFORCE };
        self.kernel.switch.set(0, value, 0).map_err(|e| failed("writing", "SWITCH", tables::io_error(e)))
    }

    /// Attaches to one interface, or files why not.
    fn cover(&mut self, interface: &Interface) -> Result<(), attach::Refusal> {
        let older: Vec<_> =
            pins::versions(self.dir.path()).into_iter().filter(|version| *version != self.dir.current()).collect();
        let covered = attach::cover(&mut self.kernel, interface, self.settings.xdp_mode, &self.dir.current(), &older);
        let name = interface.name.clone();
        match covered {
            Ok(attached) => {
                tracing::info!(
                    "{name}: XDP {}{}{}",
                    mode_of(&attached),
                    if attached.frags { " with frags" } else { "" },
                    if attached.taken_over { ", taken over from the daemon before" } else { "" },
                );
                if self.uncovered.remove(&name).is_some() {
                    self.incidents.push(Incident::Recovered { fault: Fault::Interface(name.clone()) });
                }
                if let Some(reason) =
                    attached.reason.clone().filter(|_| self.settings.xdp_mode == config::XdpMode::Auto)
                {
                    self.incidents.push(Incident::Fallback {
                        interface: Some(name.clone()),
                        from: "xdp native".into(),
                        to: "xdp generic".into(),
                        reason,
                    });
                }
                self.attached.push(attached);
                Ok(())
            }
            Err(refusal) => {
                // Said once, not at every try.
                if self.uncovered.insert(name.clone(), refusal.reason.clone()).as_ref() != Some(&refusal.reason) {
                    let to = if self.settings.backend == Backend::Auto { "iptables" } else { "none" };
                    self.incidents.push(Incident::Fallback {
                        interface: Some(name),
                        from: "xdp".into(),
                        to: to.into(),
                        reason: refusal.reason.clone(),
                    });
                }
                Err(refusal)
            }
        }
    }

    /// Links of interfaces that are no longer asked for would go on dropping by maps nobody writes.
    fn drop_links_of_others(&mut self, wanted: &[Interface]) -> Result<(), EnforceError> {
        for version in pins::versions(self.dir.path()) {
            for (name, pin) in pins::links(&version) {
                let ours = version == self.dir.current() && self.attached.iter().any(|a| a.interface == name);
                if !ours {
                    if wanted.iter().all(|i| i.name != name) {
                        tracing::info!("{name}: no longer among the interfaces, detached");
                    }
                    attach::remove_pinned(&pin)?;
                }
            }
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Result<(), EnforceError> {
        let used = Kind::ALL.into_iter().filter(|kind| self.kernel.tables[*kind as usize].len() > 0);
        let state = State {
            heartbeat_ns: now_ns(),
            grace_ns: nanos(self.settings.grace),
            tables: used.map(Kind::bit).sum(),
            allow: self.kernel.allow,
        };
        self.kernel.state.set(0, state, 0).map_err(|e| failed("writing", "STATE", tables::io_error(e)))
    }

    fn start_log(&mut self) {
        if !self.settings.probe_log {
            return;
        }
        match EbpfLogger::init_with_logger(self.kernel.ebpf(), ProbeLog) {
            Ok(logger) => self.logger = Some(logger),
            Err(e) => tracing::warn!("the kernel program's log cannot be read: {e}"),
        }
    }

    /// Covers what came, lets go of what went.
    fn follow_interfaces(&mut self) {
        let changed = self.watch.as_ref().is_none_or(Watch::changed);
        let lost: Vec<String> = self.attached.iter().filter(|a| !a.is_alive()).map(|a| a.interface.clone()).collect();
        // Somebody else's program goes without a word on netlink.
        self.rounds += 1;
        let retry = !self.uncovered.is_empty() && self.rounds.is_multiple_of(RETRY_ROUNDS);
        if !changed && !retry && lost.is_empty() {
            return;
        }
        for name in lost {
            let Some(at) = self.attached.iter().position(|a| a.interface == name) else { continue };
            if let Err(e) = self.attached.remove(at).detach() {
                tracing::debug!("{name}: {e}");
            }
            self.uncovered.insert(name.clone(), "the interface is gone".into());
            let reason = format!("{name} is gone, or its XDP program was detached");
            self.incidents.push(Incident::Degraded { fault: Fault::Interface(name), reason });
        }
        let Ok(present) = netlink::interfaces() else { return };
        let chosen = choose(&self.settings, &present);
        for interface in &chosen {
            if self.attached.iter().all(|a| a.interface != interface.name) {
                // Filed by `cover`; tried again at the next change.
                let _ = self.cover(interface);
            }
        }
        // The default route has moved to another interface: this one is no longer asked for. Where none is covered, the
        // route may just be gone with it.
        if !self.attached.is_empty() && self.settings.interfaces.iter().all(|name| name == "auto") {
            let left = self.uncovered.extract_if(.., |name, _| chosen.iter().all(|i| i.name != *name));
            let over = left.map(|(name, _)| Incident::Recovered { fault: Fault::Interface(name) });
            self.incidents.extend(over);
        }
    }

    /// A trie answers with the longest match: ended entries in it cost time until they are removed.
    fn sweep_nets(&mut self) {
        let now = now_ns();
        for kind in [Kind::Net4, Kind::Net6] {
            let table = self.kernel.table(kind);
            if table.len() == 0 {
                continue;
            }
            let Ok(all) = table.all() else { continue };
            let ended: Vec<(IpNet, Ban)> = all.into_iter().filter(|(_, ban)| ban.until_ns <= now).collect();
            for (prefix, _) in &ended {
                let _ = table.remove(prefix);
            }
            self.remember(ended);
        }
    }
}

fn options<'a>(settings: &config::Enforcer, object: &'a [u8], capacities: [Option<u32>; 3]) -> Options<'a> {
    Options { object, log: settings.probe_log, capacities, max_bans: settings.max_bans }
}

const fn mode_of(attached: &Attached) -> &'static str {
    if attached.native { "native" } else { "generic" }
}

/// Nanoseconds of the clock that the kernel program reads. It is part of the ABI of the maps, and decides
/// nothing here: the engine has its own time.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

/// A ban without time left has ended: the program's clock is up to a tick behind ours, so `now` would not do.
fn until_ns(left: Option<Duration>, now: u64) -> u64 {
    match left {
        None => NEVER,
        Some(Duration::ZERO) => 0,
        Some(left) => now.saturating_add(nanos(left)),
    }
}

/// Writes what the kernel program logs into our own log.
#[derive(Debug)]
struct ProbeLog;

impl log::Log for ProbeLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!(target: "anomaly::probe", "{}", record.args());
    }

    fn flush(&self) {}
}

impl Enforcer for XdpEnforcer {
    fn name(&self) -> Name {
        Name::Xdp
    }

    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>> {
        let now = now_ns();
        let mut answers: Vec<Result<(), EnforceError>> = drops.iter().map(|_| Ok(())).collect();
        for kind in Kind::ALL {
            // What is to be set, and which of `drops` each is.
            let (mut entries, mut places): (Vec<(IpNet, u64)>, Vec<usize>) = (Vec::new(), Vec::new());
            for (n, drop) in drops.iter().enumerate().filter(|(_, drop)| Kind::of(&drop.prefix) == kind) {
                let (prefix, until) = (drop.prefix.trunc(), until_ns(drop.left, now));
                if self.must_wait(kind, &prefix, until) {
                    answers[n] = Err(EnforceError::Full { capacity: self.kernel.table(kind).capacity() });
                } else {
                    entries.push((prefix, until));
                    places.push(n);
                }
            }
            if !entries.is_empty() && self.put(kind, &entries, None).is_err() {
                // One by one, so that each answer says how it went for that one.
                let all: HashSet<IpNet> = entries.iter().map(|(prefix, _)| *prefix).collect();
                for (n, entry) in places.into_iter().zip(entries) {
                    answers[n] = self.put(kind, &[entry], Some(&all));
                }
            }
        }
        if let Err(e) = self.heartbeat() {
            // Without it the program may not know that a table is no longer empty.
            let reason = e.to_string();
            for answer in &mut answers {
                *answer = Err(EnforceError::Kernel {
                    doing: "telling the kernel program".into(),
                    source: std::io::Error::other(reason.clone()),
                    hint: None,
                });
            }
        }
        answers
    }

    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>> {
        let mut answers: Vec<Result<(), EnforceError>> = prefixes.iter().map(|_| Ok(())).collect();
        for kind in Kind::ALL {
            let of_kind: Vec<(usize, IpNet)> = prefixes
                .iter()
                .enumerate()
                .filter(|(_, prefix)| Kind::of(prefix) == kind)
                .map(|(n, prefix)| (n, prefix.trunc()))
                .collect();
            for (_, prefix) in &of_kind {
                self.gave_way.remove(prefix);
                self.gone.remove(prefix);
            }
            let these: Vec<IpNet> = of_kind.iter().map(|(_, prefix)| *prefix).collect();
            let table = self.kernel.table(kind);
            if table.remove_all(&these).is_err() {
                // One by one, so that each answer says how it went for that one.
                for (n, prefix) in of_kind {
                    answers[n] = table.remove(&prefix).map(drop).map_err(|e| failed("writing", kind.map(), e));
                }
            }
        }
        answers
    }

    fn count(&mut self, prefixes: &[IpNet]) -> Result<Vec<Held>, EnforceError> {
        self.last_counts(prefixes)
    }

    fn banned(&mut self) -> Result<Vec<Held>, EnforceError> {
        let now = now_ns();
        let mut held = Vec::with_capacity(self.kernel.tables.iter().map(|table| table.len()).sum());
        for kind in Kind::ALL {
            let table = self.kernel.table(kind);
            let mut ended = Vec::new();
            let each = &mut |prefix, ban: Ban| {
                if ban.until_ns <= now {
                    // The program no longer drops it, and leaves it to us to remove it.
                    ended.push((prefix, ban));
                    return;
                }
                held.push(held_of(prefix, &ban, now));
            };
            table.each(each).map_err(|e| failed("reading", kind.map(), e))?;
            let prefixes: Vec<IpNet> = ended.iter().map(|(prefix, _)| *prefix).collect();
            let removed = table.remove_all(&prefixes);
            self.remember(ended);
            removed.map_err(|e| failed("writing", kind.map(), e))?;
        }
        Ok(held)
    }

    fn snapshot_text(&mut self) -> Result<String, EnforceError> {
        /// A dump is for people; beyond this it says how many more there are.
        const LINES: usize = 10_000;
        let now = now_ns();
        let mut text = String::new();
        for attached in &self.attached {
            let _ = writeln!(text, "interface {} xdp {}", attached.interface, mode_of(attached));
        }
        let mut all = Vec::new();
        for kind in Kind::ALL {
            all.extend(self.kernel.table(kind).all().map_err(|e| failed("reading", kind.map(), e))?);
        }
        all.retain(|(_, ban)| ban.until_ns > now);
        all.sort_unstable_by_key(|(prefix, _)| *prefix);
        for (prefix, ban) in all.iter().take(LINES) {
            let _ = write!(text, "drop {prefix} packets {} bytes {} left ", ban.packets, ban.bytes);
            let _ = match ban.until_ns {
                NEVER => writeln!(text, "permanent"),
                until => writeln!(text, "{}s", (until - now).div_ceil(1_000_000_000)),
            };
        }
        if all.len() > LINES {
            let _ = writeln!(text, "and {} more", all.len() - LINES);
        }
        let mut never = self.kernel.never_dropped().map_err(|e| failed("reading", "ALLOW", e))?;
        never.sort_unstable();
        for prefix in never {
            let _ = writeln!(text, "never {prefix}");
        }
        Ok(text)
    }

    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError> {
        let writing = |e| failed("writing", "ALLOW", e);
        let wanted: HashSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        let held: HashSet<IpNet> =
            self.kernel.never_dropped().map_err(|e| failed("reading", "ALLOW", e))?.into_iter().collect();
        // First what is added: at no moment is anybody on both lists without protection.
        let new: Vec<&IpNet> = wanted.difference(&held).collect();
        let late: Vec<&IpNet> =
            new.into_iter().filter(|prefix| self.kernel.set_never_drop(prefix, true).is_err()).collect();
        let mut outcome = Ok(());
        for prefix in held.difference(&wanted) {
            outcome = outcome.and(self.kernel.set_never_drop(prefix, false).map_err(writing));
        }
        // What found the table full may find room now.
        for prefix in late {
            outcome = outcome.and(self.kernel.set_never_drop(prefix, true).map_err(writing));
        }
        // Also where some could not be set: the old sieve would rule out those that were.
        let sifted = self.kernel.sift().map_err(|e| failed("reading", "ALLOW", e));
        let told = self.heartbeat();
        outcome.and(sifted).and(told)
    }

    fn reserve(&mut self, bans: usize) {
        if let Err(e) = self.make_room(Kind::V4, bans) {
            tracing::warn!("no room could be made for {bans} bans before they are set: {e}");
        }
    }

    fn maintain(&mut self) -> Vec<Incident> {
        self.follow_interfaces();
        self.sweep_nets();
        self.forget_gone();
        let beat = self.heartbeat();
        if std::mem::replace(&mut self.mute, beat.is_err()) && beat.is_ok() {
            self.incidents.push(Incident::Recovered { fault: Fault::Heartbeat });
        }
        if let Err(e) = beat {
            self.incidents.push(Incident::Degraded { fault: Fault::Heartbeat, reason: e.to_string() });
        }
        let off = self.kernel.switch.get(&0, 0).is_ok_and(|value| value == switch::OFF);
        if off && !self.switched_off {
            self.incidents.push(Incident::Off);
        }
        self.switched_off = off;
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        std::mem::take(&mut self.incidents)
    }

    fn coverage(&mut self) -> Coverage {
        let covered = self.attached.iter().map(|a| Attachment {
            interface: a.interface.clone(),
            mode: mode_of(a),
            reason: a.reason.clone(),
        });
        let uncovered = self.uncovered.iter().map(|(interface, reason)| Attachment {
            interface: interface.clone(),
            mode: "none",
            reason: Some(reason.clone()),
        });
        let mut totals = Totals::default();
        if let Ok(values) = self.kernel.totals.get(&0, 0) {
            for cpu in values.iter() {
                totals.dropped_host += cpu.dropped_host;
                totals.dropped_prefix += cpu.dropped_prefix;
                totals.dropped_bytes += cpu.dropped_bytes;
                totals.passed += cpu.passed + cpu.not_enforced;
                totals.allowlisted += cpu.allowlisted;
                totals.malformed += cpu.malformed;
                totals.not_ip += cpu.not_ip;
            }
        }
        Coverage { attachments: covered.chain(uncovered).collect(), totals }
    }

    fn close(self: Box<Self>, keep: bool) -> Result<(), EnforceError> {
        if keep {
            return Ok(());
        }
        let Self { dir, attached, .. } = *self;
        for attached in attached {
            attached.detach()?;
        }
        take_down(dir).map(drop)
    }
}
