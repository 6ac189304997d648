//! The contract of what drops packets, and the way one is chosen.
//!
//! An enforcer does what it is told, idempotently, and never decides. It blocks
//! its caller, so it runs on a thread of its own.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::{self, Backend};

pub mod both;
pub mod deny_map;
pub mod dry_run;
pub mod guard;
pub mod iptables;
pub mod xdp;

/// What is to be dropped, and for how much longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Drop {
    /// Whose packets.
    pub prefix: IpNet,
    /// Time left from now; `None` is for ever.
    pub left: Option<Duration>,
}

/// What is being dropped, with what it has cost its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whose packets.
    pub prefix: IpNet,
    /// Packets dropped since the ban.
    pub packets: u64,
    /// Bytes dropped since the ban.
    pub bytes: u64,
    /// How long ago the last one was dropped, where the enforcer knows.
    pub last_hit: Option<Duration>,
}

/// Which enforcer; the words of the configuration, `status` and the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// Ban map of an XDP program.
    Xdp,
    /// Rules of iptables and ip6tables.
    Iptables,
    /// XDP on some interfaces and iptables rules for the rest.
    XdpAndIptables,
    /// Nothing is dropped.
    DryRun,
}

impl Name {
    /// `xdp`, `iptables`, `xdp+iptables`, `dry-run`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Iptables => "iptables",
            Self::XdpAndIptables => "xdp+iptables",
            Self::DryRun => "dry-run",
        }
    }
}

/// Why an enforcer could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    /// The kernel refused; `hint` says what an operator can do about it.
    #[error("{doing}: {source}{}", hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default())]
    Kernel {
        /// What was being done, with the interface, map or prefix.
        doing: String,
        /// The kernel's answer.
        source: std::io::Error,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A program (`iptables`, `ipset`) failed.
    #[error("{command}: {message}")]
    Command {
        /// The command line.
        command: String,
        /// What it printed, or how it ended.
        message: String,
    },
    /// Another instance holds the pin directory.
    #[error("{0} is in use by another anomaly (pid {1}); give each instance an enforcer.pin_dir of its own")]
    InUse(String, u32),
    /// A configured interface does not exist.
    #[error("there is no interface {0}; `ip link` lists those there are (enforcer.interfaces, --interface)")]
    NoInterface(String),
    /// `anomaly off` was said.
    #[error("dropping is switched off (anomaly off)")]
    Off,
    /// The map is full and nothing in it may give way.
    #[error("the ban map is full ({capacity} entries)")]
    Full {
        /// Entries it can hold.
        capacity: u32,
    },
    /// The prefix is, holds or lies in one that is never dropped, and this enforcer cannot except
    /// it from a wider drop.
    #[error("{prefix} is not dropped: {entry} must never be dropped")]
    NeverDrop {
        /// What was to be dropped.
        prefix: IpNet,
        /// The guarded prefix.
        entry: IpNet,
    },
    /// A program that is needed is not installed.
    #[error("{}", missing_text(program, package, elsewhere.as_deref()))]
    Missing {
        /// The program.
        program: String,
        /// Debian's package that has it.
        package: &'static str,
        /// Where it is, when only PATH is wrong.
        elsewhere: Option<String>,
    },
}

fn missing_text(program: &str, package: &str, elsewhere: Option<&str>) -> String {
    match elsewhere {
        None => format!("{program} is not installed: apt-get install {package}"),
        Some(path) => format!("{program} is in no directory of PATH, but {path} exists: add its directory to PATH"),
    }
}

