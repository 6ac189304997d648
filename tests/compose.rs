//! `compose/compose.yaml` under attack: Docker's published port, real packets, XDP and the rules.
//!
//! Debian's engine and docker-compose run inside the lab's server, so the engine's bridge, rules and containers are the
//! lab's. Needs Debian's mirror, so it is a step of its own: `cargo xtask test` (or with `--only compose`) sets the
//! variable below. What the images contain is stood in for (`tests/compose/Dockerfile`); anomaly's own image is
//! built by its own `Dockerfile`.

mod dockerfile;
mod engine;
mod images;
mod second;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::client::{Answer, Plan, Traffic};
use crate::lab::{ATTACKER, HONEST, INTERFACE, Lab, clock, ready, run, skip};
use engine::{Engine, repository};

/// Set by `cargo xtask test`'s step.
const WANTED: &str = "ANOMALY_COMPOSE_TESTS";

/// What docker-compose 1.29 and Compose v2 both take, at versions that stay, with files that are there.
#[test]
fn the_compose_file_suits_both_generations() -> Result<()> {
    let dir = repository().join("compose");
    for name in ["compose.yaml", "privileged.yaml"] {
        let text = std::fs::read_to_string(dir.join(name))?;
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let newer = ["name:", "include:", "version:"].iter().any(|key| line.starts_with(key));
            ensure!(!newer && !line.contains("!reset") && !line.contains("!override"), "{name}: {line}");
            if let Some((_, image)) = line.trim().split_once("image: ") {
                let tag = image.trim_matches(['"', '}']).rsplit_once(':').map(|(_, tag)| tag);
                let pinned = tag
                    .is_some_and(|tag| tag.contains('.') && tag.starts_with(|c: char| c.is_ascii_digit() || c == 'v'));
                ensure!(pinned, "{name}: not at a version: {image}");
            }
            // `- ./file:/place:ro`, or with a variable whose default it is.
            let source = line.trim().trim_start_matches("- ").trim_start_matches('"');
            let source = source.split_once(":-").filter(|_| source.starts_with("${")).map_or(source, |(_, rest)| rest);
            if source.starts_with('.') {
                let file = source.split([':', '}']).next().unwrap_or(source);
                ensure!(dir.join(file).exists(), "{name} mounts {file}, which is not in the repository");
            }
        }
    }
    Ok(())
}

/// One set of containers for all of it: an engine and its images take a minute.
#[test]
fn the_compose_stack_is_guarded() -> Result<()> {
    let test = "the_compose_stack_is_guarded";
    if std::env::var_os(WANTED).is_none() {
        println!("{test} is a step of its own: cargo xtask test --only compose");
        return Ok(());
    }
    if !ready(test) || !programs(test) {
        return Ok(());
    }
    let lab = Lab::new("")?;
    let engine = Engine::start(&lab)?;
    let mut settings = images::make(&lab, &engine)?;
    settings.extend(own_settings(&lab)?);
    engine.compose(&settings, &["--profile", "monitoring", "config", "--quiet"])?;
    told(&engine, &settings, in_xdp(&lab, &engine, &settings).context("with XDP"))?;
    // As an old engine without old-engine.env would leave it: neither CAP_BPF nor CAP_SYS_ADMIN.
    settings.extend([("ANOMALY_CAP_BPF", "CHOWN".to_owned()), ("ANOMALY_CAP_PERFMON", "KILL".to_owned())]);
    told(&engine, &settings, by_rules(&lab, &engine, &settings).context("without XDP"))
}

/// Whether an engine can be started here; says why a test is skipped where it cannot.
fn programs(test: &str) -> bool {
    let programs = ["dockerd", "docker", "docker-compose", "mmdebstrap"];
    let missing = |program: &&str| run(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program])).is_err();
    if let Some(program) = programs.iter().find(|program| missing(program)) {
        skip(test, &format!("{program} is not installed"));
        return false;
    }
    true
}

fn told(engine: &Engine<'_>, settings: &[(&str, String)], outcome: Result<()>) -> Result<()> {
    outcome.map_err(|error| {
        let told = engine.told(settings);
        error.context(told)
    })
}

/// Secrets, and a configuration that need not learn first.
fn own_settings(lab: &Lab) -> Result<Vec<(&'static str, String)>> {
    let secrets = lab.dir().join("secrets");
    std::fs::create_dir(&secrets)?;
    for name in ["db_password", "admin_password", "grafana_password"] {
        std::fs::write(secrets.join(name), "not a secret\n")?;
    }
    let sample = std::fs::read_to_string(repository().join("compose/anomaly.toml"))?;
    let config = lab.dir().join("anomaly.toml");
    std::fs::write(&config, sample + "\n[thresholds]\nhard_limit = 200\n")?;
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    Ok(vec![("SECRETS", text(secrets)), ("ANOMALY_CONFIG", text(config))])
}

/// Starts the stack, and waits until it serves and anomaly is healthy.
fn up(lab: &Lab, engine: &Engine<'_>, settings: &[(&str, String)]) -> Result<()> {
    engine.compose(settings, &["up", "--detach", "--build"])?;
    for service in ["db", "app", "nginx", "anomaly"] {
        let container = Engine::container(service);
        let health = ["inspect", "--format", "{{.State.Health.Status}}", &container];
        clock::wait_until(&format!("{service} to be healthy"), Duration::from_secs(60), || {
            engine.docker(&health).is_ok_and(|said| said.trim() == "healthy")
        })?;
    }
    clock::wait_until("the published port to serve", Duration::from_secs(20), || {
        lab.honest.get(HONEST.v4()).is_ok_and(|answer| answer == Answer::Status(200))
    })
}

