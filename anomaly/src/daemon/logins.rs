//! The clients that are never banned because they are logged in, for as long as they are; and where no record shows that,
//! the clients of sshd for the first minutes. Pure: who is there and what time it is are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use crate::time::Timestamp;

/// So many at most. On a host where customers log in by SFTP there may be more; the newest are kept.
pub const MOST: usize = 256;

/// Addresses that somebody is logged in from.
#[derive(Debug, Default)]
pub struct Logins {
    /// When the login began.
    kept: BTreeMap<IpNet, Timestamp>,
    /// Of the last look: who is here again is not a new login.
    present: Vec<IpNet>,
}

/// What a look has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Exempt from now on.
    pub added: Vec<IpNet>,
    /// No longer exempt: nobody is logged in there any more, or newer ones needed the place.
    pub ended: Vec<IpNet>,
    /// How many of `added` and `ended` had no place.
    pub crowded: usize,
}

impl Logins {
    /// Takes in who is logged in now.
    pub fn look(&mut self, now: Timestamp, mut present: Vec<IpNet>) -> Change {
        present.sort_unstable();
        present.dedup();
        let before: Vec<IpNet> = self.kept.keys().copied().collect();
        self.kept.retain(|prefix, _| present.binary_search(prefix).is_ok());
        for prefix in &present {
            // Who had to give way stays away while there is no place: else two would take turns at each look.
            if self.kept.len() < MOST || self.present.binary_search(prefix).is_err() {
                self.kept.entry(*prefix).or_insert(now);
            }
        }
        let crowded = self.kept.len().saturating_sub(MOST);
        for _ in 0..crowded {
            let oldest = self.kept.iter().min_by_key(|(_, began)| **began).map(|(prefix, _)| *prefix);
            oldest.and_then(|prefix| self.kept.remove(&prefix));
        }
        self.present = present;
        Change {
            added: self.kept.keys().filter(|prefix| before.binary_search(prefix).is_err()).copied().collect(),
            ended: before.into_iter().filter(|prefix| !self.kept.contains_key(prefix)).collect(),
            crowded,
        }
    }

    /// Those that are exempt.
    pub fn exempt(&self) -> impl Iterator<Item = IpNet> {
        self.kept.keys().copied()
    }
}

/// Clients that had a connection to sshd at the start, where no record says who is logged in. Nothing proves that they are:
/// their requests are not held against them, for as long as sshd would wait for a login, and operators may ban them.
///
/// Only those of the start: a client that could come later could also come again and again.
#[derive(Debug, Default)]
pub struct Peers {
    left: Vec<IpNet>,
    until: Duration,
}

impl Peers {
    /// These, until so long after the start.
    pub fn new(mut found: Vec<IpNet>, until: Duration) -> Self {
        found.truncate(MOST);
        Self { left: found, until }
    }

    /// Lets go who has gone, and all of them when their time is over; those that went.
    pub fn look(&mut self, since_start: Duration, connected: impl FnOnce() -> Vec<IpNet>) -> Vec<IpNet> {
        if self.left.is_empty() {
            return Vec::new();
        }
        if since_start >= self.until {
            return std::mem::take(&mut self.left);
        }
        let connected = connected();
        self.left.extract_if(.., |peer| !connected.contains(peer)).collect()
    }

    /// Those that are left.
    pub fn spared(&self) -> &[IpNet] {
        &self.left
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn host(n: usize) -> IpNet {
        IpNet::from(std::net::IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).expect("small"))))
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(1_700_000_000 + secs)
    }

    #[test]
    fn an_exemption_ends_with_the_session() {
        let mut logins = Logins::default();
        assert_eq!(logins.look(at(0), vec![host(1), host(2), host(1)]).added, [host(1), host(2)]);
        assert_eq!(logins.look(at(10), vec![host(2), host(1)]), Change::default());
        assert_eq!(logins.look(at(20), vec![host(1)]).ended, [host(2)]);
        assert_eq!(logins.exempt().collect::<Vec<_>>(), [host(1)]);
        assert_eq!(
            logins.look(at(30), vec![host(2)]),
            Change { added: vec![host(2)], ended: vec![host(1)], crowded: 0 }
        );
        assert_eq!(logins.look(at(40), vec![]).ended, [host(2)]);
    }

    #[test]
    fn a_peer_of_sshd_is_spared_for_minutes_and_never_again() {
        let secs = Duration::from_secs;
        let mut peers = Peers::new(vec![host(1), host(2)], secs(135));
        assert_eq!(peers.look(secs(10), || vec![host(1), host(2), host(3)]), []);
        assert_eq!(peers.spared(), [host(1), host(2)], "nobody joins them");
        assert_eq!(peers.look(secs(20), || vec![host(1)]), [host(2)]);
        assert_eq!(peers.look(secs(30), || vec![host(1), host(2)]), [], "nor comes back");
        assert_eq!(peers.look(secs(135), || vec![host(1), host(2)]), [host(1)]);
        assert_eq!(peers.look(secs(140), || unreachable!("nobody is left")), []);
        assert_eq!(peers.spared(), []);
    }

    #[test]
    fn their_number_is_bounded_and_the_newest_are_kept() {
        let mut logins = Logins::default();
        let everybody: Vec<IpNet> = (0..MOST).map(host).collect();
        assert_eq!(logins.look(at(0), everybody.clone()).added.len(), MOST);
        let still: Vec<IpNet> = everybody[1..].to_vec();
        assert_eq!(logins.look(at(10), still.clone()).ended, [host(0)]);
        let newer = [still.clone(), vec![host(1000)]].concat();
        assert_eq!(logins.look(at(20), newer.clone()).added, [host(1000)]);
        // Whoever logged in first gives way.
        let newest = [newer, vec![host(1001)]].concat();
        assert_eq!(
            logins.look(at(30), newest.clone()),
            Change { added: vec![host(1001)], ended: vec![host(1)], crowded: 1 }
        );
        // And nobody takes turns.
        assert_eq!(logins.look(at(40), newest.clone()), Change::default());
        assert_eq!(logins.look(at(50), newest[1..].to_vec()), Change::default());
        assert_eq!(logins.exempt().count(), MOST);
        // More than that at the first look.
        let mut crowd = Logins::default();
        let change = crowd.look(at(0), (0..MOST + 44).map(host).collect());
        assert_eq!((change.added.len(), change.crowded), (MOST, 44));
    }
}
