//! The Debian package: its unit, and its whole life on a host with a ban in force.
//!
//! The life is tested in a Debian of its own (`debian.rs`) inside the lab's server; without systemd as the first process,
//! so the daemon is started as the unit would start it, with the unit's capabilities. The unit itself is judged by
//! `systemd-analyze`. The package is built by `cargo xtask test`'s step of that name, which names it by environment; the
//! program in it is the one that the other tests run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::debian;
use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::nginx::Nginx;
use crate::lab::process::Process;
use crate::lab::{ATTACKER, FRIEND, HONEST, INTERFACE, Lab, SERVER, clock, ready, run, skip};

/// What CapabilityBoundingSet= in the unit leaves, in setpriv's words.
const CAPABILITIES: &str = "-all,+bpf,+perfmon,+net_admin,+net_raw";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

#[test]
fn systemd_takes_the_unit_and_finds_it_bounded() -> Result<()> {
    let test = "systemd_takes_the_unit_and_finds_it_bounded";
    if run(Command::new("systemd-analyze").arg("--version")).is_err() {
        skip(test, "systemd-analyze is not installed");
        return Ok(());
    }
    let text = std::fs::read_to_string(packaging().join("anomaly.service"))?;
    let kept: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .flat_map(|line| line.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let tried: Vec<&str> = CAPABILITIES.split(',').filter_map(|word| word.strip_prefix('+')).collect();
    ensure!(kept == tried, "the life of the package is tested with {tried:?}, and the unit leaves {kept:?}");
    // It must name a program that exists.
    let dir = tempfile::tempdir()?;
    let unit = dir.path().join("anomaly.service");
    std::fs::write(&unit, text.replace("/usr/bin/anomaly", env!("CARGO_BIN_EXE_anomaly")))?;
    let output = Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(&unit).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && !said.contains("anomaly.service"), "{said}");
    // Tenths of 0 (locked up) to 10 (unsafe); a unit without any hardening has 96.
    run(Command::new("systemd-analyze").args(["security", "--offline=yes", "--threshold=25"]).arg(&unit))?;
    Ok(())
}

/// The unit's settings of this name, in order.
fn settings(name: &str) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(packaging().join("anomaly.service"))?;
    let of = |line: &str| line.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    Ok(text.lines().filter_map(of).collect())
}

/// By default systemd gives up after five crashes in ten seconds.
#[test]
fn a_crash_loop_never_ends_detection() -> Result<()> {
    let unit = std::fs::read_to_string(packaging().join("anomaly.service"))?;
    let head = unit.split("[Service]").next().context("no [Unit]")?;
    ensure!(head.lines().any(|line| line == "StartLimitIntervalSec=0"), "systemd gives up: {head}");
    ensure!(settings("Restart")? == ["always"] && settings("RestartSec")? == ["1"], "{unit}");
    Ok(())
}

/// Carries the unit's ExecReload= out as systemd does: one after the other, until one fails. Gives what was said.
fn reload(config: &Path, daemon: &str) -> Result<(bool, String)> {
    let mut said = String::new();
    for line in settings("ExecReload")? {
        let line = line.replace("/usr/bin/anomaly", env!("CARGO_BIN_EXE_anomaly")).replace("$MAINPID", daemon);
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().context("an empty ExecReload=")?);
        command.args(words);
        if line.contains("config check") {
            command.arg("-c").arg(config);
        }
        let output = command.output()?;
        said += &String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Ok((false, said));
        }
    }
    Ok((true, said))
}

#[test]
fn a_reload_checks_the_file_first_and_says_why_it_refuses() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("anomaly.toml");
    // Dies of SIGHUP, which shows whether it was sent.
    let sleeper = || Command::new("sleep").arg("60").spawn();
    for (text, good) in [("allowlist_file = \"\"\n", true), ("[bans]\nduration = 3\n", false)] {
        std::fs::write(&config, text)?;
        let mut daemon = sleeper()?;
        let (done, said) = reload(&config, &daemon.id().to_string())?;
        let hung_up = clock::wait_until("SIGHUP", Duration::from_secs(if good { 10 } else { 1 }), || {
            daemon.try_wait().is_ok_and(|ended| ended.is_some())
        });
        let _ = daemon.kill();
        daemon.wait()?;
        ensure!(done == good && hung_up.is_ok() == good, "{text}: {done}, {hung_up:?}: {said}");
        ensure!(good || said.contains("duration"), "it does not say why: {said}");
    }
    Ok(())
}

/// Whoever sees a word in `status` at 3 a.m. finds it in the manual that the package brings.
#[test]
fn operations_explains_every_word_of_status() -> Result<()> {
    let manual = std::fs::read_to_string(packaging().join("../../OPERATIONS.md"))?;
    for word in anomaly::metrics::DEGRADED_WORDS.iter().chain(&["store_damaged"]) {
        ensure!(manual.contains(&format!("`{word}`")), "OPERATIONS.md does not explain `{word}`");
    }
    Ok(())
}

