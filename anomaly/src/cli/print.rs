//! How answers look to people: tables, with colour on a terminal only.
//!
//! Everything printed comes from the daemon's JSON, so `--json` shows the same figures.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use anomaly::doctor::{Check, Level};
use anomaly::report::inert;
use anomaly::time::Timestamp;
use rustix::termios::tcgetwinsize;
use serde_json::Value;

/// Writes text for people to standard output.
pub struct Printer {
    colour: bool,
    /// Columns of the terminal; none where it is no terminal, and nothing is cut.
    width: Option<usize>,
}

/// What a table's last column may always have, however narrow the terminal is.
const LEAST_LAST: usize = 16;

/// What a piece of text says of itself by its colour.
#[derive(Clone, Copy, PartialEq)]
pub enum Tone {
    /// No colour.
    Plain,
    /// Headings and labels.
    Dim,
    /// As it should be.
    Good,
    /// Look at this.
    Warn,
    /// Act.
    Bad,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// A cell of a table.
pub type Cell = (String, Tone);

/// A plain cell.
pub fn cell(text: impl Into<String>) -> Cell {
    (text.into(), Tone::Plain)
}

impl Printer {
    /// Colour when standard output is a terminal and `NO_COLOR` is not set (or empty: no-color.org).
    pub fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| terminal && size.ws_col > 0);
        Self { colour, width: size.map(|size| size.ws_col.into()) }
    }

    fn paint(&self, text: &str, tone: Tone) -> String {
        if self.colour && tone != Tone::Plain { format!("{}{text}\x1b[0m", tone.code()) } else { text.to_owned() }
    }

    /// A table; columns whose heading starts with `>` are aligned right. The last column is not padded, and cut where
    /// the terminal ends.
    pub fn table(&self, headings: &[&str], rows: &[Vec<Cell>]) -> String {
        let plain: Vec<&str> = headings.iter().map(|h| h.trim_start_matches('>')).collect();
        let mut widths: Vec<usize> = plain.iter().map(|h| h.chars().count()).collect();
        for row in rows {
            for (width, (text, _)) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.chars().count());
            }
        }
        let before: usize = widths.iter().rev().skip(1).map(|width| width + 2).sum();
        let room = self.width.map(|width| width.saturating_sub(before).max(LEAST_LAST));
        let mut out = String::new();
        let mut line = |cells: Vec<(&str, Tone)>| {
            for (i, (text, tone)) in cells.iter().enumerate() {
                let pad = widths[i].saturating_sub(text.chars().count());
                let last = i + 1 == cells.len();
                let painted = match room.filter(|room| last && text.chars().count() > *room) {
                    Some(room) => self.paint(&format!("{}…", text.chars().take(room - 1).collect::<String>()), *tone),
                    None => self.paint(text, *tone),
                };
                if headings[i].starts_with('>') {
                    let _ = write!(out, "{:pad$}{painted}", "");
                } else if last {
                    out.push_str(&painted);
                } else {
                    let _ = write!(out, "{painted}{:pad$}", "");
                }
                out.push_str(if last { "\n" } else { "  " });
            }
        };
        line(plain.iter().map(|h| (*h, Tone::Dim)).collect());
        for row in rows {
            line(row.iter().map(|(t, tone)| (t.as_str(), *tone)).collect());
        }
        out
    }

    /// `anomaly status`.
    pub fn status(&self, status: &Value) -> String {
        let mut out = String::new();
        if status["unhealthy"].is_string() {
            let line = format!("! unhealthy: {}", text(&status["unhealthy"]));
            let _ = writeln!(out, "{}", self.paint(&line, Tone::Bad));
        }
        let degraded = status["degraded"].as_array().map(Vec::as_slice).unwrap_or_default();
        for row in degraded {
            let line = format!("! {}: {} (since {})", text(&row["what"]), text(&row["reason"]), text(&row["since"]));
            let _ = writeln!(out, "{}", self.paint(&line, Tone::Bad));
        }
        let mode = text(&status["xdp_mode"]);
        let enforcer =
            if mode.is_empty() { text(&status["enforcer"]) } else { format!("{} ({mode})", text(&status["enforcer"])) };
        let interfaces: Vec<String> = (status["interfaces"].as_array().into_iter().flatten())
            .map(|i| match text(&i["reason"]) {
                reason if reason.is_empty() => format!("{} {}", text(&i["name"]), text(&i["mode"])),
                reason => format!("{} {} — {reason}", text(&i["name"]), text(&i["mode"])),
            })
            .collect();
        let ratio = number(&status["enforcement_ratio"]);
        let warmup = number(&status["warmup_left_secs"]);
        let baseline = &status["baseline"];
        let mut line = |label: &str, value: String, tone: Tone| {
            let _ = writeln!(out, "{}{}", self.paint(&format!("{label:<13}"), Tone::Dim), self.paint(&value, tone));
        };
        line(
            "version",
            format!("{}, up {}", text(&status["version"]), span(number(&status["uptime_secs"]))),
            Tone::Plain,
        );
        if text(&status["enforcer"]) == "dry-run" {
            line("enforcer", "dry-run: decides and notifies, drops nothing".into(), Tone::Warn);
        } else {
            let tone = if ratio >= 1.0 { Tone::Good } else { Tone::Bad };
            line("enforcer", format!("{enforcer}, {:.1} % of the bans enforced", ratio * 100.0), tone);
        }
        for interface in interfaces {
            line("interface", interface, Tone::Plain);
        }
        line(
            "bans",
            format!("{} active, {} packets dropped", text(&status["active_bans"]), text(&status["dropped_packets"])),
            Tone::Plain,
        );
        let mut records = format!(
            "{} records, {} rejected, {} late, {} of banned clients",
            text(&status["records"]),
            text(&status["rejected"]),
            text(&status["late"]),
            text(&status["blocked"])
        );
        let behind = number(&status["backlog_bytes"]);
        if behind > 0.0 {
            let _ = write!(records, ", {:.1} MiB not read yet", behind / f64::from(1 << 20));
        }
        line("log", records, Tone::Plain);
        line(
            "rate",
            format!(
                "{:.2} req/s, {:.1} % errors",
                number(&status["global_rate"]),
                100.0 * number(&status["error_ratio"])
            ),
            Tone::Plain,
        );
        // There is none before something has been learned.
        let limit = Some(number(&baseline["limit"])).filter(|limit| *limit > 0.0);
        let normal = format!(
            "{:.2} ± {:.2} req/s ({}), {}; unknown clients up to {:.1}",
            number(&baseline["mean"]),
            number(&baseline["stddev"]),
            text(&baseline["source"]),
            limit.map_or_else(|| "no limit yet".to_owned(), |limit| format!("limit {limit:.1}")),
            number(&status["ip_limit"])
        );
        line("baseline", normal, Tone::Plain);
        if warmup > 0.0 {
            let when = if status["log_time"].is_null() { "from the first request on" } else { "more of log time" };
            line("warming up", format!("{} {when}; until then only the hard limit bans", span(warmup)), Tone::Warn);
        }
        let load = format!(
            "{:.1} % of a core, {:.1} MiB",
            100.0 * number(&status["cpu"]),
            number(&status["memory_bytes"]) / f64::from(1 << 20)
        );
        line("load", load, Tone::Plain);
        out
    }

    /// `anomaly bans`, with what is left of each at `now`.
    pub fn bans(&self, bans: &Value, now: Timestamp) -> String {
        let rows: Vec<Vec<Cell>> = (bans.as_array().into_iter().flatten())
            .map(|ban| {
                let left = left(&ban["until"], now);
                vec![
                    cell(text(&ban["ip"])),
                    cell(text(&ban["since"])),
                    left.map_or_else(|| ("permanent".into(), Tone::Warn), cell),
                    cell(text(&ban["offence"])),
                    cell(text(&ban["packets"])),
                    cell(text(&ban["origin"])),
                    cell(text(&ban["reason"])),
                ]
            })
            .collect();
        if rows.is_empty() {
            return "Nobody is banned.\n".into();
        }
        let mut shown = self.table(&["IP", "SINCE", ">ENDS IN", ">OFFENCE", ">PACKETS", "ORIGIN", "REASON"], &rows);
        if bans.as_array().is_some_and(|bans| bans.iter().any(dry)) {
            let _ = writeln!(shown, "\n{}", self.paint("dry-run: decided, but not dropped", Tone::Warn));
        }
        shown
    }

    /// `anomaly top`.
    pub fn top(&self, top: &Value) -> String {
        let rows: Vec<Vec<Cell>> = (top.as_array().into_iter().flatten())
            .map(|client| {
                let (rate, limit) = (number(&client["rate"]), number(&client["limit"]));
                let banned = client["banned"].as_bool().unwrap_or(false);
                let tone = if banned {
                    Tone::Bad
                } else if rate > 0.7 * limit {
                    Tone::Warn
                } else {
                    Tone::Plain
                };
                vec![
                    (text(&client["ip"]), tone),
                    cell(format!("{rate:.2}")),
                    cell(format!("{limit:.2}")),
                    cell(format!("{:.1}", number(&client["z_score"]))),
                    cell(format!("{:.1} %", 100.0 * number(&client["error_ratio"]))),
                    cell(format!("{:.1} %", 100.0 * number(&client["share"]))),
                    if banned { ("banned".into(), Tone::Bad) } else { cell("") },
                ]
            })
            .collect();
        if rows.is_empty() {
            return "No requests in the window.\n".into();
        }
        self.table(&["IP", ">REQ/S", ">LIMIT", ">Z", ">ERRORS", ">SHARE", ""], &rows)
    }

    /// `anomaly doctor`: a line a check, the next step below it, and at the end how many need one.
    pub fn checks(&self, checks: &[Check]) -> String {
        let mut out = String::new();
        let tone = |level| match level {
            Level::Ok => Tone::Good,
            Level::Warn => Tone::Warn,
            Level::Fail => Tone::Bad,
        };
        for check in checks {
            let status = self.paint(&format!("{:<5}", check.status.as_str()), tone(check.status));
            let _ = writeln!(out, "{status} {:<13} {}", check.check, inert(check.detail.as_bytes()));
            if let Some(next) = &check.next {
                let next = format!("{:<19} → {}", "", inert(next.as_bytes()));
                let _ = writeln!(out, "{}", self.paint(&next, Tone::Dim));
            }
        }
        let count = |level| checks.iter().filter(|check| check.status == level).count();
        let (failed, warned) = (count(Level::Fail), count(Level::Warn));
        let worst = checks.iter().map(|check| check.status).max().unwrap_or(Level::Ok);
        let sum = match (failed, warned) {
            (0, 0) => "No problems found.".to_owned(),
            (0, n) => format!("Works; {n} to look at."),
            (n, m) => format!("{n} failed, {m} to look at."),
        };
        let _ = writeln!(out, "\n{}", self.paint(&sum, tone(worst)));
        out
    }

    /// `anomaly explain`, as things are at `now`.
    pub fn explain(&self, card: &Value, now: Timestamp) -> String {
        let mut out = String::new();
        let ip = text(&card["ip"]);
        let active = card["active"].as_array().map(Vec::as_slice).unwrap_or_default();
        for ban in active {
            let ends = left(&ban["until"], now)
                .map_or_else(|| "until it is lifted".to_owned(), |l| format!("for another {l}"));
            let by = if ban["ip"] == card["ip"] { String::new() } else { format!(" as part of {}", text(&ban["ip"])) };
            let but = if dry(ban) { " (dry-run: not dropped)" } else { "" };
            let _ = writeln!(out, "{}", self.paint(&format!("{ip} is banned{by} {ends}{but}."), Tone::Bad));
        }
        if active.is_empty() {
            let _ = writeln!(out, "{}", self.paint(&format!("{ip} is not banned."), Tone::Good));
        }
        let inside = card["inside"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !inside.is_empty() {
            let title = format!("Inside it {} banned:", if inside.len() == 1 { "is" } else { "are" });
            let _ = writeln!(out, "{}", self.paint(&title, Tone::Warn));
        }
        for ban in inside {
            let ends = left(&ban["until"], now).map_or_else(|| "permanent".to_owned(), |l| format!("for another {l}"));
            let _ = writeln!(out, "  {} {ends}", text(&ban["ip"]));
        }
        let entry = text(&card["allowlisted_by"]);
        if !entry.is_empty() {
            let _ = writeln!(out, "{ip} is on the allow-list ({entry}): it is never banned.");
        }
        match card["now"].as_object() {
            Some(now) => {
                let _ = writeln!(
                    out,
                    "Now: {:.2} req/s in the window (limit {:.2}), z {:.1}, {:.1} % errors.",
                    number(&now["rate"]),
                    number(&now["limit"]),
                    number(&now["z_score"]),
                    100.0 * number(&now["error_ratio"])
                );
            }
            None => out.push_str("Now: no requests in the window.\n"),
        }
        let bans = card["bans"].as_array().map(Vec::as_slice).unwrap_or_default();
        if bans.is_empty() {
            let _ = writeln!(out, "No ban of {ip} is on record.");
        }
        for ban in bans {
            let until =
                if ban["until"].is_null() { "for ever".into() } else { format!("until {}", text(&ban["until"])) };
            let title =
                format!("\n{} banned {} {until} ({})", text(&ban["ip"]), text(&ban["time"]), text(&ban["state"]));
            let _ = writeln!(out, "{}", self.paint(&title, Tone::Warn));
            let _ = writeln!(out, "  why       {}", text(&ban["reason"]));
            let _ = writeln!(out, "  offence   {}, by {}", text(&ban["offence"]), text(&ban["origin"]));
            if ban["rule"].is_string() {
                let _ = writeln!(
                    out,
                    "  window    {} requests, {} errors, {:.2} req/s; baseline {:.2} ± {:.2} ({}), z {:.1}",
                    text(&ban["requests"]),
                    text(&ban["errors"]),
                    number(&ban["rate"]),
                    number(&ban["baseline"]["mean"]),
                    number(&ban["baseline"]["stddev"]),
                    text(&ban["baseline"]["source"]),
                    number(&ban["z_score"])
                );
                let what = ban["signal"].as_str().unwrap_or("requests").replace('_', " ");
                let _ =
                    writeln!(out, "  limit     {:.0} {} in the window", number(&ban["limit"]), inert(what.as_bytes()));
            }
            let _ = writeln!(out, "  dropped   {} packets, {} bytes", text(&ban["packets"]), text(&ban["bytes"]));
            if !ban["ended"].is_null() {
                let _ = writeln!(out, "  ended     {}", text(&ban["ended"]));
            }
            for sample in ban["samples"].as_array().into_iter().flatten() {
                let line = format!(
                    "{} {} {} -> {}",
                    text(&sample["time"]),
                    text(&sample["method"]),
                    text(&sample["path"]),
                    text(&sample["status"])
                );
                let _ = writeln!(out, "  request   {}", self.paint(&line, Tone::Dim));
            }
        }
        out
    }
}