/// Floods until nothing comes through any more; gives the seconds that took.
fn flood(lab: &Lab) -> Result<f64> {
    let flood = Traffic::start(&lab.attacker, Plan::new(ATTACKER.v4(), 50.0));
    flood.wait_for_cut(flood.began, Duration::from_secs(30))?;
    let seconds = super::end_to_end::seconds_to_cut(&flood);
    let attempts = flood.stop()?;
    ensure!(attempts.iter().any(|a| a.answer == Answer::Status(200)), "the flood was never served: {attempts:?}");
    Ok(seconds)
}

fn in_xdp(lab: &Lab, engine: &Engine<'_>, settings: &[(&str, String)]) -> Result<()> {
    up(lab, engine, settings)?;
    let status = engine.json(&["status"])?;
    ensure!(status["enforcer"] == "xdp" && status["xdp_mode"] == "native", "{status}");
    ensure!(status["interfaces"][0]["name"] == INTERFACE, "not on the host's interface: {status}");

    let seconds = flood(lab)?;
    let bans = engine.json(&["bans"])?;
    let row = &bans[0];
    // Its own address, not the bridge's, and nobody else's.
    ensure!(bans.as_array().is_some_and(|all| all.len() == 1) && row["ip"] == ATTACKER.v4, "{bans}");
    ensure!(row["enforcer"] == "xdp", "{bans}");
    ensure!(seconds <= 15.0, "dropped only {seconds:.1} s after its first request");
    clock::wait_until("dropped packets to be counted", Duration::from_secs(20), || {
        engine.json(&["bans"]).is_ok_and(|bans| bans[0]["packets"].as_u64() > Some(0))
    })?;
    ensure!(!engine.rules("DOCKER-USER")?.contains(ATTACKER.v4), "XDP needs no rule");
    ensure!(lab.honest.get(HONEST.v4())? == Answer::Status(200), "the honest client is refused");
    unban(lab, engine)?;
    down(lab, engine, settings)
}

fn by_rules(lab: &Lab, engine: &Engine<'_>, settings: &[(&str, String)]) -> Result<()> {
    up(lab, engine, settings)?;
    let status = engine.json(&["status"])?;
    ensure!(status["enforcer"] == "iptables", "{status}");
    ensure!(status["degraded"].as_array().is_some_and(|all| all.iter().any(|d| d["what"] == "fallback")), "{status}");

    flood(lab)?;
    let source = format!("-s {}/32 ", ATTACKER.v4);
    let ours = |chain: &str| -> Result<Vec<String>> {
        Ok(engine.rules(chain)?.lines().filter(|rule| rule.contains(&source)).map(str::to_owned).collect())
    };
    for chain in ["INPUT", "DOCKER-USER"] {
        let rules = ours(chain)?;
        ensure!(rules.len() == 1 && rules[0].ends_with("-j DROP"), "{chain}: {rules:?}");
    }
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "banned, and served");

    // INPUT alone, with anomaly stopped in its tracks so that it repairs nothing: the flood comes through.
    engine.docker(&["pause", &Engine::container("anomaly")])?;
    let rule = ours("DOCKER-USER")?.remove(0);
    let words = run(lab.server.command("sh").args(["-c", &format!("iptables -w {}", rule.replacen("-A", "-D", 1))]));
    words.context("somebody removes the rule")?;
    ensure!(ours("INPUT")?.len() == 1 && ours("DOCKER-USER")?.is_empty(), "the wrong rule was removed");
    let alone = lab.attacker.get(ATTACKER.v4())?;
    ensure!(alone == Answer::Status(200), "INPUT is not supposed to see a published container's traffic: {alone:?}");
    engine.docker(&["unpause", &Engine::container("anomaly")])?;
    clock::wait_until("the rule to be repaired", Duration::from_secs(90), || {
        ours("DOCKER-USER").is_ok_and(|rules| rules.len() == 1)
    })?;
    ensure!(lab.attacker.get(ATTACKER.v4())? == Answer::NoConnection, "repaired, and served");

    unban(lab, engine)?;
    for chain in ["INPUT", "DOCKER-USER"] {
        ensure!(ours(chain)?.is_empty(), "{chain} after the unban: {:?}", ours(chain)?);
    }
    down(lab, engine, settings)
}

fn unban(lab: &Lab, engine: &Engine<'_>) -> Result<()> {
    engine.anomaly(&["unban", ATTACKER.v4])?;
    clock::wait_until("the unbanned client to be served", Duration::from_secs(20), || {
        lab.attacker.get(ATTACKER.v4()).is_ok_and(|answer| answer == Answer::Status(200))
    })
}

/// Takes the stack away while a ban is in force, and looks for what is left.
fn down(lab: &Lab, engine: &Engine<'_>, settings: &[(&str, String)]) -> Result<()> {
    engine.anomaly(&["ban", ATTACKER.v4])?;
    engine.compose(settings, &["down", "--volumes"])?;
    engine.holds_nothing()?;
    let link = lab.server.ip(&format!("-details link show {INTERFACE}"))?;
    ensure!(!link.contains("xdp"), "XDP after `down`: {link}");
    let rules = run(&mut lab.server.command("iptables-save"))?;
    ensure!(!rules.contains("anomaly"), "rules after `down`: {rules}");
    // The kernel's own two files are in every bpffs.
    let find = ["/sys/fs/bpf", "-mindepth", "1", "!", "-name", "*.debug"];
    let pins = run(lab.server.command("find").args(find))?;
    ensure!(pins.is_empty(), "pins after `down`: {pins}");
    Ok(())
}
