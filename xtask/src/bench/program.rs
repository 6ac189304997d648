//! The program itself: its size, and how soon after its start it reads.

use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::fs::inotify;

use super::prober::Prober;
use super::table::{Row, Target};
use super::{Bench, median, new_lab, size, traffic};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::{Lab, clock};

const STARTS: u8 = 7;
/// `thresholds.hard_limit`: so that a few lines are a ban.
const LIMIT: u64 = 20;

/// Adds the rows of this part.
///
/// # Errors
/// When the daemon does not run.
pub fn measure(bench: &mut Bench) -> Result<()> {
    bench.table.add(Row {
        part: "program",
        what: "the program, stripped".into(),
        value: size(&bench.binary)? as f64 / 1e6,
        unit: "MB",
        target: Target::AtMost(15.0),
        how: "bytes of target/release/anomaly (profile release: stripped)".into(),
    });
    let lab = new_lab()?;
    lab.write_log("")?;
    let (mut reads, mut bans) = (Vec::new(), Vec::new());
    for nth in 0..STARTS {
        let (read, banned) = start(&lab, bench, nth)?;
        reads.push(read * 1e3);
        bans.push(banned * 1e3);
    }
    // The first one makes the database and pins the program.
    let (first_read, first_ban) = (reads.remove(0), bans.remove(0));
    bench.table.add(Row {
        part: "program",
        what: "start to first line read".into(),
        value: median(reads),
        unit: "ms",
        target: Target::AtMost(50.0),
        how: format!(
            "from exec (with nsenter) to the first read of the log (inotify IN_ACCESS), while XDP is being loaded; median of {} restarts; the very first start {first_read:.1} ms",
            STARTS - 1
        ),
    });
    bench.table.add(Row {
        part: "program",
        what: "start to the first ban from lines that waited".into(),
        value: median(bans),
        unit: "ms",
        target: Target::None,
        how: format!("the same starts, to the entry in the XDP map; the very first start {first_ban:.1} ms"),
    });
    Ok(())
}

/// Seconds from a start to the first read, and to the ban of an attacker whose lines are there already.
fn start(lab: &Lab, bench: &Bench, nth: u8) -> Result<(f64, f64)> {
    let attacker = Ipv4Addr::new(198, 18, 0, nth + 1);
    let (mut log, mut line) = (File::options().append(true).open(lab.log())?, Vec::new());
    for _ in 0..=LIMIT {
        traffic::page(&mut line, attacker, clock::epoch_secs());
        log.write_all(&line)?;
    }
    let config = Config::new(lab, "program").with("thresholds", "hard_limit", LIMIT.to_string()).with(
        "bans",
        "durations",
        r#"["1h"]"#,
    );
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, lab.log(), inotify::WatchFlags::ACCESS)?;
    let began = clock::now();
    let mut daemon = Daemon::launch(lab, &bench.binary, config, &Start::default())?;
    let (mut read, mut buffer) = (None, [MaybeUninit::uninit(); 4096]);
    let banned = loop {
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(30), "no ban after 30 s: {}", daemon.output());
        if read.is_none() && inotify::Reader::new(&watch, &mut buffer).next().is_ok() {
            read = Some(took.as_secs_f64());
        }
        if Prober::open(lab, "program").is_ok_and(|prober| prober.holds(attacker).unwrap_or(false)) {
            break took.as_secs_f64();
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    daemon.wait_ready()?;
    daemon.stop()?;
    Ok((read.unwrap_or(banned), banned))
}
