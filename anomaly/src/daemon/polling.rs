//! The poll interval of the hot thread while a log is being written.
//!
//! Usually the interval makes no difference. But while a fast client is half-way to a limit, its next requests may ban it, and
//! a shorter interval then spares the site some of them.

use std::time::Duration;

/// The poll interval while lines keep coming; no line causes a wake-up of its own. At 10,000 lines/s that is one wake-up for 320
/// lines. Cold caches make a wake-up as expensive as 100 lines or more.
const USUAL: Duration = Duration::from_millis(32);
/// The same while polling fast. Only a fast client can send several requests within one poll interval, so only fast clients cause it.
const SHORT: Duration = Duration::from_micros(150);
/// The same while polling fast without a ban for [`HOPE`]: the client stays below the limit, which may last.
const LONGER: Duration = Duration::from_micros(500);
/// The pause after a ban: another thread enforces it, and may have to share this processor.
const REST: Duration = Duration::from_millis(1);
/// For this long after its beginning or a ban, fast polling uses [`SHORT`], which costs twice as much as the longer one.
const HOPE: Duration = Duration::from_secs(2);
/// Fast polling lasts this long after the newest request of a fast client that is half-way to a limit.
const LASTS: Duration = Duration::from_millis(250);
/// A log without a new line for this long, and for at least two polls, is quiet.
const QUIET: Duration = Duration::from_millis(1);

/// Whether a client may be about to be banned. All times are since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Polling {
    /// When it began, or last came true.
    since: Duration,
    until: Duration,
    /// When the rest after a ban is over.
    rested: Duration,
}

impl Polling {
    /// A fast client that is half-way to a limit has made a request.
    pub fn renew(&mut self, at: Duration) {
        if at >= self.until {
            self.since = at;
        }
        self.until = at + LASTS;
    }

    /// Somebody was banned.
    pub fn came_true(&mut self, at: Duration) {
        self.since = at;
        self.rested = at + REST;
    }

    /// How long to sleep until the next look.
    pub fn nap(&self, at: Duration) -> Duration {
        if at >= self.until {
            USUAL
        } else if at < self.rested {
            self.rested - at
        } else if at < self.since + HOPE {
            SHORT
        } else {
            LONGER
        }
    }

    /// After how many looks without anything new a log is quiet.
    pub fn empty_looks(&self, at: Duration) -> u8 {
        QUIET.div_duration_f32(self.nap(at)).ceil().max(2.0) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_naps_end_with_the_hope_that_they_are_worth_it() {
        let ms = Duration::from_millis;
        let mut polling = Polling::default();
        assert_eq!((polling.nap(ms(0)), polling.empty_looks(ms(0))), (USUAL, 2));
        // A client that stays below its limit.
        for at in 1000..5000 {
            polling.renew(ms(at));
            let nap = if at < 3000 { SHORT } else { LONGER };
            assert_eq!(polling.nap(ms(at)), nap, "{at}");
        }
        assert_eq!((polling.empty_looks(ms(1100)), polling.empty_looks(ms(5000))), (7, 2));
        // Somebody else does not.
        polling.came_true(ms(5000));
        assert_eq!(polling.nap(ms(5000)), REST);
        assert_eq!(polling.nap(ms(5001)), SHORT);
        assert_eq!(polling.nap(ms(5249)), USUAL);
        // Fast polling begins anew.
        polling.renew(ms(9000));
        assert_eq!(polling.nap(ms(9001)), SHORT);
    }
}
