//! Nginx, where it is to refuse banned clients (`nginx.deny_map`): whether it reads the list, and stands being reloaded.
//!
//! Asked of `nginx -T`, which changes nothing. Other parts of its configuration are nobody's business here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Check;
use crate::config::Config;

/// How long `nginx -T` may take: it resolves the names of its upstreams.
const PATIENCE: Duration = Duration::from_secs(10);
/// Old workers that may stay longer than this are too many after a few reloads.
const LONGEST_SHUTDOWN: u64 = 60;

const SET_IT: &str =
    "set `worker_shutdown_timeout 10s;` at the top of nginx.conf, outside of http {}, and reload Nginx";

pub(super) fn run(config: &Config) -> Vec<Check> {
    let Some(list) = &config.nginx.deny_map else { return Vec::new() };
    let Some(program) = find() else {
        let detail = "nginx is not installed here, so how it reads nginx.deny_map cannot be checked";
        let next = "where it runs, let its configuration include the list (nginx/deny.conf) and have `worker_shutdown_timeout 10s;`";
        return vec![Check::warn("nginx", detail, next)];
    };
    match dump(&program) {
        Ok(text) => judge(&text, &command_line(config.nginx.pid_file.as_deref()), list),
        Err(error) => {
            vec![Check::warn("nginx", format!("`nginx -T`: {error}"), "repair what it names; doctor needs root for it")]
        }
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir| dir.join("nginx")).find(|program| program.is_file())
}

/// What `nginx -T` prints, or its last words.
fn dump(program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(["-T", "-q"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| error.to_string())?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (send, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = send.send(child.wait_with_output());
    });
    let Ok(output) = answer.recv_timeout(PATIENCE) else {
        // It has not been waited for, so the number is still its own.
        let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        return Err(format!("no answer in {} s", PATIENCE.as_secs()));
    };
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let words = said.lines().find(|line| line.contains("[emerg]")).or_else(|| said.lines().next_back());
    Err(words.unwrap_or("it failed").to_owned())
}

/// Of the running master process, which may have been given directives by `-g`; empty where none runs.
fn command_line(pid_file: Option<&Path>) -> String {
    let read = || {
        let pid: u32 = std::fs::read_to_string(pid_file?).ok()?.trim().parse().ok()?;
        std::fs::read(format!("/proc/{pid}/cmdline")).ok()
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).replace('\0', " ")
}

fn judge(dump: &str, command_line: &str, list: &Path) -> Vec<Check> {
    let place = list.display();
    if !dump.lines().any(|line| line == format!("# configuration file {place}:")) {
        let next = "include it in a geo block (nginx/deny.conf), and refuse $anomaly_denied in each server";
        let detail =
            format!("its configuration does not include {place}: banned clients behind a proxy are not refused");
        return vec![Check::fail("nginx", detail, next)];
    }
    let found = shutdown_timeout(dump).or_else(|| {
        let (_, given) = command_line.split_once("worker_shutdown_timeout ")?;
        Some(given.split(';').next()?.trim())
    });
    let Some(text) = found else {
        let detail = "worker_shutdown_timeout is not set: each reload for a ban leaves workers that stay as long as their slowest client";
        return vec![Check::warn("nginx", detail, SET_IT)];
    };
    match seconds(text) {
        Some(secs) if (1..=LONGEST_SHUTDOWN).contains(&secs) => {
            vec![Check::ok(
                "nginx",
                format!("it reads {place}, and old workers end in {text} (worker_shutdown_timeout)"),
            )]
        }
        _ => {
            let detail =
                format!("worker_shutdown_timeout is {text}: old workers stay too long after a reload for a ban");
            vec![Check::warn("nginx", detail, SET_IT)]
        }
    }
}

/// The value of the directive in a configuration.
fn shutdown_timeout(dump: &str) -> Option<&str> {
    let value = |line: &'_ str| -> Option<usize> {
        let code = line.split('#').next()?;
        let at = code.find("worker_shutdown_timeout")?;
        let before = code[..at].trim_end();
        (before.is_empty() || before.ends_with([';', '}'])).then_some(at + "worker_shutdown_timeout".len())
    };
    dump.lines().find_map(|line| line.get(value(line)?..)?.split(';').next().map(str::trim))
}

/// A time as Nginx writes it: `10s`, `1m`, `1m 30s`, `500ms`; a number alone is seconds.
fn seconds(text: &str) -> Option<u64> {
    let mut total = 0u64;
    for word in text.split_whitespace() {
        let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
        let (number, unit) = word.split_at(digits);
        let number: u64 = number.parse().ok()?;
        total += match unit {
            "" | "s" => number,
            "ms" => number.div_ceil(1000),
            "m" => number.checked_mul(60)?,
            "h" => number.checked_mul(3600)?,
            "d" => number.checked_mul(86_400)?,
            _ => return None,
        };
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const LIST: &str = "/var/lib/nginx-deny/anomaly.list";

    fn judged(main: &str, command_line: &str) -> Check {
        let dump = format!(
            "# configuration file /etc/nginx/nginx.conf:\n{main}\nhttp {{ }}\n# configuration file {LIST}:\n203.0.113.1/32 1;\n"
        );
        let [check] = &judge(&dump, command_line, Path::new(LIST))[..] else { panic!("one check") };
        check.clone()
    }

    #[test]
    fn old_workers_must_end() {
        for (main, level, words) in [
            ("", Level::Warn, "is not set"),
            ("# worker_shutdown_timeout 10s;", Level::Warn, "is not set"),
            ("worker_shutdown_timeout 10s;", Level::Ok, "end in 10s"),
            ("user www; worker_shutdown_timeout  30;", Level::Ok, "end in 30 "),
            ("\tworker_shutdown_timeout 1h; # long", Level::Warn, "is 1h"),
            ("worker_shutdown_timeout 0;", Level::Warn, "is 0"),
            ("worker_shutdown_timeout $x;", Level::Warn, "is $x"),
        ] {
            let check = judged(main, "nginx: master process /usr/sbin/nginx");
            assert!(check.status == level && check.detail.contains(words), "{main}: {check:?}");
        }
        let check = judged("", "nginx: master process nginx -g daemon off; worker_shutdown_timeout 10s; ");
        assert!(check.status == Level::Ok && check.detail.contains("end in 10s"), "{check:?}");
    }

    #[test]
    fn a_list_that_nobody_includes_refuses_nobody() {
        let [check] = &judge("http { }\nworker_shutdown_timeout 10s;\n", "", Path::new(LIST))[..] else {
            panic!("one check")
        };
        assert!(check.status == Level::Fail && check.detail.contains("does not include"), "{check:?}");
    }
}
