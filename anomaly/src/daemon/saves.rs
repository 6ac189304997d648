//! What the hot thread and the apply thread tell each other of saves.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether state and checkpoints are to be saved. While nothing happens, there is nothing to save; and saves do not queue
/// up.
#[derive(Debug)]
pub struct Saves {
    /// There is something that the newest save did not hold, or it failed.
    due: AtomicBool,
    /// One is on its way to the disk.
    under_way: AtomicBool,
}

impl Default for Saves {
    /// The first one is due at once.
    fn default() -> Self {
        Self { due: AtomicBool::new(true), under_way: AtomicBool::new(false) }
    }
}

impl Saves {
    /// Something has happened.
    pub fn ask(&self) {
        self.due.store(true, Ordering::Release);
    }

    /// Whether one is to begin.
    pub fn are_due(&self) -> bool {
        self.due.load(Ordering::Acquire) && !self.under_way.load(Ordering::Acquire)
    }

    /// One begins, with everything that has happened so far.
    pub fn begin(&self) {
        self.under_way.store(true, Ordering::Release);
        self.due.store(false, Ordering::Release);
    }

    /// It has ended; what could not be saved is due again.
    pub fn end(&self, saved: bool) {
        if !saved {
            self.ask();
        }
        self.under_way.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_or_came_meanwhile_is_saved_next() {
        let saves = Saves::default();
        assert!(saves.are_due(), "the first one");
        saves.begin();
        saves.ask();
        assert!(!saves.are_due(), "one at a time");
        saves.end(true);
        assert!(saves.are_due(), "something came meanwhile");
        saves.begin();
        saves.end(false);
        assert!(saves.are_due(), "it failed");
        saves.begin();
        saves.end(true);
        assert!(!saves.are_due());
    }
}
