//! One family's iptables in one variant (nft or legacy): the programs, and the
//! chains of this network namespace that they show.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::command::{LOCK_WAIT_SECS, TIME_LIMIT, ask, find, run};
use super::nft;
use super::rules::{
    Action, Chain, DOCKER_USER, Edit, Family, INPUT, PREROUTING, Rule, Saved, Table, What, restore_text,
};
use crate::enforce::EnforceError;

/// Up to so many rules are set by `iptables` itself, one process each, after having checked that
/// they are not there; more go through `iptables-restore`.
const ONE_BY_ONE: usize = 2;

/// Which kernel interface the programs speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// nf_tables.
    Nft,
    /// ip_tables.
    Legacy,
}

impl Variant {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }
}

/// The programs of one family and variant.
#[derive(Clone, Debug)]
pub(super) struct Firewall {
    pub family: Family,
    pub variant: Variant,
    /// The one that `iptables` is on this host. It gets all our rules; the other variant only
    /// those of a DOCKER-USER chain that lives there.
    pub primary: bool,
    /// Whether DOCKER-USER was there when it was last read.
    docker: bool,
    raw: bool,
    /// The tables that could not be listed when they were last read, so that the kernel was asked itself; and why.
    unlisted: BTreeMap<Table, String>,
    edit: PathBuf,
    save: PathBuf,
    restore: PathBuf,
}

impl Firewall {
    /// What `iptables` (or `ip6tables`) is here.
    ///
    /// # Errors
    /// [`EnforceError::Missing`] when a program is not there, [`EnforceError::Command`] when it does
    /// not say its version.
    pub fn primary(family: Family, raw: bool, path: &OsStr) -> Result<Self, EnforceError> {
        let mut firewall = Self::of(family, family.program(), Variant::Legacy, path)?;
        // "iptables v1.8.9 (nf_tables)"; versions before 1.8 are legacy and do not say so.
        let version = run(&firewall.edit, &["--version"], None, TIME_LIMIT)?.stdout;
        if version.contains("nf_tables") {
            firewall.variant = Variant::Nft;
        }
        firewall.primary = true;
        firewall.raw = raw;
        Ok(firewall)
    }

    /// The same family in the variant that `iptables` is not, where it is installed.
    pub fn secondary(&self, path: &OsStr) -> Option<Self> {
        let variant = self.variant.other();
        Self::of(self.family, &format!("{}-{}", self.family.program(), variant.as_str()), variant, path).ok()
    }

    /// Every variant of a family that is installed, for cleaning up.
    pub fn all(family: Family, path: &OsStr) -> Vec<Self> {
        let program = family.program();
        let mut found: Vec<Self> = [Variant::Nft, Variant::Legacy]
            .into_iter()
            .filter_map(|v| Self::of(family, &format!("{program}-{}", v.as_str()), v, path).ok())
            .collect();
        if found.is_empty() {
            found.extend(Self::primary(family, false, path).ok());
        }
        found
    }

    fn of(family: Family, program: &str, variant: Variant, path: &OsStr) -> Result<Self, EnforceError> {
        Ok(Self {
            family,
            variant,
            primary: false,
            docker: false,
            raw: false,
            unlisted: BTreeMap::new(),
            edit: find(program, "iptables", path)?,
            save: find(&format!("{program}-save"), "iptables", path)?,
            restore: find(&format!("{program}-restore"), "iptables", path)?,
        })
    }

    /// Whether asking for `table` brings nothing into being: listing a legacy table that the kernel
    /// does not have yet creates it, in every namespace.
    pub fn has(&self, table: Table) -> bool {
        let names = match self.family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        match self.variant {
            Variant::Nft => true,
            Variant::Legacy => match std::fs::read_to_string(names) {
                Ok(text) => text.lines().any(|line| line == table.as_str()),
                // Not for our eyes: let iptables say so itself.
                Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
            },
        }
    }

