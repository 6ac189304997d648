//! 10,000 bans in less than a minute while Slack answers anything but 200: the whole daemon, not only its queue.
//!
//! In dry-run, so that it needs no root: what is measured is that telling people never slows finding attackers.

use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::server::{OK, Reply, Sink};
use crate::dry_run::DryRun;
use crate::lab::{clock, history};

const ATTACKERS: usize = 10_000;
/// How long it takes them to come; a third faster than the 10,000 a minute that are promised.
const SECONDS: usize = 40;
/// Requests of each, for paths that do not exist.
const REQUESTS: usize = 40;
/// The attackers whose bans are timed, by the second in which they come.
const TIMED: [usize; 3] = [10, 20, 30];
/// From the lines in the log to the ban in the audit log. A request to Slack that hangs is given up after 10 s, so a
/// detection that waits for one is well beyond this, and a machine that is busy with other tests is not.
const BANNED_WITHIN: Duration = Duration::from_secs(5);
/// All of it: the 40 s in which they come, and as much again for a daemon without optimisation on a busy machine.
const ALL_WITHIN: Duration = Duration::from_secs(2 * SECONDS as u64);
/// Messages in the first minute: one a second at first, then one every 20 s.
const MESSAGES: usize = 16;
const MESSAGE_EVERY: Duration = Duration::from_secs(20);

#[test]
fn ten_thousand_bans_in_a_minute_neither_flood_slack_nor_slow_detection() {
    let sink = Sink::start(|n| match n {
        0 => Reply::Status(429, "retry-after: 2\r\n", ""),
        1 => Reply::Status(500, "", "oops"),
        2 => Reply::Hang,
        3 => Reply::Close,
        _ => OK,
    });
    let more = format!("bans.brake_per_minute = 0\nnotify.slack.webhook_url = {:?}\n", sink.url);
    let daemon = DryRun::start(&history::quiet(clock::epoch_secs(), 30, 2), &more);
    let mut audit = daemon.audit();
    let mut log = daemon.log();
    let began = clock::now();
    let (mut banned, mut longest) = (0, Duration::ZERO);
    for second in 0..SECONDS {
        let due = began + Duration::from_secs(second as u64);
        clock::wait_until("the next second", Duration::from_secs(20), || {
            banned += audit.read().iter().filter(|line| is_attacker(line)).count();
            clock::now() >= due
        })
        .expect("a second passes");
        let now = clock::epoch_secs();
        let text: String = (second * ATTACKERS / SECONDS..(second + 1) * ATTACKERS / SECONDS)
            .flat_map(|n| scan(now, &format!("10.0.{}.{}", n / 250, 1 + n % 250)))
            .collect();
        log.write_all(text.as_bytes()).expect("written");
        if TIMED.contains(&second) {
            let ip = format!("203.0.113.{second}");
            log.write_all(scan(now, &ip).collect::<String>().as_bytes()).expect("written");
            let written = clock::now();
            clock::wait_until("the ban of the timed attacker", Duration::from_secs(20), || {
                let lines = audit.read();
                banned += lines.iter().filter(|line| is_attacker(line)).count();
                lines.iter().any(|line| line["event"] == "ban" && line["ip"] == ip.as_str())
            })
            .expect("a ban");
            longest = longest.max(written.elapsed());
        }
    }
    clock::wait_until("every attacker to be banned", ALL_WITHIN, || {
        banned += audit.read().iter().filter(|line| is_attacker(line)).count();
        banned >= ATTACKERS
    })
    .unwrap_or_else(|error| panic!("{error}: {banned} of {ATTACKERS}"));
    let took = began.elapsed();
    assert_eq!(banned, ATTACKERS);
    assert!(longest < BANNED_WITHIN, "a ban took {longest:?}");
    assert!(took < ALL_WITHIN, "all of it took {took:?}");

    let all = ATTACKERS as u64 + TIMED.len() as u64;
    let told = || sink.bodies().iter().skip(4).map(bans).sum::<u64>();
    clock::wait_until("Slack to be told of all", Duration::from_secs(60), || told() >= all).expect("told");
    let bodies = sink.bodies();
    let largest = bodies.iter().map(|body| body.to_string().len()).max().unwrap_or(0);
    println!(
        "{all} bans in {took:.1?}; a timed one took at most {longest:?}; {} messages, the largest {largest} bytes",
        bodies.len()
    );
    assert_eq!(told(), all, "every ban is told once");
    // A slow machine takes longer, and longer means more of them.
    let more = began.elapsed().saturating_sub(Duration::from_secs(60)).as_secs().div_ceil(MESSAGE_EVERY.as_secs());
    assert!(bodies.len() <= MESSAGES + more as usize, "{} messages", bodies.len());
    assert!(largest < 20_000, "{largest} bytes");
}

/// The lines of a client that looks for what is not there.
fn scan(now: u64, ip: &str) -> impl Iterator<Item = String> + use<> {
    let ip = ip.to_owned();
    (0..REQUESTS).map(move |n| history::line(now, &ip, &format!("/missing/{n}.php"), 404))
}

fn is_attacker(line: &Value) -> bool {
    line["event"] == "ban" && line["ip"].as_str().is_some_and(|ip| ip.starts_with("10.0."))
}

/// The bans that a message counts or names.
fn bans(message: &Value) -> u64 {
    // The host comes first.
    let text = message["text"].as_str().and_then(|text| text.split_once(": ")).map_or("", |(_, text)| text);
    if text.contains(" banned for ") {
        return 1;
    }
    let count = |part: &str| part.strip_suffix(" bans").or(part.strip_suffix(" ban")).and_then(|n| n.parse().ok());
    text.split(", ").find_map(count).unwrap_or(0)
}
