//! What a client writes into the log stays text wherever people read it: audit log, command line, the daemon's own output,
//! Slack. (For pages, the browser tests look.)

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{daemon, lab, wait_for_ban};
use crate::lab::daemon::Config;
use crate::lab::sink::Sink;
use crate::lab::{clock, history};

/// As in a JSON log: an end of line and a forged audit line, terminal escapes (as an escape and raw), HTML, bidi, Slack's
/// own words, a shell's.
const HOSTILE: &[u8] =
    b"/\\n{\\\"event\\\":\\\"unban\\\"}\\r\\u001b[2J\\u001b]0;owned\\u0007\x1b[31m\x9b31m<script>alert(1)</script>\
    \\u202e<!channel>```*bold*|`id`$(id);\\u0000";

#[test]
fn what_a_client_writes_stays_text() -> Result<()> {
    let Some(lab) = lab("what_a_client_writes_stays_text")? else { return Ok(()) };
    let slack = Sink::start(&lab.server)?;
    let config = Config::new(&lab, "inert")
        .with("enforcer", "backend", "\"dry-run\"")
        .with("bans", "durations", r#"["1h"]"#)
        .with("notify.slack", "webhook_url", format!("{:?}", slack.url()));
    let daemon = daemon(&lab, config)?;
    // Hostile in every field that a client fills.
    let line = history::line(clock::epoch_secs(), "198.18.0.9", "@", 404);
    let more = r#"{"host":"@","user_agent":"@","http_referer":"@","http_x_forwarded_for":"@","#;
    let line = line.replacen('{', more, 1).replacen(r#""method":"GET""#, r#""method":"@""#, 1);
    let fields: Vec<&[u8]> = line.split('@').map(str::as_bytes).collect();
    ensure!(fields.len() == 7, "six hostile fields: {line}");
    let line = fields.join(HOSTILE);
    let mut log = File::options().append(true).open(lab.log())?;
    // Those that are records, and one that gives none and is shown as a sample.
    log.write_all(&line.repeat(300))?;
    log.write_all(&[b"\x1b[2J", HOSTILE, b"\n"].concat())?;
    wait_for_ban(&daemon, "198.18.0.9", 1, Duration::from_secs(10))?;
    let notices = || slack.bodies().concat();
    clock::wait_until("the notice", Duration::from_secs(10), || notices().contains("198.18.0.9"))?;
    clock::wait_until("the sample of rejected lines", Duration::from_secs(20), || {
        daemon.output().contains("gave no record")
    })?;

    let mut texts = vec![
        ("audit log", fs::read_to_string(lab.dir().join("inert.audit.jsonl"))?),
        ("snapshots", daemon.snapshots()),
        ("output", daemon.output()),
        ("Slack", notices()),
    ];
    for words in [&["explain", "198.18.0.9"][..], &["bans"], &["top"], &["status"]] {
        let output = daemon.command(words)?;
        ensure!(output.status.success(), "{output:?}");
        texts.push(("command line", String::from_utf8(output.stdout)?));
    }
    let card = daemon.json(&["explain", "198.18.0.9"])?.to_string();
    ensure!(card.contains("script"), "the evidence is not there: {card}");
    texts.push(("why-card", card));
    for (place, text) in &texts {
        let moves = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
        ensure!(!text.contains(moves), "{place}: {text:?}");
    }
    ensure!(!notices().contains("<!channel>") && !notices().contains("<script>"), "{}", notices());
    let forged = daemon.audited("unban", None)?;
    ensure!(forged.is_empty(), "a forged audit line: {forged:?}");
    Ok(())
}