/// Something an enforcer met that the operator must hear of; the daemon audits, counts and shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incident {
    /// One rung of the ladder could not be taken. Audited as `fallback`.
    Fallback {
        /// Interface, where it is one interface's trouble.
        interface: Option<String>,
        /// The rung that failed (`xdp native`, `xdp generic`, `xdp`, `iptables`).
        from: String,
        /// The rung taken instead.
        to: String,
        /// Why, with what to do about it.
        reason: String,
    },
    /// The kernel did not hold what was wanted, and now does. Audited as `repaired`.
    Repaired {
        /// Bans that were missing.
        missing: Vec<IpNet>,
        /// Entries that no ban wanted.
        orphans: Vec<IpNet>,
    },
    /// The ban map was full: these gave way to newer ones. Audited as `map_full`.
    MapFull {
        /// Bans that are no longer enforced.
        gave_way: Vec<IpNet>,
        /// Entries the map can hold.
        capacity: u32,
    },
    /// Enforcement is on, but not as good as it should be.
    Degraded {
        /// What it is; it may be told again, with a newer reason.
        fault: Fault,
        /// What and why.
        reason: String,
    },
    /// A fault is over.
    Recovered {
        /// Which.
        fault: Fault,
    },
    /// `anomaly off` has reached the kernel: nothing is dropped.
    Off,
}

/// What can be wrong with enforcing by itself, and ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An interface is gone, or has lost its program.
    Interface(String),
    /// Interfaces without XDP that iptables cannot cover either.
    Gap,
    /// The kernel program cannot be told that the daemon lives.
    Heartbeat,
    /// The kernel program is slower than it need be.
    Slow,
    /// IPv6 cannot be dropped.
    Ipv6,
    /// The chains cannot be looked at or repaired.
    Chains,
    /// iptables does not list a table, and the kernel was asked itself.
    Listing,
    /// More bans than rules are good for.
    Overflow,
    /// Nginx's deny list is not up to date.
    DenyMap,
    /// What an earlier daemon left may go on dropping.
    Leftovers,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Interface(name) => return write!(f, "interface:{name}"),
            Self::Gap => "gap",
            Self::Heartbeat => "heartbeat",
            Self::Slow => "slow",
            Self::Ipv6 => "ipv6",
            Self::Chains => "chains",
            Self::Listing => "listing",
            Self::Overflow => "overflow",
            Self::DenyMap => "deny_map",
            Self::Leftovers => "leftovers",
        })
    }
}

/// How an interface is covered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name.
    pub interface: String,
    /// `native`, `generic`, or `none`.
    pub mode: &'static str,
    /// Why it is not native; `None` when it is.
    pub reason: Option<String>,
}

/// What an enforcer says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// One row per interface; empty for enforcers that know no interfaces.
    pub attachments: Vec<Attachment>,
    /// Packets since the program was attached, by what became of them; zero where unknown.
    pub totals: Totals,
}

/// Packets and bytes by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Dropped by an exact address (or /64).
    pub dropped_host: u64,
    /// Dropped by a wider prefix.
    pub dropped_prefix: u64,
    /// Bytes dropped.
    pub dropped_bytes: u64,
    /// Passed.
    pub passed: u64,
    /// Banned, but allow-listed: passed.
    pub allowlisted: u64,
    /// Truncated headers: passed.
    pub malformed: u64,
    /// ARP and the like: passed.
    pub not_ip: u64,
}

/// Drops packets. Every call blocks, and doing it twice is the same as doing it once.
pub trait Enforcer: Send {
    /// What `status` and the audit log call it.
    fn name(&self) -> Name;

    /// Drops these from now on, replacing the time left of those it drops already. The answers are
    /// in the order of `drops`.
    fn ban(&mut self, drops: &[Drop]) -> Vec<Result<(), EnforceError>>;

    /// Makes room for about this many bans of IPv4 addresses before they come: they are set faster then, and nothing else.
    fn reserve(&mut self, _bans: usize) {}

    /// Stops dropping these; what it does not drop is no error.
    fn unban(&mut self, prefixes: &[IpNet]) -> Vec<Result<(), EnforceError>>;

    /// An operator has lifted this ban and waits: what refuses its clients all the same, and for how long, in words. None
    /// where nothing does.
    fn still_refused(&mut self, _lifted: &IpNet) -> Option<String> {
        None
    }