/// Prints to standard output; a reader that went away (`| head`) is no error.
///
/// # Errors
/// When standard output cannot be written for another reason.
pub fn show(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A JSON value as inert text, strings without their quotes; empty for null and absent.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => inert(text.as_bytes()),
        other => inert(other.to_string().as_bytes()),
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// Whether a ban was only decided.
fn dry(ban: &Value) -> bool {
    ban["enforcer"] == "dry-run"
}

/// What is left of a ban, in words; none where it has no end.
fn left(until: &Value, now: Timestamp) -> Option<String> {
    let until = Timestamp::parse(until.as_str()?)?;
    Some(if until > now { span(until.since(now).as_secs_f64()) } else { "ending".into() })
}

/// Seconds as people say them: `4d 2h`, `3h 5m`, `12m 30s`, `45s`.
pub fn span(secs: f64) -> String {
    let s = secs.max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PLAIN: Printer = Printer { colour: false, width: None };
    const NOW: Timestamp = Timestamp::from_secs(1_777_280_000);

    #[test]
    fn tables_line_up() {
        let rows = vec![vec![cell("192.0.2.1"), cell("7")], vec![cell("::1"), cell("12345")]];
        assert_eq!(PLAIN.table(&["IP", ">N"], &rows), "IP             N\n192.0.2.1      7\n::1        12345\n");
    }

    #[test]
    fn what_a_log_says_moves_no_cursor() {
        let card = json!({"ip": "192.0.2.1", "bans": [{"ip": "192.0.2.1", "samples": [
            {"time": "t", "method": "GET", "path": "/\u{1b}[2J\r\n\u{202e}x", "status": 200}]}]});
        let shown = PLAIN.explain(&card, NOW);
        assert!(!shown.contains('\u{1b}') && !shown.contains('\r') && !shown.contains('\u{202e}'), "{shown:?}");
        // Also where a number should be.
        let shown = PLAIN.status(&json!({"records": "\u{9b}2J\u{202e}", "active_bans": ["\u{7f}"]}));
        assert!(!shown.contains(['\u{9b}', '\u{202e}', '\u{7f}']), "{shown:?}");
    }

    #[test]
    fn the_last_column_ends_with_the_terminal() {
        let narrow = Printer { colour: false, width: Some(24) };
        let rows = vec![vec![cell("7"), cell("a reason that is longer than the line")]];
        assert_eq!(narrow.table(&[">N", "WHY"], &rows), "N  WHY\n7  a reason that is lon…\n");
        let narrower = Printer { colour: false, width: Some(3) };
        assert_eq!(narrower.table(&[">N", "WHY"], &rows), "N  WHY\n7  a reason that i…\n");
    }

    #[test]
    fn a_ban_says_when_it_ends() {
        let until = NOW.plus(std::time::Duration::from_secs(95)).to_string();
        let bans = json!([{"ip": "192.0.2.1", "since": "t", "until": until, "offence": 1, "packets": 3,
            "origin": "detector", "reason": "why"}, {"ip": "192.0.2.2", "until": null}]);
        let shown = PLAIN.bans(&bans, NOW);
        assert!(shown.lines().nth(1).is_some_and(|line| line.contains("1m 35s")), "{shown}");
        assert!(shown.lines().nth(2).is_some_and(|line| line.contains("permanent")), "{shown}");
        let card = json!({"ip": "192.0.2.1", "active": [{"ip": "192.0.2.0/24", "until": until}]});
        assert!(
            PLAIN.explain(&card, NOW).starts_with("192.0.2.1 is banned as part of 192.0.2.0/24 for another 1m 35s.\n")
        );
        let card = json!({"ip": "192.0.2.0/24", "active": [], "inside": [{"ip": "192.0.2.1", "until": until}]});
        assert!(
            PLAIN
                .explain(&card, NOW)
                .starts_with("192.0.2.0/24 is not banned.\nInside it is banned:\n  192.0.2.1 for another 1m 35s\n")
        );
    }

    #[test]
    fn the_evidence_of_a_ban_names_the_limit_that_was_crossed() {
        let card = |signal| json!({"ip": "192.0.2.1", "bans": [{"ip": "192.0.2.1", "rule": "z_score", "signal": signal, "limit": 94.0}]});
        assert!(
            PLAIN.explain(&card(Some("error_paths")), NOW).contains("\n  limit     94 error paths in the window\n")
        );
        assert!(PLAIN.explain(&card(None), NOW).contains("\n  limit     94 requests in the window\n"));
    }

    #[test]
    fn a_dry_run_does_not_claim_to_enforce() {
        let status = |enforcer| PLAIN.status(&json!({"enforcer": enforcer, "enforcement_ratio": 1.0}));
        assert!(status("dry-run").contains("drops nothing") && !status("dry-run").contains("enforced"));
        assert!(status("xdp").contains("xdp, 100.0 % of the bans enforced"));
        let lost = PLAIN.status(&json!({"enforcer": "xdp", "unhealthy": "eth1 is not protected"}));
        assert!(lost.starts_with("! unhealthy: eth1 is not protected\n") && !status("xdp").contains("unhealthy"));
        let ban = |enforcer| json!({"ip": "192.0.2.1", "until": null, "enforcer": enforcer});
        let bans = |enforcer| PLAIN.bans(&json!([ban(enforcer)]), NOW);
        assert!(bans("dry-run").contains("not dropped") && !bans("xdp").contains("not dropped"));
        let explained = |enforcer| PLAIN.explain(&json!({"ip": "192.0.2.1", "active": [ban(enforcer)]}), NOW);
        assert!(explained("dry-run").contains("not dropped") && !explained("xdp").contains("not dropped"));
    }

    #[test]
    fn doctor_counts_what_needs_a_look() {
        let check = |status| Check { check: "kernel", status, detail: "d".into(), next: Some("n".into()) };
        let shown = PLAIN.checks(&[check(Level::Ok), check(Level::Warn), check(Level::Fail)]);
        assert!(
            shown.starts_with("ok    kernel        d\n") && shown.ends_with("\n1 failed, 1 to look at.\n"),
            "{shown}"
        );
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(span(59.9), "59s");
        assert_eq!(span(3700.0), "1h 1m");
        assert_eq!(span(90_000.0), "1d 1h");
    }
}