/// The installation's own words for who installs it, asked with `who` in the place of utmp.
#[test]
fn the_installers_address_is_that_of_the_first_source_that_has_one() -> Result<()> {
    let script = std::fs::read_to_string(packaging().join("debian/postinst"))?;
    let functions = script.split("\nif [").next().context("no functions")?;
    for (connection, who, want) in [
        ("198.51.100.7 50000 192.0.2.1 22", "", "198.51.100.7"),
        ("2001:db8::7%eth0 50000 2001:db8::1 22", "", "2001:db8::7"),
        ("UNKNOWN 50000 UNKNOWN 22", "root pts/0 2026-11-25 10:00 (203.0.113.9)", "203.0.113.9"),
        ("127.0.0.1 50000 127.0.0.1 22", "root pts/0 2026-11-25 10:00 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1 50000 127.0.0.1 22", "root tty1 2026-11-25 10:00", ""),
    ] {
        // Without the login manager, which would tell of whoever runs the test.
        let functions = functions.replace("/run/systemd/sessions/", "/nowhere/");
        let asked = format!("{functions}\nwho() {{ echo \"$WHO\"; }}\nfrom=\"$(installer)\"\necho \"$from\"\n");
        let mut command = Command::new("sh");
        command.args(["-c", &asked]).env("SSH_CONNECTION", connection).env("WHO", who);
        let said = run(&mut command)?;
        ensure!(said.trim() == want, "{connection:?} and {who:?} gave {said:?}");
    }
    Ok(())
}

/// Install, ban, upgrade without a gap, remove, purge without a trace.
#[test]
fn the_package_keeps_bans_over_an_upgrade_and_leaves_nothing() -> Result<()> {
    let test = "the_package_keeps_bans_over_an_upgrade_and_leaves_nothing";
    let (Some(first), Some(next)) = (std::env::var_os("ANOMALY_DEB"), std::env::var_os("ANOMALY_DEB_NEXT")) else {
        println!("{test} wants packages: cargo xtask test --only package");
        return Ok(());
    };
    if !ready(test) {
        return Ok(());
    }
    let lab = Lab::new("")?;
    let _nginx = Nginx::start(&lab)?;
    let host = Host::unpack(&lab)?;

    host.install(Path::new(&first))?;
    host.is_complete()?;
    // Whoever installs it is not the first to be locked out.
    let list = host.root.join("etc/anomaly/allowlist");
    ensure!(std::fs::read_to_string(&list)?.contains(FRIEND.v4), "who installed it is not on the allow-list");
    let config = host.root.join("etc/anomaly/anomaly.toml");
    std::fs::write(&config, std::fs::read_to_string(&config)? + "\n# My own words.\n")?;

    let mut daemon = host.start()?;
    let status = host.run(&["anomaly", "status"])?;
    ensure!(status.contains("xdp"), "{status}");
    let refused = host.run(&["anomaly", "ban", FRIEND.v4]);
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains("allow-list")), "who installed it can be banned");
    host.run(&["anomaly", "ban", ATTACKER.v4, "--for", "1h"])?;
    let knocking = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    knocking.wait_for_cut(knocking.began, Duration::from_secs(10))?;
    let cut = clock::now();

    host.install(Path::new(&next))?;
    let version = host.run(&["dpkg-query", "--show", "--showformat=${Version}", "anomaly"])?;
    ensure!(version == "0.0.2-1", "{version}");
    // What `deb-systemd-invoke restart` does.
    stop(&mut daemon)?;
    let mut daemon = host.start()?;
    ensure!(host.run(&["anomaly", "bans"])?.contains(ATTACKER.v4), "the ban is forgotten");
    ensure!(std::fs::read_to_string(&config)?.contains("My own words"), "the configuration was replaced");
    // On a fast machine all of that is over before many have knocked.
    clock::wait_until("50 knocks since the ban", Duration::from_secs(30), || {
        knocking.attempts().iter().filter(|a| a.began > cut).count() > 50
    })?;
    let since: Vec<_> = knocking.stop()?.into_iter().filter(|a| a.began > cut).collect();
    let through: Vec<_> = since.iter().filter(|a| a.answer != Answer::NoConnection).collect();
    ensure!(since.len() > 50 && through.is_empty(), "{} of {}: {through:?}", through.len(), since.len());

    stop(&mut daemon)?;
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "a stopped daemon keeps its bans");
    // Whatever the allow-list says.
    std::fs::write(&list, "office.example.org\n")?;
    host.run(&["dpkg", "--remove", "anomaly"])?;
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::Status(200), "removed, and still dropping");
    ensure!(lab.honest.get(HONEST.v4())? == Answer::Status(200));
    ensure!(!lab.server.ip(&format!("-details link show {INTERFACE}"))?.contains("xdp"), "removed, and still attached");
    for kept in ["etc/anomaly/anomaly.toml", "var/lib/anomaly/state.db", "var/log/anomaly/audit.jsonl"] {
        ensure!(host.root.join(kept).exists(), "{kept} is only for purge to remove");
    }
    host.run(&["dpkg", "--purge", "anomaly"])?;
    let left = host.run(&["find", "/", "-path", "/proc", "-prune", "-o", "-name", "*anomaly*", "-print"])?;
    ensure!(left.is_empty(), "left after purge:\n{left}");
    Ok(())
}

