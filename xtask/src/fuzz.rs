//! Fuzzing with cargo-fuzz: makes the first inputs of every target from real logs and from what the repository ships, then runs
//! one target after the other on one processor, and says what each has executed and covered.
//!
//! Not part of `cargo xtask test`: it needs a tool of its own, and what it finds depends on the time it is given.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use wait4::Wait4;

use crate::cargo::root;
use crate::lab::{clock, history};

/// Fuzzes the parsers of log lines, configuration, API and control socket, and prints a table. Needs cargo-fuzz.
#[derive(clap::Args)]
pub struct Args {
    /// Minutes of processor time, in sum over all targets.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    minutes: u32,
    /// Logs whose lines are the first inputs; by default a few lines of each format.
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
    /// Only these targets, separated by commas.
    #[arg(long, value_name = "TARGET", value_delimiter = ',', value_parser = TARGETS)]
    only: Vec<String>,
}

const TARGETS: [&str; 7] = ["record", "record_agrees", "record_fields", "config", "api", "control", "answers"];
/// Lines of a log that become inputs: many of them, one like the other, teach nothing more.
const LINES: usize = 500;
/// A target runs for so long at a time, so that its processor time can be counted.
const SLICE: Duration = Duration::from_secs(60);

/// A line in each of the formats that are not ours.
const OTHER_LINES: [&str; 4] = [
    r#"{"level":"info","ts":1777281951.25,"request":{"remote_ip":"10.0.0.1","client_ip":"203.0.113.7","method":"GET","uri":"/a?b=c","headers":{"User-Agent":["curl \"x\""]}},"size":153,"status":404}"#,
    r#"{"ClientHost":"203.0.113.7","DownstreamContentSize":153,"DownstreamStatus":404,"RequestMethod":"GET","RequestPath":"/a","time":"2026-04-27T10:25:51+01:00"}"#,
    r#"{"start_time":"2026-04-27T09:25:51.250Z","downstream_remote_address":"[2001:db8::1]:52316","method":"GET","path":"/a","response_code":404,"bytes_sent":153}"#,
    r#"203.0.113.7 - a [27/Apr/2026:10:25:51 +0100] "GET /a?b=c HTTP/1.1" 404 153 "-" "curl \x22x\x22""#,
];
/// `log.fields`: keys of one's own, and a line with their places.
const FIELDS: &str = concat!(
    "who when how what code size\n",
    r#"{"$1":"203.0.113.7","$2":"2026-04-27T10:25:51+01:00","$3":"GET","$4":"/x?y=\u00e9","$5":"404","$6":153}"#
);
/// Each kind of request, with and without a body.
const REQUESTS: [&str; 12] = [
    "GET /api/v1/status",
    "GET /api/v1/bans?limit=3",
    "GET /api/v1/bans/203.0.113.0%2F24",
    "GET /api/v1/top?limit=10",
    "GET /api/v1/baseline",
    "GET /api/v1/history?range=24h",
    "GET /api/v1/openapi.json",
    "GET /metrics",
    "GET /ip/2001:db8::1",
    "DELETE /api/v1/bans/203.0.113.10",
    "POST /api/v1/bans\n{\"ip\":\"2001:db8::/64\",\"duration_secs\":3600,\"reason\":\"by hand\",\"force\":false}",
    "POST /api/v1/bans\n{\"ip\":\"203.0.113.77\",\"permanent\":true}",
];
/// Rows as the daemon sends them.
const ANSWERS: [&str; 4] = [
    r#"[{"time":"2026-04-27T09:25:51Z","action":"ban","ip":"203.0.113.10","rule":"rate_multiplier","error_surge":false,"rate":14.2,"baseline":{"scope":"ip","mean":0.4,"stddev":0.6,"source":"rolling"},"z_score":23.0,"offence":1,"duration_secs":600,"since":"2026-04-27T09:25:51Z","until":null,"origin":"detector","reason":"why","enforcer":"xdp","packets":1,"bytes":2}]"#,
    r#"[{"ip":"203.0.113.10","rate":14.2,"requests":852,"error_ratio":0.1,"z_score":23.0,"limit":2.0,"share":0.3,"banned":true}]"#,
    r#"{"version":"1","enforcer":"xdp","xdp_mode":"native","uptime_secs":7,"enforcement_ratio":1.0,"interfaces":[{"name":"eth0","mode":"native","reason":null}],"degraded":[{"what":"slack","reason":"down","since":"2026-04-27T09:25:51Z"}],"baseline":{"mean":1.0,"stddev":0.1,"source":"hour","limit":9.0}}"#,
    r#"{"ip":"203.0.113.10","active":[],"now":null,"bans":[{"ip":"203.0.113.10","time":"2026-04-27T09:25:51Z","state":"expired","samples":[{"time":"t","method":"GET","path":"/","status":404}],"packets":1,"bytes":2}],"allowlisted_by":"203.0.113.0/24"}"#,
];

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    let fuzz = root().join("anomaly/fuzz");
    for target in TARGETS {
        let dir = fuzz.join("corpus").join(target);
        fs::create_dir_all(&dir)?;
        for (n, input) in seeds(target, &args.log)?.iter().enumerate() {
            fs::write(dir.join(format!("seed-{n:03}")), input)?;
        }
    }
    let built = fuzz.join("target");
    let mut build = Command::new("cargo-fuzz");
    // Nothing here is unsafe, so there is nothing for a sanitizer to find; without one it runs several times as fast.
    build
        .args(["fuzz", "build", "--sanitizer", "none", "--target-dir"])
        .arg(&built)
        .current_dir(root().join("anomaly"));
    let status = build.env("RUSTC_BOOTSTRAP", "1").status().context("no cargo-fuzz: cargo install cargo-fuzz")?;
    if !status.success() {
        bail!("the targets could not be built");
    }
    let targets: Vec<&str> =
        TARGETS.into_iter().filter(|t| args.only.is_empty() || args.only.iter().any(|only| only == t)).collect();
    let share = Duration::from_secs(u64::from(args.minutes) * 60) / u32::try_from(targets.len())?;
    println!("| target | processor seconds | executions | edges covered | inputs kept |\n|---|--:|--:|--:|--:|");
    for target in targets {
        let program = program(&built, target)?;
        let (mut used, mut executions, mut covered) = (Duration::ZERO, 0, String::new());
        while used < share {
            let slice = SLICE.min(share - used).max(Duration::from_secs(1));
            let said = fuzz.join(format!("artifacts/{target}.out"));
            used += run_slice(&fuzz, &program, target, slice, &said)?;
            let output = String::from_utf8_lossy(&fs::read(&said)?).into_owned();
            executions += last_number(&output, "stat::number_of_executed_units:").unwrap_or(0);
            covered = last_number(&output, " cov: ").map(|edges| edges.to_string()).unwrap_or(covered);
        }
        let kept = fs::read_dir(fuzz.join("corpus").join(target))?.count();
        println!("| {target} | {:.0} | {executions} | {covered} | {kept} |", used.as_secs_f64());
    }
    Ok(())
}

