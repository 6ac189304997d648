//! The URL is a secret: of all that a daemon writes, at its most talkative, only the configuration has it.

use std::fs;
use std::time::Duration;

use super::server::{Reply, SECRET, Sink};
use crate::dry_run::DryRun;
use crate::lab::{clock, history};

#[test]
fn a_daemon_that_logs_everything_does_not_write_the_url() {
    let sink = Sink::start(|n| match n {
        0 => Reply::Status(500, "", "oops"),
        1 => Reply::Close,
        2 => Reply::Status(429, "retry-after: 1\r\n", ""),
        _ => Reply::Status(404, "", "no_service"),
    });
    let more = format!("notify.slack.webhook_url = {:?}\n", sink.url);
    let past = history::quiet(clock::epoch_secs(), 1, 2);
    // Also what libraries say, by whatever way it comes into the log.
    let daemon = DryRun::start_with(&past, &more, &[("RUST_LOG", "trace")]);
    assert!(daemon.command(&["ban", "203.0.113.9", "--for", "1h"]).status.success());
    let lost = || daemon.output().contains("notices are lost: they were refused");
    clock::wait_until("the refusal", Duration::from_secs(60), lost).unwrap_or_else(|error| panic!("{error}"));
    assert!(daemon.output().contains("TRACE") && sink.bodies().len() >= 4);
    let status = daemon.json(&["status"]).expect("a status").to_string();
    let mut written = vec![("status".to_owned(), status.into_bytes())];
    for file in fs::read_dir(daemon.dir()).expect("its directory").map(|file| file.expect("a file")) {
        let name = file.file_name().into_string().expect("a name");
        if file.file_type().expect("a type").is_file() && name != "anomaly.toml" {
            written.push((name, fs::read(file.path()).expect("read")));
        }
    }
    assert!(["output", "audit.jsonl", "state.db"].iter().all(|wanted| written.iter().any(|(name, _)| name == wanted)));
    for (name, bytes) in written {
        let text = String::from_utf8_lossy(&bytes);
        for part in SECRET.split('/') {
            let at = text.find(part).map(|at| text[..at].lines().next_back().unwrap_or_default().to_owned());
            assert_eq!(at, None, "{part} is in {name}, after this");
        }
    }
}
