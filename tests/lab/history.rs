//! Past traffic for a log: what a quiet site's clients did before the lab was made.
//!
//! Regular on purpose (no chance involved): thirty clients, each with a page and its assets now and
//! then, a few of them busy; no errors to speak of.

use super::clock::iso8601;

/// Log lines of `minutes` minutes of quiet traffic that end `gap_secs` before `now` (seconds since the epoch).
pub fn quiet(now: u64, minutes: u64, gap_secs: u64) -> String {
    let mut text = String::new();
    let end = now - gap_secs;
    for second in (end - 60 * minutes)..end {
        for client in 0..30u64 {
            // Each client comes for some minutes of every quarter of an hour.
            let minute = second / 60;
            if (minute + client) % 15 > 3 + client % 5 {
                continue;
            }
            // Its own second of every 7 to 20.
            let pause = 7 + client % 14;
            if second % pause == client % pause {
                text += &line(second, &visitor(client), if second % 3 == 0 { "/" } else { "/app.css" }, 200);
            }
        }
        if second % 97 == 0 {
            text += &line(second, &visitor(second % 30), "/favicon.ico", 404);
        }
    }
    text
}

fn visitor(number: u64) -> String {
    format!("198.51.100.{}", 100 + number)
}

/// One line with its newline, in the format of `nginx/` with the six keys that are needed.
pub fn line(epoch_secs: u64, client: &str, path: &str, status: u16) -> String {
    let stamp = iso8601(epoch_secs);
    format!(
        r#"{{"source_ip":"{client}","timestamp":"{stamp}","method":"GET","path":"{path}","status":"{status}","response_size":"512"}}"#
    ) + "\n"
}
