//! Whoever logs in while the daemon runs is not banned, and a ban that holds them is lifted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{daemon, lab};
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::daemon::Config;
use crate::lab::nginx::Nginx;
use crate::lab::{ATTACKER, FRIEND, clock, run};

#[test]
fn whoever_logs_in_is_not_banned() -> Result<()> {
    let Some(lab) = lab("whoever_logs_in_is_not_banned")? else { return Ok(()) };
    let _nginx = Nginx::start(&lab)?;
    // The login manager's directory, in the server's own mount namespace.
    run(lab.server.command("sh").args(["-c", "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/sessions"]))?;
    let daemon = daemon(&lab, Config::new(&lab, "main").with("bans", "durations", r#"["1h"]"#))?;
    let flood = |from| Traffic::start(&lab.attacker, Plan::new(from, 50.0));
    let banned = flood(ATTACKER.v4());
    banned.wait_for_cut(banned.began, Duration::from_secs(20))?;
    drop(banned);

    let session = "UID=0\nREMOTE=1\nSERVICE=sshd\nREMOTE_HOST=";
    let log_in = |name: &str, from: &str| {
        let script = format!("printf '{session}{from}\\n' > /run/systemd/sessions/{name}");
        run(lab.server.command("sh").args(["-c", &script])).map(drop)
    };
    log_in("1", ATTACKER.v4)?;
    log_in("2", FRIEND.v4)?;
    clock::wait_until("both to be served", Duration::from_secs(20), || {
        [ATTACKER, FRIEND].iter().all(|host| lab.attacker.get(host.v4()).is_ok_and(|a| a == Answer::Status(200)))
    })?;
    clock::wait_until("the daemon to say so", Duration::from_secs(20), || {
        let said = daemon.output();
        said.contains(ATTACKER.v4) && said.contains(FRIEND.v4)
    })
    .with_context(|| daemon.output())?;
    let allowed = flood(FRIEND.v4());
    clock::wait_until("many requests", Duration::from_secs(30), || allowed.attempts().len() > 600)?;
    ensure!(allowed.stop()?.iter().all(|a| a.answer == Answer::Status(200)), "banned while logged in");
    ensure!(daemon.audited("ban", Some(FRIEND.v4))?.is_empty());
    Ok(())
}
