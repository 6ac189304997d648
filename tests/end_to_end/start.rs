//! Starting wrong: one clear message each, and the documented exit code; nothing is left behind.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{binary, lab};
use crate::lab::daemon::{Config, Daemon, Start};
use crate::lab::{Lab, clock};

/// Runs to the end; the exit code and what was said.
fn fails(lab: &Lab, config: Config, start: &Start<'_>) -> Result<(Option<i32>, String)> {
    let mut daemon = Daemon::launch(lab, binary(), config, start)?;
    let status = daemon.wait(Duration::from_secs(20))?;
    let said = daemon.output();
    ensure!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    let errors = said.lines().filter(|line| line.to_lowercase().contains("error")).count();
    ensure!(errors <= 1, "more than one error message: {said}");
    Ok((status.code(), said))
}

#[test]
fn a_plain_user_is_told_what_is_missing() -> Result<()> {
    let Some(lab) = lab("a_plain_user_is_told_what_is_missing")? else { return Ok(()) };
    // The build directory may be closed to others, the lab's is not.
    let ours = lab.dir().join("anomaly");
    std::fs::copy(binary(), &ours)?;
    let through = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let start = Start { through: through.map(Into::into).into(), ..Start::default() };
    let mut daemon = Daemon::launch(&lab, &ours, Config::new(&lab, "user"), &start)?;
    let status = daemon.wait(Duration::from_secs(20))?;
    let said = daemon.output();
    ensure!(status.code() == Some(1), "{status}: {said}");
    ensure!(said.contains("root") || said.contains("CAP_") || said.contains("ermission denied"), "{said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

#[test]
fn a_bad_configuration_is_fatal_before_anything_is_attached() -> Result<()> {
    let Some(lab) = lab("a_bad_configuration_is_fatal_before_anything_is_attached")? else { return Ok(()) };
    for (section, key, value, named) in [
        ("thresholds", "z_scroe", "3.0", "z_scroe"),
        ("thresholds", "z_score", "\"three\"", "\"three\""),
        ("bans", "durations", "[\"a while\"]", "durations"),
        ("dashboard", "listen", "\"0.0.0.0:8081\"", "token"),
        ("", "allowlist", "[\"300.1.2.3\"]", "allowlist"),
    ] {
        let config = Config::new(&lab, "bad").with(section, key, value);
        let (code, said) = fails(&lab, config, &Start::default())?;
        ensure!(code == Some(2), "{section}.{key} = {value}: exit code {code:?}: {said}");
        ensure!(said.contains(named), "{section}.{key} = {value}: not named in: {said}");
        std::fs::remove_file(lab.dir().join("bad.out"))?;
    }
    let link = lab.server.ip("-details link show veth")?;
    ensure!(!link.contains("xdp"), "something was attached: {link}");
    Ok(())
}

#[test]
fn a_missing_interface_is_named() -> Result<()> {
    let Some(lab) = lab("a_missing_interface_is_named")? else { return Ok(()) };
    let config = Config::new(&lab, "interface").with("enforcer", "interfaces", "[\"eth77\"]");
    let (code, said) = fails(&lab, config, &Start::default())?;
    ensure!(code == Some(1) && said.contains("eth77"), "exit code {code:?}: {said}");
    Ok(())
}

/// A log that is not there yet is no reason to stop: Nginx may come later. It is said, and shown.
#[test]
fn a_missing_log_is_waited_for_and_said() -> Result<()> {
    let Some(lab) = lab("a_missing_log_is_waited_for_and_said")? else { return Ok(()) };
    std::fs::remove_file(lab.log())?;
    let daemon = Daemon::start(&lab, binary(), Config::new(&lab, "nolog").with("enforcer", "backend", "\"dry-run\""))?;
    let name = lab.log().display().to_string();
    clock::wait_until("the missing log to be named", Duration::from_secs(10), || {
        daemon.output().lines().any(|line| line.contains("WARN") && line.contains(&name))
    })
    .map_err(|e| e.context(daemon.output()))?;
    lab.write_log(&crate::lab::history::quiet(clock::epoch_secs(), 2, 1))?;
    clock::wait_until("the log that came later to be read", Duration::from_secs(10), || {
        daemon.status().is_ok_and(|s| s["records"].as_u64() > Some(10))
    })
}
