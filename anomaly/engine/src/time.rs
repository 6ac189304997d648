//! Points in time, as integers that nobody here can read off a clock.
//!
//! There is deliberately no `now()`: only `daemon/clock.rs` reads the clock, everyone
//! else is handed a [`Timestamp`].

use std::fmt;
use std::time::Duration;

/// A point in time: milliseconds since the Unix epoch, UTC, leap seconds
/// ignored.
///
/// Arithmetic saturates, so that no log line can overflow it. The range that
/// prints as RFC 3339 is the years 0000 to 9999; values beyond are clamped
/// when they are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self(0);
    /// The earliest value; older than every log line.
    pub const MIN: Self = Self(i64::MIN);
    /// The latest value.
    pub const MAX: Self = Self(i64::MAX);

    /// From milliseconds since the Unix epoch.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// From seconds since the Unix epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Seconds since the Unix epoch, for JSON that charts read.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// `self + duration`, saturating.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis().try_into().unwrap_or(i64::MAX)))
    }

    /// `self - duration`, saturating.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_millis().try_into().unwrap_or(i64::MAX)))
    }

    /// How much later `self` is than `earlier`; zero when it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    /// Reads an ISO 8601 / RFC 3339 stamp with a zone (`Z`, `+01:00`, `+0100`), as
    /// Nginx's `$time_iso8601` writes it. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let stamp: jiff::Timestamp = text.parse().ok()?;
        Some(Self(stamp.as_millisecond()))
    }
}

/// RFC 3339 in UTC; the fraction only when there is one: `2026-04-27T09:25:51Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.clamp(jiff::Timestamp::MIN.as_millisecond(), jiff::Timestamp::MAX.as_millisecond());
        match jiff::Timestamp::from_millisecond(ms) {
            Ok(stamp) => write!(f, "{stamp}"),
            Err(_) => f.write_str("1970-01-01T00:00:00Z"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_reads_rfc_3339() {
        let t = Timestamp::parse("2026-04-27T10:25:51+01:00").expect("a valid stamp");
        assert_eq!(t.to_string(), "2026-04-27T09:25:51Z");
        assert_eq!(Timestamp::from_ms(t.as_ms() + 250).to_string(), "2026-04-27T09:25:51.25Z");
        assert_eq!(Timestamp::parse("2026-04-27T10:25:51+0100"), Some(t));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[test]
    fn saturates_at_both_ends() {
        assert_eq!(Timestamp::from_ms(i64::MAX).plus(Duration::MAX).as_ms(), i64::MAX);
        assert_eq!(Timestamp::MIN.minus(Duration::from_secs(1)), Timestamp::MIN);
        assert_eq!(Timestamp::MIN.since(Timestamp::EPOCH), Duration::ZERO);
        assert!(!Timestamp::from_ms(i64::MAX).to_string().is_empty());
    }

    #[test]
    fn seconds_round_down_before_the_epoch_too() {
        assert_eq!(Timestamp::from_ms(-1).as_secs(), -1);
        assert_eq!(Timestamp::from_ms(1999).as_secs(), 1);
    }
}