/// One run of a target, and the processor time it has used.
fn run_slice(fuzz: &Path, program: &Path, target: &str, slice: Duration, said: &Path) -> Result<Duration> {
    let artifacts = fuzz.join("artifacts").join(target);
    fs::create_dir_all(&artifacts)?;
    let mut command = Command::new("nice");
    command.args(["-n", "10"]).arg(program).arg(fuzz.join("corpus").join(target));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={}", slice.as_secs()));
    command.args(["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(said)?).spawn()?;
    let used = child.wait4()?;
    if !used.status.success() {
        bail!(
            "{target} found something; the input is in {}, and what it said in {}",
            artifacts.display(),
            said.display()
        );
    }
    Ok(used.rusage.utime + used.rusage.stime)
}

/// cargo-fuzz builds for a named target, which is the host's.
fn program(built: &Path, target: &str) -> Result<PathBuf> {
    let hosts = fs::read_dir(built)?.filter_map(Result::ok).map(|entry| entry.path().join("release").join(target));
    hosts
        .filter(|program| program.is_file())
        .max_by_key(|p| p.metadata().and_then(|m| m.modified()).ok())
        .with_context(|| format!("cargo-fuzz has built no {target} in {}", built.display()))
}

/// The number behind the last `label`.
fn last_number(output: &str, label: &str) -> Option<u64> {
    let (_, rest) = output.rsplit_once(label)?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The first inputs of a target.
fn seeds(target: &str, logs: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let owned = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    Ok(match target {
        "record" | "record_agrees" => {
            let mut lines = owned(&OTHER_LINES);
            let example = history::quiet(clock::epoch_secs(), 1, 0);
            lines.extend(example.lines().take(10).map(|line| line.as_bytes().to_vec()));
            for log in logs {
                let text = fs::read(log).with_context(|| log.display().to_string())?;
                lines.extend(text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).take(LINES).map(<[u8]>::to_vec));
            }
            lines
        }
        "record_fields" => owned(&[FIELDS]),
        "config" => {
            let sample = fs::read_to_string(root().join("anomaly/src/config/sample.toml"))?;
            // What is commented out is as good a beginning as what is not.
            let all = sample.lines().map(|line| line.strip_prefix("#").filter(|l| l.contains(" = ")).unwrap_or(line));
            let open = all.collect::<Vec<_>>().join("\n");
            let shipped = fs::read(root().join("compose/anomaly.toml"))?;
            let variables =
                b"ANOMALY_BANS__DURATIONS=5s,permanent\nANOMALY_ALLOWLIST=192.0.2.1\n-\n[log]\npaths = [\"/a\"]\n";
            vec![
                without_files(&sample),
                without_files(&open),
                without_files(&String::from_utf8_lossy(&shipped)),
                variables.to_vec(),
            ]
        }
        "api" => owned(&REQUESTS),
        "control" => REQUESTS.into_iter().map(on_the_wire).collect(),
        _ => {
            let body =
                |json: &&str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len()).into_bytes();
            owned(&ANSWERS).into_iter().chain(ANSWERS.iter().map(body)).collect()
        }
    })
}

/// The target leaves texts alone that name files with secrets.
fn without_files(text: &str) -> Vec<u8> {
    text.lines().filter(|line| !line.contains("_file")).collect::<Vec<_>>().join("\n").into_bytes()
}

/// A request as the command line sends it.
fn on_the_wire(request: &str) -> Vec<u8> {
    let (line, body) = request.split_once('\n').unwrap_or((request, ""));
    let length = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    };
    format!("{line} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}").into_bytes()
}
