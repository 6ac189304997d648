//! Real time, for waiting: a lab runs on the real kernel's clock. Deliberately no bare sleeps: one
//! waits for a condition, with a deadline.
#![expect(clippy::disallowed_methods, reason = "a lab waits for real processes, on the real clock")]

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};

/// Monotonic now.
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock seconds since the epoch.
pub fn epoch_secs() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Asks `probe` every few milliseconds until it has an answer.
///
/// # Errors
/// When there is none within `patience`; names `what` was waited for.
pub fn wait_for<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let start = now();
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks `holds` until it is true.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, patience, || holds().then_some(()))
}

/// `2026-04-27T09:25:51+00:00`, as Nginx writes it in UTC.
pub fn iso8601(epoch_secs: u64) -> String {
    let (days, second) = (epoch_secs / 86_400, epoch_secs % 86_400);
    // Days to a civil date by 400-year eras that start on 1 March (Howard Hinnant, "chrono-compatible
    // low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}+00:00", second / 3600, second / 60 % 60, second % 60)
}
