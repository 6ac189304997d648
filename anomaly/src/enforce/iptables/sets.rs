//! Our ipset of one family: where bans go that would make the list of rules too long.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::command::{TIME_LIMIT, find, run};
use super::rules::{Family, prefix};
use crate::enforce::EnforceError;

/// Longest timeout of an entry in seconds, 24 days (`IPSET_MAX_TIMEOUT` of the kernel). The
/// reconciler sets a longer ban again when it runs out.
const MAX_TIMEOUT_SECS: u64 = 2_147_483;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl Count {
    /// Both together.
    pub const fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// The program `ipset` and how large its sets may grow.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    program: PathBuf,
    /// Most entries of one set.
    pub capacity: u32,
}

impl Sets {
    /// Finds `ipset`.
    ///
    /// # Errors
    /// [`EnforceError::Missing`] when it is not installed.
    pub fn find(capacity: u32, path: &OsStr) -> Result<Self, EnforceError> {
        Ok(Self { program: find("ipset", "ipset", path)?, capacity })
    }

    fn run(&self, args: &[&str], input: Option<&str>, entries: usize) -> Result<String, EnforceError> {
        let limit = TIME_LIMIT + Duration::from_micros(50) * u32::try_from(entries).unwrap_or(u32::MAX);
        Ok(run(&self.program, args, input, limit)?.stdout)
    }

    /// Whether the family's set is there.
    ///
    /// # Errors
    /// The command's, when it cannot be asked.
    pub fn exists(&self, family: Family) -> Result<bool, EnforceError> {
        Ok(self.run(&["list", "-n"], None, 0)?.lines().any(|name| name.trim() == family.set()))
    }

    /// Makes the family's set when it is not there.
    ///
    /// # Errors
    /// The command's.
    pub fn create(&self, family: Family) -> Result<(), EnforceError> {
        if self.exists(family)? {
            return Ok(());
        }
        let capacity = self.capacity.to_string();
        let args = ["create", family.set(), "hash:net", "family", family.inet(), "timeout", "0", "counters", "maxelem"];
        self.run(&[&args[..], &[capacity.as_str()]].concat(), None, 0).map(drop)
    }

    /// What the family's set holds, with what each entry has counted; empty when there is no set.
    ///
    /// # Errors
    /// The command's.
    pub fn read(&self, family: Family) -> Result<HashMap<IpNet, Count>, EnforceError> {
        let text = self.text(family)?;
        entries(&text)
            .map_err(|message| EnforceError::Command { command: format!("ipset save {}", family.set()), message })
    }

    /// The same as text, as `ipset save` prints it.
    ///
    /// # Errors
    /// The command's.
    pub fn text(&self, family: Family) -> Result<String, EnforceError> {
        if !self.exists(family)? {
            return Ok(String::new());
        }
        let text = self.run(&["save", family.set()], None, 0)?;
        if text.lines().any(|line| line.strip_prefix("create ").is_some_and(|set| set.starts_with(family.set()))) {
            return Ok(text);
        }
        let command = format!("ipset save {}", family.set());
        Err(EnforceError::Command { command, message: "it printed nothing of the set".into() })
    }

    /// Adds entries, or sets their time left anew; what they have counted stays.
    ///
    /// # Errors
    /// The command's; then the first entries may be in and the others not.
    pub fn add(&self, family: Family, new: &[(IpNet, Option<Duration>, Count)]) -> Result<(), EnforceError> {
        let mut text = String::new();
        for (prefix, left, count) in new {
            let Count { packets, bytes } = count;
            let timeout = timeout_secs(*left);
            let _ = writeln!(text, "add {} {prefix} timeout {timeout} packets {packets} bytes {bytes}", family.set());
        }
        self.run(&["-exist", "restore"], Some(&text), new.len()).map(drop)
    }

    /// Takes entries out; what is not in is no error.
    ///
    /// # Errors
    /// The command's.
    pub fn delete(&self, family: Family, old: &[IpNet]) -> Result<(), EnforceError> {
        let mut text = String::new();
        for prefix in old {
            let _ = writeln!(text, "del {} {prefix}", family.set());
        }
        self.run(&["-exist", "restore"], Some(&text), old.len()).map(drop)
    }

    /// Destroys the family's set; whether there was one. The kernel lets go of a set some time
    /// after the last rule that named it, so this tries for about two seconds.
    ///
    /// # Errors
    /// The command's.
    pub fn destroy(&self, family: Family) -> Result<bool, EnforceError> {
        if !self.exists(family)? {
            return Ok(false);
        }
        let mut nap = Duration::from_millis(10);
        loop {
            match self.run(&["destroy", family.set()], None, 0) {
                Ok(_) => return Ok(true),
                Err(error) if nap > Duration::from_secs(1) => return Err(error),
                Err(_) => {
                    std::thread::sleep(nap);
                    nap *= 2;
                }
            }
        }
    }
}

/// Zero is for ever, so the last moment of a ban is rounded up.
fn timeout_secs(left: Option<Duration>) -> u64 {
    left.map_or(0, |left| left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).clamp(1, MAX_TIMEOUT_SECS))
}

/// Reads the `add` lines of `ipset save`.
///
/// # Errors
/// In words, when a line is not understood: what it stands for would be taken for not there.
fn entries(text: &str) -> Result<HashMap<IpNet, Count>, String> {
    let entry = |line: &str| {
        let mut words = line.strip_prefix("add ")?.split_whitespace().skip(1);
        let prefix = prefix(words.next()?)?;
        let rest: Vec<&str> = words.collect();
        let number = |name: &str| {
            let at = rest.iter().position(|word| *word == name)?;
            rest.get(at + 1)?.parse().ok()
        };
        Some((prefix, Count { packets: number("packets").unwrap_or(0), bytes: number("bytes").unwrap_or(0) }))
    };
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("create "));
    lines.map(|line| entry(line).ok_or_else(|| format!("this line of its is not understood: {line:.200}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ipset_saves() {
        let text = "create anomaly4 hash:net family inet hashsize 1024 maxelem 1048576 timeout 0 counters\n\
                    add anomaly4 192.0.2.0/24 timeout 2147483 packets 5 bytes 6\n\
                    add anomaly4 198.51.100.4 timeout 0\n";
        let found = entries(text).expect("whole");
        assert_eq!(found.len(), 2);
        assert_eq!(found[&"192.0.2.0/24".parse().expect("a prefix")], Count { packets: 5, bytes: 6 });
        assert_eq!(found[&"198.51.100.4/32".parse().expect("a prefix")], Count::default());
        for cut in ["add anomaly4 nonsense timeout 0\n", "add anomaly4\n", "ipset: something else\n"] {
            assert!(entries(&format!("{text}{cut}")).is_err_and(|why| why.contains(cut.trim())), "{cut}");
        }
    }

    #[test]
    fn no_ban_becomes_permanent_by_rounding() {
        assert_eq!(timeout_secs(None), 0);
        assert_eq!(timeout_secs(Some(Duration::ZERO)), 1);
        assert_eq!(timeout_secs(Some(Duration::from_millis(1001))), 2);
        assert_eq!(timeout_secs(Some(Duration::MAX)), MAX_TIMEOUT_SECS);
    }
}
