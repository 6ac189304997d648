//! The command line: arguments, logging, exit codes. The daemon is the library.

mod cli;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anomaly::config::{self, ConfigError, Loaded};
use anomaly::enforce::{deny_map, iptables, xdp};
use anomaly::engine::{BanLength, State};
use anomaly::record::Format;
use anomaly::replay::{Replay, Report};
use anomaly::report::DecisionRow;
use anomaly::{daemon, doctor, store};
use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::json;

use cli::args::{self, Cli, Command};
use cli::ask::{ask, segment};
use cli::print::{Printer, show};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("anomaly: {}", in_one_line(&error));
            let usage = error.downcast_ref::<ConfigError>().is_some();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// The error and its causes, without a cause that has been told already: some errors name theirs themselves.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

/// The configuration as `-c` and the environment say it.
fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let variables = std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
    config::load(file, variables)
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Run(args) => run(cli, args),
        Command::Replay(args) => replay(cli, args),
        Command::Status(args) => get(cli, "/api/v1/status", args.json, |p, v| p.status(v)),
        Command::Bans(args) => get(cli, "/api/v1/bans", args.json, |p, v| p.bans(v)),
        Command::Top(args) if args.watch => watch_top(cli),
        Command::Top(args) => get(cli, "/api/v1/top", args.json, |p, v| p.top(v)),
        Command::Explain(args) => {
            get(cli, &format!("/api/v1/bans/{}", segment(&args.ip)), args.json, |p, v| p.explain(v))
        }
        Command::Ban(args) => ban(cli, args),
        Command::Unban(args) => unban(cli, args),
        Command::Config(args::Config::Default) => {
            show(config::SAMPLE)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(args::Config::Check) => check(cli),
        Command::Doctor(args) => examine(cli, args),
        Command::Off => off(cli),
        Command::Down => down(cli),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "anomaly", &mut text);
            show(&String::from_utf8_lossy(&text))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).section("8").render(&mut text)?;
            show(&String::from_utf8_lossy(&text))?;
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

