//! When state and checkpoints are saved, and what the hot thread and the apply thread tell each other of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often state and checkpoints are saved: what a crash makes us read again.
const EVERY: Duration = Duration::from_secs(5);
/// The same while a backlog is read: who is killed every few seconds must get on with it.
const EVERY_BEHIND: Duration = Duration::from_secs(1);
/// No more bytes a second than this are saved on average: the state of 20,000 clients is 2 MB.
const BYTES: u64 = 64 << 10;
/// But that often in any case, and at least once in the shortest ban: a save then knows of each ban, if only that it has
/// ended, and what is read again after a crash leads to no second one.
const LONGEST: Duration = Duration::from_secs(60);

/// Whether something is to be saved. While nothing happens, there is nothing to save; and saves do not queue up.
#[derive(Debug)]
pub struct Saves {
    /// There is something that the newest save did not hold, or it failed.
    due: AtomicBool,
    /// One is on its way to the disk.
    under_way: AtomicBool,
    /// The store has failed since the newest save that went well.
    failed: AtomicBool,
}

impl Default for Saves {
    /// The first one is due at once.
    fn default() -> Self {
        Self { due: AtomicBool::new(true), under_way: AtomicBool::new(false), failed: AtomicBool::new(false) }
    }
}

impl Saves {
    /// Something has happened.
    pub fn ask(&self) {
        self.due.store(true, Ordering::Release);
    }

    /// Something could not be written: it takes a save to know that all is well again.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.ask();
    }

    /// One begins, with everything that has happened so far.
    pub fn begin(&self) {
        self.under_way.store(true, Ordering::Release);
        self.due.store(false, Ordering::Release);
    }

    /// It has ended; what could not be saved is due again.
    pub fn end(&self, saved: bool) {
        self.failed.store(false, Ordering::Release);
        if !saved {
            self.fail();
        }
        self.under_way.store(false, Ordering::Release);
    }
}

/// When the next save may begin, in the time of the hot thread.
#[derive(Debug, Default)]
pub struct Times {
    next: Duration,
    /// The same where the newest one failed.
    retry: Duration,
}

impl Times {
    /// Whether one is to begin at `at`.
    pub fn have_come(&self, at: Duration, saves: &Saves) -> bool {
        let from = if saves.failed.load(Ordering::Acquire) { self.retry } else { self.next };
        at >= from && saves.due.load(Ordering::Acquire) && !saves.under_way.load(Ordering::Acquire)
    }

    /// The next one need not wait.
    pub fn hurry(&mut self, at: Duration) {
        self.next = at;
    }

    /// One of so many bytes was handed over at `at`, which took `took`. `shortest` is the shortest ban.
    pub fn saved(&mut self, at: Duration, took: Duration, bytes: u64, caught_up: bool, shortest: Option<Duration>) {
        // Saving may cost at most a twentieth of the time, however large the state.
        let every = if caught_up { EVERY } else { EVERY_BEHIND };
        self.retry = at + every.max(took * 20);
        let longest = shortest.map_or(LONGEST, |shortest| shortest.min(LONGEST));
        let by_bytes = if caught_up { Duration::from_secs(bytes / BYTES).min(longest) } else { Duration::ZERO };
        self.next = self.retry.max(at + by_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn what_failed_or_came_meanwhile_is_saved_next() {
        let (saves, times) = (Saves::default(), Times::default());
        let are_due = || times.have_come(secs(1), &saves);
        assert!(are_due(), "the first one");
        saves.begin();
        saves.ask();
        assert!(!are_due(), "one at a time");
        saves.end(true);
        assert!(are_due(), "something came meanwhile");
        saves.begin();
        saves.end(false);
        assert!(are_due(), "it failed");
        saves.begin();
        saves.end(true);
        assert!(!are_due());
        saves.fail();
        assert!(are_due(), "another write failed");
    }

    #[test]
    fn a_large_state_is_saved_less_often_but_tried_again_as_soon_and_never_longer_than_a_ban_apart() {
        let saves = Saves::default();
        let next = |bytes, caught_up, took, shortest| {
            let mut times = Times::default();
            times.saved(secs(100), took, bytes, caught_up, shortest);
            (0..400).find(|after| times.have_come(secs(100 + after), &saves)).expect("some time")
        };
        let ten_minutes = Some(secs(600));
        assert_eq!(next(1 << 10, true, Duration::ZERO, ten_minutes), 5);
        assert_eq!(next(2 << 20, true, Duration::ZERO, ten_minutes), 32);
        assert_eq!(next(100 << 20, true, Duration::ZERO, ten_minutes), 60);
        assert_eq!(next(100 << 20, true, Duration::ZERO, Some(secs(20))), 20);
        assert_eq!(next(100 << 20, true, secs(1), None), 60);
        assert_eq!(next(100 << 20, false, Duration::ZERO, None), 1);
        assert_eq!(next(0, true, secs(10), None), 200);
        saves.fail();
        assert_eq!(next(100 << 20, true, Duration::ZERO, None), 5);
    }
}
