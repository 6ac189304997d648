//! All signals about one client in one table: what is counted, what it is called, where its floor lies.
//!
//! Each signal is a leaky bucket in thousandths of a point: `floor` is its size, `leak` what a second takes out. A bucket judges
//! all spans at once in constant memory: over `t` seconds it allows `floor + leak * t`, so 10 s, 60 s, 10 min and 1 h are points
//! of one line. What has been learned may raise the size (see `ordinary`), never lower it.

use super::contract::Signal;

/// One point, in the unit of the levels.
pub const POINT: i32 = 1000;
/// Number of [`Bucket`]s. Their order is that of stored state: a new one is appended.
pub const SIGNALS: usize = 7;

/// A bucket of a client, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Bucket {
    /// The same answers again and again.
    Same,
    /// Paths that the site does not have.
    Scan,
    /// Well-known exploit paths, whatever the answer.
    Exploit,
    /// Log-ins, forms.
    Guess,
    /// Protected resources without success.
    Denied,
    /// Bytes of the same large answers; a point is a megabyte.
    Bytes,
    /// Minutes in a row full of pages.
    Scrape,
}

impl Bucket {
    /// Its place in every list of levels.
    pub const fn place(self) -> usize {
        self as usize
    }
}

/// What is known of a signal beforehand.
#[derive(Debug)]
pub struct Row {
    /// Its name for everybody else.
    pub signal: Signal,
    /// What a client may do at once, in thousandths of a point.
    pub floor: i32,
    /// What a second gives back.
    pub leak: i32,
    /// On the word of few networks, learning raises the floor to at most so many tenths of it.
    pub cap_tenths: i32,
    /// It grows with errors: the tightened thresholds hold.
    pub tightened: bool,
}

const fn row(signal: Signal, floor: i32, leak: i32, cap_tenths: i32, tightened: bool) -> Row {
    Row { signal, floor: floor * POINT, leak, cap_tenths, tightened }
}

/// The table, in the order of the buckets.
pub static TABLE: [Row; SIGNALS] = [
    // 4.5 a second and 80 at once were the first version's limit of page requests, which one of 88,000 honest clients of five
    // logs came close to; 100 since a school class of 30 behind one address reached 81.
    row(Signal::SameAnswers, 100, 4500, 30, false),
    // CrowdSec's http-probing has ten distinct paths and gives one back every ten seconds; with 0.08 a second, one dead link
    // that a page asks for every ten seconds never bans.
    row(Signal::UnknownPaths, 9, 80, 20, true),
    // Nobody asks for seven of these by accident; and they hardly fade.
    row(Signal::ExploitPaths, 7, 20, 10, true),
    // More than a dozen log-ins a minute, three a minute for ever: an office behind one address in the morning.
    row(Signal::RepeatedLogins, 12, 50, 30, false),
    // Basic authentication guessed once a second is found within 40 s; a tab that polls 401 every 5 s never is.
    row(Signal::DeniedRequests, 18, 150, 20, true),
    // In megabytes: a quarter of a gigabyte of the same answers, and then 250 kB a second.
    row(Signal::RepeatedMegabytes, 250, 250, 30, false),
    // Minutes in a row with 75 new pages; any other minute takes two back.
    row(Signal::FullMinutes, 22, 0, 20, false),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_is_at_its_place() {
        let named = [
            (Bucket::Same, Signal::SameAnswers),
            (Bucket::Scan, Signal::UnknownPaths),
            (Bucket::Exploit, Signal::ExploitPaths),
            (Bucket::Guess, Signal::RepeatedLogins),
            (Bucket::Denied, Signal::DeniedRequests),
            (Bucket::Bytes, Signal::RepeatedMegabytes),
            (Bucket::Scrape, Signal::FullMinutes),
        ];
        for (place, (bucket, signal)) in named.into_iter().enumerate() {
            assert_eq!((bucket.place(), TABLE[place].signal), (place, signal));
        }
        assert!(TABLE.iter().all(|row| row.floor > 0 && row.leak >= 0 && row.cap_tenths >= 10));
    }
}
