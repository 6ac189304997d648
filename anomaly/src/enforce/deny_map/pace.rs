//! How often Nginx is reloaded. Pure: the time is an argument.
//!
//! Each reload starts a new generation of workers, and the old one stays until its last client has gone. So the pause
//! doubles with each reload for which the next change did not let us wait.

use std::time::Duration;

/// Between two reloads after a quiet time.
pub const SHORTEST: Duration = Duration::from_secs(2);
/// Between two reloads while changes keep coming.
pub const LONGEST: Duration = Duration::from_secs(60);

/// When the next reload may be.
#[derive(Debug)]
pub struct Pace {
    last: Option<Duration>,
    pause: Duration,
}

impl Pace {
    pub const fn new() -> Self {
        Self { last: None, pause: SHORTEST }
    }

    /// How long a reload must still wait.
    pub fn wait(&self, now: Duration) -> Duration {
        self.last.map_or(Duration::ZERO, |last| (last + self.pause).saturating_sub(now))
    }

    /// There was one. It was quiet before where a whole pause more has passed than it had to wait.
    pub fn reloaded(&mut self, now: Duration) {
        let busy = self.last.is_some_and(|last| now < last + 2 * self.pause);
        self.pause = if busy { (2 * self.pause).min(LONGEST) } else { SHORTEST };
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_pause_doubles_while_changes_keep_coming_and_is_short_again_after_quiet() {
        let (mut pace, mut reloads) = (Pace::new(), Vec::new());
        for now in (0..400).map(secs) {
            if pace.wait(now).is_zero() {
                pace.reloaded(now);
                reloads.push(now.as_secs());
            }
        }
        assert_eq!(reloads, [0, 2, 6, 14, 30, 62, 122, 182, 242, 302, 362]);
        assert_eq!(pace.wait(secs(370)), secs(52));
        pace.reloaded(secs(362 + 120));
        assert_eq!(pace.wait(secs(482)), SHORTEST, "a whole pause went by in which nothing had to wait");
        pace.reloaded(secs(484));
        assert_eq!(pace.wait(secs(484)), secs(4));
    }
}
