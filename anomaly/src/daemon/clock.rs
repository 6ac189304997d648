//! The only place that reads a clock.

use std::time::{Duration, Instant};

use crate::time::Timestamp;

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(at) = FIXED.get() {
        return at;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
thread_local! {
    static FIXED: std::cell::Cell<Option<Timestamp>> = const { std::cell::Cell::new(None) };
}

/// Stops this thread's wall clock at a moment, for tests of what is written and sent.
#[cfg(test)]
pub(super) fn fix(at: Timestamp) {
    FIXED.set(Some(at));
}

/// A clock that never steps, for spans: time since the first call of this closure's maker.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
pub fn stopwatch() -> impl Fn() -> Duration {
    let start = Instant::now();
    move || start.elapsed()
}
