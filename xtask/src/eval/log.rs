//! A trace's lines, as the references and the plot need them. Far slower and laxer than the daemon's parser, on
//! purpose: a second opinion.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// One request.
pub struct Line {
    /// Client address as written.
    pub ip: String,
    /// Seconds since the epoch.
    pub time: i64,
    /// With query.
    pub path: String,
    /// HTTP status; 0 when unreadable.
    pub status: u16,
}

/// Reads a trace line by line; lines that are no requests are skipped.
///
/// # Errors
/// When the file cannot be read, or `each` fails.
pub fn read(path: &Path, mut each: impl FnMut(Line) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        let Ok(row) = serde_json::from_str::<Value>(&String::from_utf8_lossy(&bytes)) else { continue };
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let Some(time) = parse_time(text("timestamp")) else { continue };
        let status = text("status").parse().unwrap_or(0);
        each(Line { ip: text("source_ip").into(), time, path: text("path").into(), status })?;
    }
}

/// Seconds of an ISO 8601 stamp with a zone (`2026-04-27T10:25:51+01:00` or `Z`).
fn parse_time(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (y, m, d) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let seconds = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    let offset = match text.get(19..20)? {
        "Z" => 0,
        sign => (number(20, 22)? * 3600 + number(23, 25)? * 60) * if sign == "-" { -1 } else { 1 },
    };
    // Days since the epoch, as in Howard Hinnant's "chrono-compatible low-level date algorithms".
    let (y, m) = if m <= 2 { (y - 1, m + 9) } else { (y, m - 3) };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + d - 1 - 719_468;
    Some(days * 86_400 + seconds - offset)
}

/// An ISO 8601 stamp in UTC.
pub fn print_time(time: i64) -> String {
    let (days, seconds) = (time.div_euclid(86_400) + 719_468, time.rem_euclid(86_400));
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!(
        "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        year + era * 400 + carry,
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_both_ways() {
        for (text, utc) in [
            ("2026-04-27T10:25:51+01:00", "2026-04-27T09:25:51Z"),
            ("2024-02-29T23:59:59-05:00", "2024-03-01T04:59:59Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse_time(text).map(print_time).as_deref(), Some(utc));
        }
        assert_eq!(parse_time("yesterday"), None);
    }
}