    /// The tables that our rules go into.
    pub fn tables(&self) -> &'static [Table] {
        if self.primary && self.raw { &[Table::Filter, Table::Raw] } else { &[Table::Filter] }
    }

    /// The chains that must have each of our rules.
    pub fn chains(&self) -> Vec<Chain> {
        let mut chains = Vec::with_capacity(3);
        if self.primary {
            chains.push(INPUT);
        }
        if self.docker {
            chains.push(DOCKER_USER);
        }
        if self.primary && self.raw {
            chains.push(PREROUTING);
        }
        chains
    }

    /// Whether DOCKER-USER was there when it was last read.
    pub const fn covers_docker(&self) -> bool {
        self.docker
    }

    /// One table as `iptables-save -c` prints it. Takes no lock.
    ///
    /// # Errors
    /// The command's.
    pub fn text(&self, table: Table) -> Result<String, EnforceError> {
        Ok(run(&self.save, &["-c", "-t", table.as_str()], None, TIME_LIMIT)?.stdout)
    }

    /// Our rules and the chains of one table; notices whether DOCKER-USER is there. What the program cannot list is asked of
    /// the kernel, where it has nf_tables: a table that cannot be read is not an empty one.
    ///
    /// # Errors
    /// The command's, and the kernel's where that was asked too.
    pub fn read(&mut self, table: Table) -> Result<Saved, EnforceError> {
        let listed = match self.text(table) {
            Ok(text) => Saved::read(&text, self.family, table).map_err(|message| {
                let command = format!("{}-save -c -t {}", self.family.program(), table.as_str());
                EnforceError::Command { command, message }
            }),
            Err(error) if met_foreign_rule(&error) => Err(error),
            // It does not work at all.
            Err(error) => return Err(error),
        };
        let saved = match (listed, self.variant) {
            (Ok(saved), _) => {
                self.unlisted.remove(&table);
                saved
            }
            (Err(error), Variant::Nft) => {
                let saved = nft::read(self.family, table).map_err(|kernel| EnforceError::Command {
                    command: error.to_string(),
                    message: format!("and the kernel does not list its rules either: {kernel}"),
                })?;
                self.unlisted.insert(table, error.to_string());
                saved
            }
            (Err(error), Variant::Legacy) => return Err(error),
        };
        if table == Table::Filter {
            self.docker = saved.chains.contains(DOCKER_USER.name);
        }
        Ok(saved)
    }

    /// Why tables could not be listed as iptables does, when they were last read.
    pub fn unlisted(&self) -> impl Iterator<Item = &str> {
        self.unlisted.values().map(String::as_str)
    }

    /// Makes sure that the kernel would take our rules, without setting one.
    ///
    /// # Errors
    /// The command's.
    pub fn probe(&self) -> Result<(), EnforceError> {
        let sample = match self.family {
            Family::V4 => IpNet::from(std::net::IpAddr::from([192, 0, 2, 1])),
            Family::V6 => IpNet::from(std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
        };
        let edit = Edit { action: Action::Insert, what: What::Prefix(sample) };
        let text = restore_text(Table::Filter, [(INPUT.name, edit)]);
        self.restore(&text, 1, &["--test"])
    }

    /// Sets `whats` in every chain that lacks them.
    ///
    /// # Errors
    /// The command's; then some chains may have them and others not.
    pub fn insert(&mut self, whats: &[What]) -> Result<(), EnforceError> {
        if whats.len() <= ONE_BY_ONE {
            for chain in self.chains() {
                for &what in whats {
                    self.insert_one(chain, what)?;
                }
            }
            return Ok(());
        }
        self.twice(|firewall| {
            for &table in firewall.tables() {
                let saved = firewall.read(table)?;
                let mut edits = Vec::new();
                for chain in firewall.chains().into_iter().filter(|chain| chain.table == table) {
                    let there = saved.in_chain(chain);
                    let missing = whats.iter().filter(|what| !there.contains(what));
                    edits.extend(missing.map(|&what| (chain.name, Edit { action: Action::Insert, what })));
                }
                firewall.apply(table, &edits)?;
                firewall.look_after(table, &edits)?;
            }
            Ok(())
        })
    }

    /// `-C`, and `-I` when it is not there.
    fn insert_one(&mut self, chain: Chain, what: What) -> Result<(), EnforceError> {
        let known = match self.has_rule(chain, what) {
            Ok(there) => Some(there),
            // A rule that iptables does not understand stands in the way, or it does not answer.
            Err(EnforceError::Command { .. }) => None,
            Err(error) => return Err(error),
        };
        let there = match known {
            Some(there) => there,
            None => self.read(chain.table)?.in_chain(chain).contains(&what),
        };
        if there {
            return Ok(());
        }
        let edits = [(chain.name, Edit { action: Action::Insert, what })];
        self.apply(chain.table, &edits)?;
        if known.is_none() { self.look_after(chain.table, &edits) } else { Ok(()) }
    }

    /// Looks whether what was inserted can be read back. What cannot is taken out again: otherwise it would be set again at
    /// each look, and nothing would ever take it away.
    fn look_after(&mut self, table: Table, inserted: &[(&str, Edit)]) -> Result<(), EnforceError> {
        if inserted.is_empty() {
            return Ok(());
        }
        let saved = self.read(table)?;
        let lost: Vec<(&str, Edit)> = inserted
            .iter()
            .filter(|(chain, edit)| !saved.rules.iter().any(|rule| rule.chain == *chain && rule.what == edit.what))
            .map(|(chain, edit)| (*chain, Edit { action: Action::Delete, what: edit.what }))
            .collect();
        let Some((chain, first)) = lost.first() else { return Ok(()) };
        let message = format!(
            "{} rules that were set there cannot be read back, {} the first of them; they were taken out again",
            lost.len(),
            first.what.spec().join(" ")
        );
        let command = format!("{} -t {} -I {chain}", self.family.program(), table.as_str());
        self.apply(table, &lost)?;
        Err(EnforceError::Command { command, message })
    }

    /// Takes `whats` out of every chain of `table` that has them, as often as it has them, looks whether they are gone, and
    /// returns how many rules that were.
    ///
    /// # Errors
    /// The command's or the kernel's; then some may be left. Also when some are left although nobody said that it failed.
    pub fn delete(&mut self, table: Table, is_wanted: impl Fn(&What) -> bool) -> Result<usize, EnforceError> {
        self.twice(|firewall| {
            let saved = firewall.read(table)?;
            let rules: Vec<&Rule> = saved.rules.iter().filter(|rule| is_wanted(&rule.what)).collect();
            if rules.is_empty() {
                return Ok(0);
            }
            if rules.iter().all(|rule| rule.handle.is_some()) {
                nft::delete(firewall.family, table, &rules).map_err(|kernel| EnforceError::Command {
                    command: format!("deleting rules of {} {}", firewall.family.program(), table.as_str()),
                    message: kernel.to_string(),
                })?;
            } else {
                let edit = |rule: &&Rule| Edit { action: Action::Delete, what: rule.what };
                let edits: Vec<_> = rules.iter().map(|rule| (rule.chain.as_str(), edit(rule))).collect();
                firewall.apply(table, &edits)?;
            }
            let count = rules.len();
            let stay = firewall.read(table)?.rules.into_iter().filter(|rule| is_wanted(&rule.what));
            let mut stay = stay.map(|rule| format!("-A {} {}", rule.chain, rule.what.spec().join(" ")));
            let Some(first) = stay.next() else { return Ok(count) };
            Err(EnforceError::Command {
                command: format!("{} -t {} -D", firewall.family.program(), table.as_str()),
                message: format!("{} rules are still there, the first of them: {first}", 1 + stay.count()),
            })
        })
    }

    /// Tries again from the start when somebody changed the chains between our look and our change.
    fn twice<T>(&mut self, attempt: impl Fn(&mut Self) -> Result<T, EnforceError>) -> Result<T, EnforceError> {
        attempt(self).or_else(|_| attempt(self))
    }

    fn apply(&self, table: Table, edits: &[(&str, Edit)]) -> Result<(), EnforceError> {
        if edits.len() <= ONE_BY_ONE {
            return edits.iter().try_for_each(|(chain, edit)| self.one(edit.action.flag(), table, chain, edit.what));
        }
        self.restore(&restore_text(table, edits.iter().copied()), edits.len(), &[])
    }

    fn one(&self, flag: &str, table: Table, chain: &str, what: What) -> Result<(), EnforceError> {
        self.with_words(flag, table, chain, what, |args| run(&self.edit, args, None, TIME_LIMIT).map(drop))
    }

    /// Whether `chain` has the rule; `-C` says 1 when it has not, and something else when it could not find out.
    fn has_rule(&self, chain: Chain, what: What) -> Result<bool, EnforceError> {
        self.with_words("-C", chain.table, chain.name, what, |args| ask(&self.edit, args, TIME_LIMIT))
    }

    fn with_words<T>(&self, flag: &str, table: Table, chain: &str, what: What, call: impl FnOnce(&[&str]) -> T) -> T {
        let wait = LOCK_WAIT_SECS.to_string();
        let spec = what.spec();
        let mut args = vec!["-w", wait.as_str()];
        if table != Table::Filter {
            args.extend(["-t", table.as_str()]);
        }
        args.extend([flag, chain]);
        args.extend(spec.iter().map(String::as_str));
        call(&args)
    }

    fn restore(&self, text: &str, rules: usize, more: &[&str]) -> Result<(), EnforceError> {
        let wait = LOCK_WAIT_SECS.to_string();
        let mut args = vec!["--noflush", "-w", wait.as_str()];
        args.extend(more);
        // A list is searched rule by rule when one is deleted: time for a thousand rules a second.
        let limit = TIME_LIMIT + Duration::from_millis(rules as u64);
        run(&self.restore, &args, Some(text), limit).map(drop)
    }
}

/// Whether a failure says that a rule was met that iptables does not understand; some versions fail then, and some do not.
fn met_foreign_rule(error: &EnforceError) -> bool {
    let EnforceError::Command { message, .. } = error else { return false };
    ["is incompatible", "nftables rule"].iter().any(|words| message.contains(words))
}