    /// What these have dropped, where that is known: also those that ran out, or gave way to others. [`Enforcer::unban`]
    /// forgets it.
    ///
    /// # Errors
    /// The kernel's or the command's, when it cannot be asked.
    fn count(&mut self, prefixes: &[IpNet]) -> Result<Vec<Held>, EnforceError> {
        let asked: HashSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        let mut held = self.banned()?;
        held.retain(|held| asked.contains(&held.prefix));
        Ok(held)
    }

    /// What it drops now, as the kernel says.
    ///
    /// # Errors
    /// The kernel's or the command's, when it cannot be asked.
    fn banned(&mut self) -> Result<Vec<Held>, EnforceError>;

    /// Its whole state as text, for people and as proof.
    ///
    /// # Errors
    /// The kernel's or the command's, when it cannot be asked.
    fn snapshot_text(&mut self) -> Result<String, EnforceError>;

    /// Never drops these, whatever is banned.
    ///
    /// # Errors
    /// The kernel's, when it refuses.
    fn set_never_drop(&mut self, prefixes: &[IpNet]) -> Result<(), EnforceError>;

    /// Called about once a second and after [`Enforcer::ban`]: heartbeat, interfaces that came or
    /// went, rules that were flushed. Returns what happened since the last call.
    fn maintain(&mut self) -> Vec<Incident>;

    /// How each interface is covered, and totals.
    fn coverage(&mut self) -> Coverage;

    /// Ends it: `keep` leaves what is dropped dropped, otherwise everything is taken away.
    ///
    /// # Errors
    /// When something of ours had to stay behind; says what.
    fn close(self: Box<Self>, keep: bool) -> Result<(), EnforceError>;
}

/// What opening an enforcer needs and nothing else must be known for; see [`prepare`].
#[derive(Debug)]
pub struct Prepared(Option<JoinHandle<xdp::Loader>>);

/// Begins with what takes long in [`open`], on another thread.
pub fn prepare(config: &config::Enforcer) -> Prepared {
    let xdp = matches!(config.backend, Backend::Auto | Backend::Xdp);
    Prepared(xdp.then(|| std::thread::spawn(xdp::Loader::make)))
}

/// Opens what the configuration asks for. `auto` takes the best rung that carries: XDP native, XDP
/// generic, iptables; each step down is an [`Incident::Fallback`]. Where only some interfaces take XDP,
/// iptables covers the others.
///
/// What an earlier daemon left in the kernel with another enforcer is removed, once the new one works.
///
/// `claimed` is called, where XDP is tried, as soon as it is sure that no other daemon enforces in the same place: what
/// takes long and needs that can be done while the program is loaded.
///
/// # Errors
/// That of the enforcer asked for, or of the last rung. [`EnforceError::InUse`] and
/// [`EnforceError::NoInterface`] are final: no lower rung would make them right.
pub fn open(
    config: &config::Enforcer,
    Prepared(loader): Prepared,
    claimed: &mut dyn FnMut(),
) -> Result<(Box<dyn Enforcer>, Vec<Incident>), EnforceError> {
    let loader = || loader.and_then(|made| made.join().ok()).unwrap_or_else(xdp::Loader::make);
    match config.backend {
        Backend::DryRun => Ok((Box::new(dry_run::DryRun::new()), Vec::new())),
        Backend::Iptables => open_iptables(config),
        Backend::Xdp => {
            let (xdp, incidents) = xdp::XdpEnforcer::open_claimed(config, xdp::OBJECT, loader, claimed)?;
            Ok((Box::new(both::Both::new(Box::new(xdp), None)), incidents))
        }
        Backend::Auto => match xdp::XdpEnforcer::open_claimed(config, xdp::OBJECT, loader, claimed) {
            Ok((xdp, incidents)) => {
                let lower = config.clone();
                let open_lower = move || {
                    let (iptables, incidents) = iptables::IptablesEnforcer::open(&lower)?;
                    Ok((Box::new(iptables) as Box<dyn Enforcer>, incidents))
                };
                Ok((Box::new(both::Both::new(Box::new(xdp), Some(Box::new(open_lower)))), incidents))
            }
            Err(error @ (EnforceError::InUse(..) | EnforceError::NoInterface(_))) => Err(error),
            Err(error) => {
                let (iptables, mut incidents) = open_iptables(config)?;
                let (from, to) = ("xdp".into(), "iptables".into());
                incidents.insert(0, Incident::Fallback { interface: None, from, to, reason: error.to_string() });
                Ok((iptables, incidents))
            }
        },
    }
}

