//! The command line: arguments, logging, exit codes. The daemon is the library.

mod cli;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anomaly::config::presets::Preset;
use anomaly::config::{self, ConfigError, Loaded};
use anomaly::enforce::{EnforceError, deny_map, iptables, xdp};
use anomaly::engine::BanLength;
use anomaly::store::StoreError;
use anomaly::{daemon, doctor};
use anyhow::{Context, Result, anyhow};
use clap::{CommandFactory, Parser};
use reqwest::Method;
use serde_json::json;

use cli::args::{self, Cli, Command};
use cli::ask::{ask, segment};
use cli::print::{Printer, show, text};
use cli::settings::Settings;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("anomaly: {}", in_one_line(&error));
            // A database that this program must not touch is as much the operator's to mend as a wrong key: trying again, as
            // systemd would after a 1, changes nothing.
            let usage = error.downcast_ref::<ConfigError>().is_some()
                || error.downcast_ref::<StoreError>().is_some_and(StoreError::is_fatal);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// The error and its causes, without what has been told already: some errors name their cause themselves, some causes
/// the file that their context names.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if cause.starts_with(&text) {
            text = cause;
        } else if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

/// The configuration as `-c`, the environment and the allow-list's file say it.
fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    config::load(file, cli::variables())
}

/// For the commands that ask the daemon or take away what it has set: good or not.
fn settings(cli: &Cli) -> Settings {
    Settings::read(cli.config.as_deref())
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Run(args) => run(cli, args),
        Command::Replay(args) => cli::replay::run(load(cli.config.as_deref())?.config, args),
        Command::Status(args) => status(cli, args),
        Command::Bans(args) => get(cli, "/api/v1/bans", args.json, |p, v| p.bans(v, daemon::now())),
        Command::Top(args) if args.watch => {
            cli::watch::top(settings(cli).socket())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Top(args) => get(cli, "/api/v1/top", args.json, |p, v| p.top(v)),
        Command::Explain(args) => {
            get(cli, &format!("/api/v1/bans/{}", segment(&args.ip)), args.json, |p, v| p.explain(v, daemon::now()))
        }
        Command::Ban(args) => ban(cli, args),
        Command::Unban(args) => unban(cli, args),
        Command::Config(args::Config::Default) => {
            show(config::SAMPLE)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(args::Config::Check(args)) => check(cli, args),
        Command::Config(args::Config::Realip { cdn }) => {
            // The parser knows the same names.
            show(&Preset::named(cdn).map(Preset::realip).unwrap_or_default())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(args) => examine(cli, args),
        Command::Off(args) => off(cli, args),
        Command::Down(args) => down(cli, args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "anomaly", &mut text);
            show(&String::from_utf8_lossy(&text))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => {
            show(&cli::manual::page(Cli::command())?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run(cli: &Cli, args: &args::Run) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    // SIGHUP does the same again: file, environment, and what the arguments say before both.
    let load = {
        let (file, args) = (cli.config.clone(), args.clone());
        move || {
            let mut loaded = load(file.as_deref())?;
            let config = &mut loaded.config;
            if !args.log.is_empty() {
                config.log.paths.clone_from(&args.log);
            }
            if !args.interface.is_empty() {
                config.enforcer.interfaces.clone_from(&args.interface);
            }
            if let Some(backend) = args.backend {
                config.enforcer.backend = backend.into();
            }
            Ok(loaded)
        }
    };
    daemon::run(load()?, Box::new(load))?;
    Ok(ExitCode::SUCCESS)
}

fn get(
    cli: &Cli,
    path: &str,
    as_json: bool,
    print: impl FnOnce(&Printer, &serde_json::Value) -> String,
) -> Result<ExitCode> {
    let value = ask(settings(cli).socket(), Method::GET, path, None)?.ok()?;
    show(&if as_json { format!("{value}\n") } else { print(&Printer::new(), &value) })?;
    Ok(ExitCode::SUCCESS)
}

fn status(cli: &Cli, args: &args::Status) -> Result<ExitCode> {
    let status = ask(settings(cli).socket(), Method::GET, "/api/v1/status", None)?.ok()?;
    show(&if args.json { format!("{status}\n") } else { Printer::new().status(&status) })?;
    let lost = args.check && status["unhealthy"].is_string();
    Ok(if lost { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Fails when some check does; with 2, as elsewhere, where that is the configuration.
fn examine(cli: &Cli, args: &args::Show) -> Result<ExitCode> {
    let file = cli.config.as_deref();
    let settings = match load(file) {
        Ok(loaded) => Settings::of(loaded.config),
        Err(error) => Settings::salvaged(file, &error),
    };
    let live = ask(settings.socket(), Method::GET, "/api/v1/status", None).and_then(cli::ask::Answer::ok).ok();
    let live = live.and_then(|status| serde_json::from_value(status).ok());
    let mut checks: Vec<doctor::Check> = settings.refused.as_deref().map(doctor::refused).into_iter().collect();
    checks.extend(doctor::run(&settings.config, live.as_ref(), daemon::now()));
    if args.json {
        show(&format!("{}\n", serde_json::to_string(&checks)?))?;
    } else {
        show(&Printer::new().checks(&checks))?;
    }
    if settings.refused.is_some() {
        return Ok(ExitCode::from(2));
    }
    let failed = checks.iter().any(|check| check.status == doctor::Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn ban(cli: &Cli, args: &args::Ban) -> Result<ExitCode> {
    let settings = settings(cli);
    let mut body = json!({ "ip": anomaly::report::ip_text(&args.ip), "reason": args.reason, "force": args.force });
    // A daemon from before an update, which still runs, does not know it.
    if args.replace {
        body["replace"] = true.into();
    }
    match args.length {
        Some(BanLength::Timed(length)) => body["duration_secs"] = length.as_secs().into(),
        Some(BanLength::Permanent) => body["permanent"] = true.into(),
        None => {}
    }
    let ban = ask(settings.socket(), Method::POST, "/api/v1/bans", Some(&body))?.ok()?;
    if args.json {
        show(&format!("{ban}\n"))?;
    } else {
        let until =
            if ban["until"].is_null() { "permanently".into() } else { format!("until {}", text(&ban["until"])) };
        let but = if daemon::is_off(settings.socket()) {
            "; but dropping is off until `anomaly run` is started again"
        } else if ban["enforcer"] == "dry-run" {
            "; dry-run, so nothing is dropped"
        } else {
            ""
        };
        let (ip, offence) = (text(&ban["ip"]), text(&ban["offence"]));
        show(&if ban["kept"] == true {
            let reason = text(&ban["reason"]);
            format!(
                "{ip} stays banned {until} (offence {offence}: {reason}), no shorter than asked for; --replace changes it{but}\n"
            )
        } else {
            format!("{ip} is banned {until} (offence {offence}){but}\n")
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unban(cli: &Cli, args: &args::Unban) -> Result<ExitCode> {
    let path = format!("/api/v1/bans/{}", segment(&args.ip));
    let lifted = ask(settings(cli).socket(), Method::DELETE, &path, None)?.ok()?;
    if args.json {
        show(&format!("{lifted}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    for ban in lifted.as_array().into_iter().flatten() {
        match ban["still_refused"].as_str() {
            None => show(&format!("the ban of {} is lifted\n", text(&ban["ip"])))?,
            Some(_) => {
                show(&format!("the ban of {} has ended, but {}\n", text(&ban["ip"]), text(&ban["still_refused"])))?
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(cli: &Cli, args: &args::Check) -> Result<ExitCode> {
    let file = match (&args.file, &cli.config) {
        (Some(file), Some(other)) if file != other => {
            let message = format!("{} and -c {}: which of them is to be checked?", file.display(), other.display());
            Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message).exit()
        }
        (given, option) => given.as_deref().or(option.as_deref()),
    };
    let loaded = load(file)?;
    let missing = loaded.config.log.paths.iter().filter(|p| !p.exists());
    let mut notes: Vec<String> =
        missing.map(|log| format!("{} does not exist (yet); `run` waits for it", log.display())).collect();
    if loaded.config.allowlist.is_empty() {
        notes.push("allowlist is empty; put your own address there".into());
    }
    if args.json {
        let found = json!({ "file": loaded.path, "overridden": loaded.overridden, "notes": notes });
        show(&format!("{found}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = loaded.path.as_ref().map_or_else(|| "the built-in defaults".to_owned(), |p| p.display().to_string());
    let overridden = loaded.overridden.iter().map(|name| format!("overridden by {name}\n"));
    let notes = notes.iter().map(|note| format!("note: {note}\n"));
    show(&format!("{place}: good\n{}", overridden.chain(notes).collect::<String>()))?;
    Ok(ExitCode::SUCCESS)
}

/// What `off` and `down` have done, and what they could not do. A failure of one does not keep the others from being done.
#[derive(Default)]
struct Doings {
    done: Vec<String>,
    failed: Vec<anyhow::Error>,
}

impl Doings {
    /// Takes note of how one went.
    fn note<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.failed.push(error)).ok()
    }

    /// For people, or as `{"done":[...]}`, with `failed` where something did. Only what was seen to be so is said.
    fn tell(self, args: &args::Show, nothing: &str, whole: &str, may_be: &str) -> Result<ExitCode> {
        let Self { done, failed } = self;
        let failed: Vec<String> = failed.into_iter().map(|error| in_one_line(&not_root(error))).collect();
        let list = done.join(", ");
        show(&match (args.json, done.is_empty(), failed.is_empty()) {
            (true, _, true) => format!("{}\n", json!({ "done": done })),
            (true, _, false) => format!("{}\n", json!({ "done": done, "failed": failed })),
            (false, true, true) => format!("{nothing}\n"),
            (false, false, true) => whole.replace("{}", &list) + "\n",
            (false, true, false) => String::new(),
            (false, false, false) => format!("done: {list}\n"),
        })?;
        if failed.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(anyhow!("{may_be}: {}", failed.join("; "))) }
    }
}

fn off(cli: &Cli, args: &args::Show) -> Result<ExitCode> {
    let settings = settings(cli);
    let mut doings = Doings::default();
    // First, so that a running daemon does not repair what is taken away.
    let marked: Vec<_> = settings.sockets().iter().map(|socket| daemon::mark_off(socket)).collect();
    let mut xdp = false;
    // One directory that cannot be written must not keep the others dropping, nor the rules.
    for pin_dir in settings.pin_dirs() {
        xdp |= doings.note(xdp::off(&pin_dir).map_err(Into::into)) == Some(true);
    }
    doings.done.extend(xdp.then(|| "XDP passes everything".to_owned()));
    take_rules_away(&settings, &mut doings);
    let marked = marked.into_iter().collect::<io::Result<()>>();
    doings.note(marked.context("a running daemon could not be told, and may drop again within a minute: stop it"));
    doings.tell(
        args,
        "nothing of anomaly was dropping anything",
        "dropping is off: {}; the next `anomaly run` turns it on again",
        "packets may STILL be dropped",
    )
}

fn down(cli: &Cli, args: &args::Show) -> Result<ExitCode> {
    let settings = settings(cli);
    let mut doings = Doings::default();
    let (mut interfaces, mut maps, mut in_use) = (Vec::new(), 0, None);
    for pin_dir in settings.pin_dirs() {
        match xdp::down(&pin_dir) {
            Ok(removed) => {
                interfaces.extend(removed.interfaces);
                maps += removed.maps;
            }
            Err(EnforceError::InUse(directory, pid)) => {
                in_use = Some(anyhow!(
                    "a daemon (pid {pid}) uses {directory}: stop it first (systemctl stop anomaly); \
                     `anomaly off` stops dropping while it runs"
                ));
            }
            Err(error) => doings.failed.push(error.into()),
        }
    }
    if let Some(error) = in_use {
        return Err(error);
    }
    take_rules_away(&settings, &mut doings);
    if !interfaces.is_empty() {
        doings.done.push(format!("detached from {}", interfaces.join(", ")));
    }
    if maps > 0 {
        doings.done.push(format!("{maps} maps removed"));
    }
    doings.tell(
        args,
        "nothing of anomaly is in the kernel",
        "{}",
        "something of anomaly may be left, and may STILL drop packets",
    )
}

/// Why the kernel refused, where that is plain.
fn not_root(error: anyhow::Error) -> anyhow::Error {
    if rustix::process::geteuid().is_root() { error } else { error.context("this needs root, which you are not") }
}

/// Takes away whatever is not XDP.
fn take_rules_away(settings: &Settings, doings: &mut Doings) {
    let (removed, failed) = iptables::remove_what_goes();
    doings.failed.extend(failed.into_iter().map(Into::into));
    let listed = doings.note(deny_map::clear(&settings.nginx()).map_err(Into::into)).unwrap_or_default();
    let counts = [
        (removed.rules, "iptables rules removed"),
        (removed.sets, "ipsets removed"),
        (usize::from(listed), "deny list of Nginx emptied"),
    ];
    doings.done.extend(counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_each_thing_once() {
        let told = |causes: &[&str]| {
            let mut causes = causes.iter().rev().map(ToString::to_string);
            let first = anyhow!(causes.next().unwrap());
            in_one_line(&causes.fold(first, |error, context| error.context(context)))
        };
        assert_eq!(told(&["/a.db", "/a.db: permission denied", "permission denied"]), "/a.db: permission denied");
        assert_eq!(told(&["/a.db", "permission denied"]), "/a.db: permission denied");
        assert_eq!(told(&["no daemon", "socket: refused"]), "no daemon: socket: refused");
    }
}
