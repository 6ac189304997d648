//! What can be in a log and happen to it: the past, rotation, hostile lines.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{binary, daemon, lab, wait_for_ban};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::{Config, Daemon};
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, HONEST, clock};

/// The log's past is learned from, with the default warm-up of 120 s; the flood that comes ten
/// seconds later is judged by it.
#[test]
fn a_first_start_learns_from_the_existing_log() -> Result<()> {
    let Some(lab) = lab("a_first_start_learns_from_the_existing_log")? else { return Ok(()) };
    let nginx = Nginx::start(&lab)?;
    let daemon = daemon(&lab, Config::new(&lab, "first").with("enforcer", "backend", "\"dry-run\""))?;
    let status = daemon.status()?;
    ensure!(status["baseline"]["source"] != "floor", "nothing was learned: {status}");
    ensure!(daemon.audited("ban", None)?.is_empty(), "the quiet past holds no attack");
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    let row = wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(10))?;
    let seconds = flood.began.elapsed().as_secs_f64();
    ensure!(seconds < 6.0, "banned only after {seconds:.1} s");
    ensure!(row["rule"] != "hard_limit", "judged as if still warming up: {row}");
    drop(nginx);
    Ok(())
}

/// Rotates as logrotate's `create` and `copytruncate` do, while Nginx writes.
#[test]
fn rotation_both_ways_loses_and_repeats_no_line() -> Result<()> {
    let Some(lab) = lab("rotation_both_ways_loses_and_repeats_no_line")? else { return Ok(()) };
    lab.write_log("")?;
    let nginx = Nginx::start(&lab)?;
    let config = Config::new(&lab, "rotation").with("enforcer", "backend", "\"dry-run\"").with(
        "",
        "allowlist",
        format!("[{:?}]", HONEST.v4),
    );
    let daemon = Daemon::start(&lab, binary(), config)?;
    let load = Traffic::start(&lab.honest, Plan::new(HONEST.v4(), 150.0));
    let mut kept: Vec<PathBuf> = Vec::new();
    for round in 0..6 {
        let answered = load.attempts().len();
        clock::wait_until("more requests", Duration::from_secs(10), || load.attempts().len() > answered + 100)?;
        let rotated = lab.log().with_extension(format!("json.{round}"));
        if round % 2 == 0 {
            std::fs::rename(lab.log(), &rotated)?;
            nginx.reopen();
        } else {
            std::fs::copy(lab.log(), &rotated)?;
            File::options().write(true).open(lab.log())?.set_len(0)?;
        }
        kept.push(rotated);
    }
    let answered = load.stop()?.iter().filter(|a| a.answer != Answer::NoConnection).count() as u64;
    kept.push(lab.log());
    let lines = || kept.iter().map(|path| lines_in(path)).sum::<u64>();
    let records = || daemon.status().ok().and_then(|s| s["records"].as_u64()).unwrap_or(0);
    // copytruncate itself may lose lines that are written between the copy and the cut; those the daemon may
    // or may not have seen, so its count lies between what is on disk and what was asked.
    let settled = clock::wait_until("all lines to be read", Duration::from_secs(10), || records() >= lines());
    let (records, lines) = (records(), lines());
    settled.map_err(|e| e.context(format!("{records} records of {lines} lines on disk, {answered} requests")))?;
    std::thread::sleep(Duration::from_millis(1500));
    let records_later = daemon.status()?["records"].as_u64().unwrap_or(0);
    ensure!(records_later <= answered, "{records_later} records of {answered} requests: counted twice");
    ensure!(records_later == records, "counted on after the end: {records}, {records_later}");
    ensure!(daemon.status()?["rejected"] == 0, "{}", daemon.status()?);
    Ok(())
}

fn lines_in(path: &Path) -> u64 {
    std::fs::read(path).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Each hostile line is counted, as a record where an address can be read; none ends the daemon.
#[test]
fn hostile_lines_are_counted_and_never_fatal() -> Result<()> {
    let Some(lab) = lab("hostile_lines_are_counted_and_never_fatal")? else { return Ok(()) };
    let daemon = daemon(&lab, Config::new(&lab, "hostile").with("enforcer", "backend", "\"dry-run\""))?;
    let figures = || -> Result<(u64, u64)> {
        let status = daemon.status()?;
        Ok((status["records"].as_u64().unwrap_or(0), status["rejected"].as_u64().unwrap_or(0)))
    };
    let (records, rejected) = figures()?;
    let stamp = clock::iso8601(clock::epoch_secs());
    let line = |path: &[u8]| {
        let head = format!(r#"{{"source_ip":"203.0.113.5","timestamp":"{stamp}","method":"GET","path":""#);
        [head.as_bytes(), path, br#"","status":"200","response_size":"1"}"#, b"\n"].concat()
    };
    let good: [Vec<u8>; 5] = [
        line(b"/%ff"),
        line(b"/\xff\xfe\x80"),
        line(br"/\u0000\ud800<script>"),
        format!(r#"{{"source_ip":"203.0.113.6","timestamp":"{stamp}","method":7,"path":[1,{{"a":null}}],"status":200,"response_size":12}}"#)
            .into_bytes().into_iter().chain(*b"\n").collect(),
        format!(r#"{{"source_ip":"203.0.113.6","timestamp":"{stamp}","method":"GET","path":"/","status":"twohundred","response_size":"-"}}"#)
            .into_bytes().into_iter().chain(*b"\n").collect(),
    ];
    let bad: [Vec<u8>; 6] = [
        b"[]\n".to_vec(),
        b"null\n".to_vec(),
        b"\xff\xfe\n".to_vec(),
        [vec![b'{'; 1 << 20], b"\n".to_vec()].concat(),
        line(b"/").iter().copied().take(14).chain(*b"\n").collect(),
        b"{\"source_ip\":\"0.0.0.0/0\",\"timestamp\":\"2026-01-01T00:00:00Z\"}\n".to_vec(),
    ];
    let mut log = File::options().append(true).open(lab.log())?;
    for text in good.iter().chain(&bad) {
        log.write_all(text)?;
    }
    // A line that is written in two halves is one line.
    let whole = line(b"/halves");
    log.write_all(&whole[..40])?;
    let expected = (records + good.len() as u64, rejected + bad.len() as u64);
    clock::wait_until("the lines to be counted", Duration::from_secs(10), || {
        figures().is_ok_and(|now| now == expected)
    })
    .map_err(|e| e.context(format!("{:?}, expected {expected:?}", figures())))?;
    log.write_all(&whole[40..])?;
    clock::wait_until("the second half", Duration::from_secs(10), || {
        figures().is_ok_and(|now| now == (expected.0 + 1, expected.1))
    })
    .map_err(|e| e.context(format!("{:?}", figures())))?;
    ensure!(daemon.status()?["active_bans"] == 0, "nobody was to be banned: {}", daemon.json(&["bans"])?);
    Ok(())
}

/// Nginx writes bytes above 0x7f raw: such a path must not hide its client.
#[test]
fn an_unparsable_path_hides_nobody() -> Result<()> {
    let Some(lab) = lab("an_unparsable_path_hides_nobody")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    let daemon = daemon(&lab, Config::new(&lab, "raw"))?;
    let flood = Traffic::start(&lab.attacker, Plan { path: b"/\xff\x80\xc3", ..Plan::new(ATTACKER.v4(), 50.0) });
    flood.wait_for_cut(flood.began, Duration::from_secs(20))?;
    wait_for_ban(&daemon, ATTACKER.v4, 1, Duration::from_secs(20))?;
    Ok(())
}