fn stop(daemon: &mut Process) -> Result<()> {
    daemon.signal(Signal::TERM);
    ensure!(daemon.wait(Duration::from_secs(20))?.success(), "{}", daemon.output());
    Ok(())
}

/// A Debian whose network is the lab's server.
struct Host<'lab> {
    lab: &'lab Lab,
    root: PathBuf,
}

impl<'lab> Host<'lab> {
    fn unpack(lab: &'lab Lab) -> Result<Self> {
        let root = lab.dir().join("debian");
        std::fs::create_dir(&root)?;
        run(Command::new("tar").arg("--extract").arg("--file").arg(debian::archive()?).arg("--directory").arg(&root))?;
        let mount = |kind: &[&str], at: &str| run(lab.server.command("mount").args(kind).arg(root.join(at)));
        mount(&["-t", "proc", "proc"], "proc")?;
        mount(&["-t", "sysfs", "sysfs"], "sys")?;
        mount(&["-t", "bpf", "-o", "mode=0700", "bpf"], "sys/fs/bpf")?;
        mount(&["--rbind", "/dev"], "dev")?;
        Ok(Self { lab, root })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.lab.server.command("chroot");
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        command.arg(&self.root).arg(program);
        command
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        run(self.command(words[0]).args(&words[1..]))
    }

    fn install(&self, package: &Path) -> Result<()> {
        std::fs::copy(package, self.root.join("package.deb")).with_context(|| package.display().to_string())?;
        // Keeps the operator's configuration where both have changed, as unattended upgrades do.
        let mut command = self.command("dpkg");
        command.args(["--force-confold", "--install", "/package.deb"]);
        // As in a shell that somebody opened by SSH.
        command.env("SSH_CONNECTION", format!("{} 50022 {} 22", FRIEND.v4, SERVER.v4));
        run(&mut command).map(drop)
    }

    /// What an operator expects of a package.
    fn is_complete(&self) -> Result<()> {
        self.run(&["anomaly", "--version"])?;
        self.run(&["anomaly", "config", "check"])?;
        self.run(&["logrotate", "--debug", "/etc/logrotate.d/anomaly"])?;
        let conffiles = self.run(&["dpkg-query", "--show", "--showformat=${Conffiles}", "anomaly"])?;
        for file in ["/etc/anomaly/anomaly.toml ", "/etc/logrotate.d/anomaly "] {
            ensure!(conffiles.contains(file), "{file}is not a conffile: {conffiles}");
        }
        for file in [
            "usr/share/man/man8/anomaly.8.gz",
            "usr/share/bash-completion/completions/anomaly",
            "usr/share/zsh/vendor-completions/_anomaly",
            "usr/share/fish/vendor_completions.d/anomaly.fish",
            "usr/share/doc/anomaly/OPERATIONS.md",
            "usr/share/doc/anomaly/copyright",
            "usr/share/doc/anomaly/examples/nginx/log_format.conf",
        ] {
            let there = self.root.join(file).metadata().with_context(|| file.to_owned())?;
            ensure!(there.len() > 100, "{file} is all but empty");
        }
        let enabled = self.root.join("etc/systemd/system/multi-user.target.wants/anomaly.service");
        ensure!(enabled.symlink_metadata().is_ok(), "the service is not enabled");
        Ok(())
    }

    /// The daemon, as the unit starts it.
    fn start(&self) -> Result<Process> {
        let mut command = self.command("setpriv");
        command.args(["--no-new-privs", "--bounding-set", CAPABILITIES, "--inh-caps", CAPABILITIES]);
        command.args(["anomaly", "run"]);
        let mut daemon = self.lab.start("the packaged daemon", command, &self.lab.dir().join("packaged.out"))?;
        clock::wait_until("the packaged daemon to answer", Duration::from_secs(30), || {
            daemon.ended().is_some() || self.run(&["anomaly", "status"]).is_ok()
        })?;
        ensure!(daemon.ended().is_none(), "{}", daemon.output());
        Ok(daemon)
    }
}