fn replay(cli: &Cli, args: &args::Replay) -> Result<ExitCode> {
    let stopwatch = daemon::stopwatch();
    let config = load(cli.config.as_deref())?.config;
    let format = args.format.as_deref().and_then(Format::from_name).unwrap_or(config.log.format);
    let mut replay = Replay::new(config.engine);
    if let Some(path) = &args.baseline {
        let baseline = store::read_baseline(path).with_context(|| path.display().to_string())?;
        let state = State { baseline, ..State::default() };
        let bad = || format!("{}: its baseline is not of this version of anomaly", path.display());
        replay.engine().restore(state).map_err(|_| anyhow::anyhow!(bad()))?;
    }
    let out = io::BufWriter::new(io::stdout().lock());
    let bar = progress_bar(&args.files);
    let finished = if args.json {
        let mut report = JsonReport { out, bar };
        let finished = replay.run(&args.files, &format, &mut report);
        finished.and_then(|()| {
            let summary = serde_json::to_string(&replay.summary(stopwatch()))?;
            Ok(writeln!(report.out, "{{\"summary\":{summary}}}").and_then(|()| report.out.flush())?)
        })
    } else {
        let mut report = TextReport { out, bar };
        let finished = replay.run(&args.files, &format, &mut report);
        finished.and_then(|()| {
            let s = replay.summary(stopwatch());
            let rate = s.records_per_sec;
            let text = format!(
                "{} records ({} rejected, {} late) of up to {} clients at once: {} bans, {} unbans, {} records blocked, \
                 {} global anomalies; {:.2} s, {rate} records/s",
                s.records, s.rejected, s.late, s.tracked_ips_peak, s.bans, s.unbans, s.blocked, s.global_anomalies, s.elapsed_secs
            );
            Ok(writeln!(report.out, "{text}").and_then(|()| report.out.flush())?)
        })
    };
    match finished {
        // Whoever reads has seen enough (`| head`).
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        other => other?,
    }
    if let Some(path) = &args.learn {
        let baseline = replay.engine().save().baseline;
        store::write_baseline(path, daemon::now(), &baseline).with_context(|| path.display().to_string())?;
        eprintln!("anomaly: the baseline is in {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// A bar on standard error, while that is a terminal and all sizes are known.
fn progress_bar(files: &[PathBuf]) -> ProgressBar {
    let sizes: Option<Vec<u64>> = files.iter().map(|f| std::fs::metadata(f).ok().map(|m| m.len())).collect();
    let total: u64 = sizes.unwrap_or_default().iter().sum();
    if total == 0 || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %, {bytes} of {total_bytes}, {eta} to go");
    let bar = ProgressBar::new(total);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Replay's rows as JSON Lines.
struct JsonReport<W: Write> {
    out: W,
    bar: ProgressBar,
}

impl<W: Write> Report for JsonReport<W> {
    fn row(&mut self, row: &DecisionRow, _reason: &str) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, row)?;
        self.out.write_all(b"\n")
    }

    fn progress(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
    }
}

/// Replay's rows for people.
struct TextReport<W: Write> {
    out: W,
    bar: ProgressBar,
}

impl<W: Write> Report for TextReport<W> {
    fn row(&mut self, row: &DecisionRow, reason: &str) -> io::Result<()> {
        let ip = row.ip.as_deref().unwrap_or("the site");
        let length = match row.duration_secs {
            Some(Some(secs)) => format!(" for {}", cli::print::span(secs as f64)),
            Some(None) => " permanently".into(),
            None => String::new(),
        };
        let offence = row.offence.map(|n| format!(", offence {n}")).unwrap_or_default();
        let colon = if reason.is_empty() { "" } else { ": " };
        writeln!(self.out, "{}  {:<14} {ip}{length}{offence}{colon}{reason}", row.time, row.action)
    }

    fn progress(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
    }
}

fn get(
    cli: &Cli,
    path: &str,
    as_json: bool,
    print: impl FnOnce(&Printer, &serde_json::Value) -> String,
) -> Result<ExitCode> {
    let config = load(cli.config.as_deref())?.config;
    let value = ask(&config.dashboard.socket, Method::GET, path, None)?.ok()?;
    show(&if as_json { format!("{value}\n") } else { print(&Printer::new(), &value) })?;
    Ok(ExitCode::SUCCESS)
}

fn watch_top(cli: &Cli) -> Result<ExitCode> {
    let config = load(cli.config.as_deref())?.config;
    let printer = Printer::new();
    loop {
        let status = ask(&config.dashboard.socket, Method::GET, "/api/v1/status", None)?.ok()?;
        let top = ask(&config.dashboard.socket, Method::GET, "/api/v1/top", None)?.ok()?;
        // Home, text, erase what is left of the last one: no flicker, no scrolling.
        show(&format!("\x1b[H{}\n{}\x1b[J", printer.status(&status), printer.top(&top)).replace('\n', "\x1b[K\n"))?;
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Fails when some check does.
fn examine(cli: &Cli, args: &args::Show) -> Result<ExitCode> {
    let config = load(cli.config.as_deref())?.config;
    let live = ask(&config.dashboard.socket, Method::GET, "/api/v1/status", None).and_then(cli::ask::Answer::ok).ok();
    let live = live.and_then(|status| serde_json::from_value(status).ok());
    let checks = doctor::run(&config, live.as_ref(), daemon::now());
    if args.json {
        show(&format!("{}\n", serde_json::to_string(&checks)?))?;
    } else {
        checks.iter().try_for_each(|check| show(&format!("{check}\n")))?;
    }
    let failed = checks.iter().any(|check| check.status == doctor::Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn ban(cli: &Cli, args: &args::Ban) -> Result<ExitCode> {
    let config = load(cli.config.as_deref())?.config;
    let mut body = json!({ "ip": anomaly::report::ip_text(&args.ip), "reason": args.reason, "force": args.force });
    match args.length {
        Some(BanLength::Timed(length)) => body["duration_secs"] = length.as_secs().into(),
        Some(BanLength::Permanent) => body["permanent"] = true.into(),
        None => {}
    }
    let ban = ask(&config.dashboard.socket, Method::POST, "/api/v1/bans", Some(&body))?.ok()?;
    if args.json {
        show(&format!("{ban}\n"))?;
    } else {
        let until = ban["until"].as_str().map_or_else(|| "permanently".to_owned(), |t| format!("until {t}"));
        let ip = ban["ip"].as_str().unwrap_or_default();
        show(&format!("{ip} is banned {until} (offence {})\n", ban["offence"]))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unban(cli: &Cli, args: &args::Unban) -> Result<ExitCode> {
    let config = load(cli.config.as_deref())?.config;
    let path = format!("/api/v1/bans/{}", segment(&args.ip));
    let lifted = ask(&config.dashboard.socket, Method::DELETE, &path, None)?.ok()?;
    if args.json {
        show(&format!("{lifted}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    for ban in lifted.as_array().into_iter().flatten() {
        show(&format!("the ban of {} is lifted\n", ban["ip"].as_str().unwrap_or_default()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(cli: &Cli) -> Result<ExitCode> {
    let loaded = load(cli.config.as_deref())?;
    let place = loaded.path.as_ref().map_or_else(|| "the built-in defaults".to_owned(), |p| p.display().to_string());
    let mut text = format!("{place}: good\n");
    for name in &loaded.overridden {
        text += &format!("overridden by {name}\n");
    }
    for log in loaded.config.log.paths.iter().filter(|p| !p.exists()) {
        text += &format!("note: {} does not exist (yet); `run` waits for it\n", log.display());
    }
    if loaded.config.allowlist.is_empty() {
        text += "note: allowlist is empty; put your own address there\n";
    }
    show(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn off(cli: &Cli) -> Result<ExitCode> {
    let config = load(cli.config.as_deref())?.config;
    // First, so that a running daemon does not repair what is taken away.
    let marked = daemon::mark_off(&config.dashboard.socket);
    let xdp = xdp::off(&config.enforcer.pin_dir)?;
    let mut said = rules_text(&config)?;
    if xdp {
        said.insert(0, "XDP passes everything".to_owned());
    }
    show(&if said.is_empty() {
        "nothing of anomaly was dropping anything\n".to_owned()
    } else {
        format!("dropping is off: {}; the next `anomaly run` turns it on again\n", said.join(", "))
    })?;
    marked.context("a running daemon could not be told, and may drop again within a minute: stop it")?;
    Ok(ExitCode::SUCCESS)
}

fn down(cli: &Cli) -> Result<ExitCode> {
    let config = load(cli.config.as_deref())?.config;
    let removed = xdp::down(&config.enforcer.pin_dir)?;
    let mut said = rules_text(&config)?;
    if !removed.interfaces.is_empty() {
        said.push(format!("detached from {}", removed.interfaces.join(", ")));
    }
    if removed.maps > 0 {
        said.push(format!("{} maps removed", removed.maps));
    }
    show(&if said.is_empty() {
        "nothing of anomaly is in the kernel\n".to_owned()
    } else {
        format!("{}\n", said.join(", "))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes away whatever is not XDP, and says what that was.
fn rules_text(config: &config::Config) -> Result<Vec<String>> {
    let removed = iptables::remove_all()?;
    let listed = deny_map::clear(&config.nginx)?;
    let counts = [
        (removed.rules, "iptables rules removed"),
        (removed.sets, "ipsets removed"),
        (usize::from(listed), "deny list of Nginx emptied"),
    ];
    Ok(counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect())
}
