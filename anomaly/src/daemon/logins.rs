//! For whom the never-ban list is kept while they are logged in, and a day longer. Pure: who is logged in and what time it is
//! are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use crate::time::Timestamp;

/// How long an address stays exempt after somebody was last seen logged in from there: until the next working day.
const KEPT: Duration = Duration::from_secs(86_400);
/// So many at most. On a host where customers log in by SFTP there may be more; the newest are kept.
pub const MOST: usize = 256;

/// Addresses that somebody is or was logged in from.
#[derive(Debug, Default)]
pub struct Logins {
    /// When somebody was last seen there, and when the login began.
    kept: BTreeMap<IpNet, (Timestamp, Timestamp)>,
    /// Of the last look: who is here again is not a new login.
    present: Vec<IpNet>,
}

/// What a look has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Exempt from now on.
    pub added: Vec<IpNet>,
    /// No longer exempt: nobody was seen there for a day, or newer ones needed the place.
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
        for prefix in &present {
            if let Some((last, _)) = self.kept.get_mut(prefix) {
                *last = now;
            }
        }
        self.kept.retain(|_, (last, _)| now.since(*last) < KEPT);
        for prefix in &present {
            // Who had to give way stays away while there is no place: else two would take turns at each look.
            if self.kept.len() < MOST || self.present.binary_search(prefix).is_err() {
                self.kept.entry(*prefix).or_insert((now, now));
            }
        }
        let crowded = self.kept.len().saturating_sub(MOST);
        for _ in 0..crowded {
            let oldest = self.kept.iter().min_by_key(|(_, times)| **times).map(|(prefix, _)| *prefix);
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
    fn an_exemption_ends_a_day_after_the_last_session() {
        let mut logins = Logins::default();
        assert_eq!(logins.look(at(0), vec![host(1), host(2), host(1)]).added, [host(1), host(2)]);
        assert_eq!(logins.look(at(3600), vec![host(1)]), Change::default());
        assert_eq!(logins.look(at(86_399), vec![]), Change::default());
        assert_eq!(logins.look(at(86_400), vec![]).ended, [host(2)]);
        assert_eq!(logins.exempt().collect::<Vec<_>>(), [host(1)]);
        assert_eq!(
            logins.look(at(90_000), vec![host(2)]),
            Change { added: vec![host(2)], ended: vec![host(1)], crowded: 0 }
        );
    }

    #[test]
    fn their_number_is_bounded_and_the_newest_are_kept() {
        let mut logins = Logins::default();
        let everybody: Vec<IpNet> = (0..MOST).map(host).collect();
        assert_eq!(logins.look(at(0), everybody.clone()).added.len(), MOST);
        let still: Vec<IpNet> = everybody[1..].to_vec();
        assert_eq!(logins.look(at(10), still.clone()), Change::default());
        // Whoever has gone gives way first, then whoever logged in first.
        let newer = [still.clone(), vec![host(1000)]].concat();
        assert_eq!(
            logins.look(at(20), newer.clone()),
            Change { added: vec![host(1000)], ended: vec![host(0)], crowded: 1 }
        );
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