fn open_iptables(config: &config::Enforcer) -> Result<(Box<dyn Enforcer>, Vec<Incident>), EnforceError> {
    let (iptables, mut incidents) = iptables::IptablesEnforcer::open(config)?;
    match xdp::down(&config.pin_dir) {
        Ok(removed) if removed == xdp::Removed::default() => {}
        Ok(removed) => tracing::info!(?removed, "removed what an earlier daemon left in XDP"),
        Err(error @ EnforceError::InUse(..)) => return Err(error),
        Err(error) => incidents.push(Incident::Degraded {
            fault: Fault::Leftovers,
            reason: format!("bans that an earlier daemon left in XDP may stay in force after an unban: {error}"),
        }),
    }
    Ok((Box::new(iptables), incidents))
}

/// What the kernel holds against what it should hold: bans it lacks are set, entries nobody wants
/// are removed.
///
/// # Errors
/// When the enforcer cannot be asked, or something could not be repaired.
pub fn reconcile(enforcer: &mut dyn Enforcer, wanted: &[Drop]) -> Result<Reconciled, EnforceError> {
    // By prefix: whether it is wanted. There may be a million, so they are hashed once, and fast.
    let mut held: HashMap<IpNet, bool, foldhash::fast::RandomState> =
        enforcer.banned()?.into_iter().map(|held| (held.prefix, false)).collect();
    let missing: Vec<Drop> = (wanted.iter())
        .filter(|drop| held.get_mut(&drop.prefix).map(|is_wanted| *is_wanted = true).is_none())
        .copied()
        .collect();
    let mut orphans: Vec<IpNet> = held.iter().filter(|(_, wanted)| !**wanted).map(|(prefix, _)| *prefix).collect();
    orphans.sort();
    // An earlier daemon's ban may have run out while nobody was there to tell.
    let last = if orphans.is_empty() { Vec::new() } else { enforcer.count(&orphans).unwrap_or_default() };
    enforcer.unban(&orphans).into_iter().collect::<Result<(), _>>()?;
    let results = enforcer.ban(&missing);
    let repaired = results.iter().filter(|r| r.is_ok()).count();
    let failed = results.into_iter().find_map(Result::err);
    Ok(Reconciled {
        wanted: wanted.len(),
        enforced: wanted.len() - missing.len() + repaired,
        missing: missing.iter().map(|d| d.prefix).collect(),
        orphans,
        last,
        failed,
    })
}

/// What a reconciliation found and did.
#[derive(Debug)]
pub struct Reconciled {
    /// Bans that should be enforced.
    pub wanted: usize,
    /// Bans that are, now.
    pub enforced: usize,
    /// Bans that were missing.
    pub missing: Vec<IpNet>,
    /// Entries that no ban wanted, now removed.
    pub orphans: Vec<IpNet>,
    /// What those had dropped.
    pub last: Vec<Held>,
    /// The first of the bans that could not be set.
    pub failed: Option<EnforceError>,
}

/// The first of `entries` that shares an address with `prefix`.
pub fn covered_by(prefix: &IpNet, entries: &[IpNet]) -> Option<IpNet> {
    entries.iter().find(|entry| prefix.contains(*entry) || entry.contains(prefix)).copied()
}

/// The prefix of one address: /32 or /128.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
