//! From a file and the environment to a checked configuration, or to the error that says what is wrong and where.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Config;
use super::check::check;
use super::raw::Raw;

/// Why a configuration was not accepted. Secrets are never part of it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("the configuration file {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; with line and column.
    #[error("{place}: {message}")]
    Syntax {
        /// File, or environment variable.
        place: String,
        /// What was wrong.
        message: String,
    },
    /// Values that cannot be meant; all of them.
    #[error("{place}: {}", problems.join("\n"))]
    Values {
        /// File, or `built-in defaults`.
        place: String,
        /// One per value.
        problems: Vec<String>,
    },
}

/// A configuration and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The checked values.
    pub config: Config,
    /// The file, if there was one.
    pub path: Option<PathBuf>,
    /// Keys that the environment has overridden, as variable names.
    pub overridden: Vec<String>,
}

/// Loads the configuration as [`load_without_list`], and what `allowlist_file` lists: for commands that decide on bans or say
/// whether all is well.
///
/// # Errors
/// As [`load_without_list`], a line of `allowlist_file` that is none, and more exemptions than the kernel holds.
pub fn load(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let mut loaded = load_without_list(path, environment)?;
    super::allowlist::add_file(&mut loaded.config)?;
    let place = loaded.path.as_ref().map_or_else(|| "built-in defaults".to_owned(), |p| p.display().to_string());
    super::allowlist::check_room(&place, &loaded.config)?;
    Ok(loaded)
}

/// Loads the configuration: `path`, or [`super::DEFAULT_PATH`] where that exists, or the built-in defaults; then
/// `environment` (`ANOMALY_SECTION__KEY`) over it. `allowlist_file` is not read: a wrong line there must not keep
/// anybody from `off`, `down` and `unban`.
///
/// # Errors
/// [`ConfigError`]: unreadable file, unknown key, wrong type, a value out of its range.
pub fn load_without_list(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let path = configuration_path(path);
    let text = match &path {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?
        }
        None => String::new(),
    };
    let place = path.as_ref().map_or_else(|| "built-in defaults".to_owned(), |p| p.display().to_string());
    let (config, overridden) = parse(&place, &text, environment)?;
    Ok(Loaded { config, path, overridden })
}

/// The file that is read: `path`, or [`super::DEFAULT_PATH`] unless that is certainly not there.
pub(super) fn configuration_path(path: Option<&Path>) -> Option<PathBuf> {
    match path {
        Some(path) => Some(path.to_path_buf()),
        None => Some(PathBuf::from(super::DEFAULT_PATH)).filter(|path| !matches!(path.try_exists(), Ok(false))),
    }
}

/// Checks a configuration given as text; `place` names it in errors. Returns the names of the variables of
/// `environment` that were used.
///
/// # Errors
/// As [`load`].
pub fn parse(
    place: &str,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Config, Vec<String>), ConfigError> {
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        place: error.span().map_or_else(
            || place.to_owned(),
            |span| format!("{place}:{}", text[..span.start.min(text.len())].matches('\n').count() + 1),
        ),
        message: error.message().trim().to_owned(),
    };
    let mut raw: Raw = toml::from_str(text).map_err(syntax)?;
    let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
    let mut overridden = Vec::new();
    for (name, keys, value) in environment_of(environment) {
        (table, raw) = override_key(table, &name, &keys, &value)?;
        overridden.push(name);
    }
    let mut problems = Vec::new();
    let config = check(raw, &mut problems);
    if problems.is_empty() {
        Ok((config, overridden))
    } else {
        Err(ConfigError::Values { place: place.to_owned(), problems })
    }
}

/// The variables that are ours: name, keys and value, in a fixed order.
pub(super) fn environment_of(
    environment: impl IntoIterator<Item = (String, String)>,
) -> Vec<(String, Vec<String>, String)> {
    let mut variables: Vec<_> = environment.into_iter().filter_map(|(n, v)| key_path(&n).map(|k| (n, k, v))).collect();
    variables.sort();
    variables
}

/// Keys that are in no section.
const TOP_KEYS: [&str; 5] = ["name", "allowlist", "allowlist_file", "trusted_proxies", "trusted_proxies_presets"];

/// `ANOMALY_BANS__DURATIONS` -> `bans`, `durations`; `None` for variables that are not ours. The keys that are in no section
/// (`ANOMALY_ALLOWLIST`, ...) need no `__`; whatever else has none belongs to someone else (Kubernetes sets
/// `ANOMALY_PORT` for a service of that name).
fn key_path(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix("ANOMALY_")?.to_ascii_lowercase();
    let keys: Vec<String> = rest.split("__").map(str::to_owned).collect();
    (keys.len() > 1 || TOP_KEYS.contains(&rest.as_str())).then_some(keys)
}

pub(super) fn override_key(
    table: toml::Table,
    name: &str,
    keys: &[String],
    value: &str,
) -> Result<(toml::Table, Raw), ConfigError> {
    // A variable has no type: it is taken as a TOML value, then as a string, then as a comma-separated list, whichever
    // the key accepts first.
    let mut readings = Vec::new();
    if let Ok(mut t) = toml::from_str::<toml::Table>(&format!("v = {value}")) {
        readings.extend(t.remove("v"));
    }
    readings.push(toml::Value::String(value.to_owned()));
    let items = value.split(',').map(str::trim).filter(|s| !s.is_empty());
    readings.push(toml::Value::Array(items.map(|s| toml::Value::String(s.to_owned())).collect()));
    let mut first_error = None;
    for reading in readings {
        let mut candidate = table.clone();
        insert(&mut candidate, keys, reading);
        match Raw::deserialize(toml::Value::Table(candidate.clone())) {
            Ok(raw) => return Ok((candidate, raw)),
            Err(error) => {
                first_error.get_or_insert_with(|| error.message().trim().to_owned());
            }
        }
    }
    Err(ConfigError::Syntax { place: format!("environment variable {name}"), message: first_error.unwrap_or_default() })
}

fn insert(table: &mut toml::Table, keys: &[String], value: toml::Value) {
    match keys {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let section = table.entry(first.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(section) = section {
                insert(section, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Backend, SAMPLE, duration};
    use crate::engine::BanLength;

    fn parsed(text: &str) -> Result<Config, String> {
        parse("test.toml", text, []).map(|(c, _)| c).map_err(|e| e.to_string())
    }

    fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        parse("test.toml", text, env).map(|(c, _)| c).map_err(|e| e.to_string())
    }

    #[test]
    fn the_sample_is_the_defaults() {
        assert_eq!(parsed(SAMPLE).unwrap(), Config::default());
        assert_eq!(parsed("").unwrap(), Config::default());
    }

    #[test]
    fn the_sample_names_every_key() {
        // Every key of the raw structs, read off this file's own source.
        let source = include_str!("raw.rs");
        let fields = source
            .lines()
            .skip_while(|l| !l.starts_with("pub(super) struct Raw "))
            .take_while(|l| !l.starts_with("/// Loads"));
        for line in fields {
            if let Some((key, _)) = line.trim().trim_start_matches("pub(super) ").split_once(": Option<") {
                assert!(SAMPLE.contains(&format!("{key} =")), "{key} is not in the sample");
            }
        }
    }

    #[test]
    fn says_where_and_what_is_wrong() {
        let cases = [
            ("trusted_proxies_presets = [\"cloudfare\"]", "\"cloudfare\"", "cloudflare, fastly, cloudfront"),
            ("[log]\npath = []", "test.toml:2", "unknown field `path`"),
            ("[log]\npaths = 3", "test.toml:2", "invalid type"),
            ("[log\n", "test.toml:1", ""),
            ("[thresholds]\nz_score = -1.0", "thresholds.z_score = -1", "must be from"),
            ("[thresholds]\nz_score = nan", "thresholds.z_score = NaN", "must be from"),
            ("allowlist = [\"10.0.0.0/33\"]", "allowlist = \"10.0.0.0/33\"", "no IP address"),
            ("allowlist = [\"0.0.0.0/0\"]", "allowlist", "every address"),
            ("[bans]\ndurations = [\"permanent\", \"10m\"]", "bans.durations", "only be the last"),
            ("[bans]\ndurations = []", "bans.durations", "at least one"),
            ("[enforcer]\nbackend = \"nft\"", "enforcer.backend = \"nft\"", "auto, xdp, iptables, dry-run"),
            ("[enforcer]\ninterfaces = [\"a/b\"]", "enforcer.interfaces", "no interface name"),
            ("[dashboard]\nlisten = \"0.0.0.0:8081\"", "dashboard.listen", "token"),
            ("[notify.slack]\nwebhook_url = \"hush\"", "notify.slack.webhook_url", "no http or https URL"),
            ("name = \"web\\n1\"", "name", "one line"),
        ];
        for (text, place, what) in cases {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(place) && error.contains(what), "{text:?} gave: {error}");
        }
    }

    #[test]
    fn says_all_that_is_wrong_at_once() {
        let error = parsed("[thresholds]\nz_score = 0.0\nhard_limit = 0\n[window]\nseconds = 5").unwrap_err();
        assert_eq!(error.lines().count(), 3, "{error}");
    }

    #[test]
    fn secrets_show_in_no_error_and_no_debug_output() {
        for text in
            ["[dashboard]\ntoken = 4711", "[notify.webhook]\nurl = 4711", "[notify.slack]\nwebhook_url = [4711]"]
        {
            let error = parsed(text).unwrap_err();
            assert!(!error.contains("4711") && error.contains("not a string"), "{error}");
        }
        let error = parsed("[notify.slack]\nwebhook_url = \"hush-hush\"").unwrap_err();
        assert!(!error.contains("hush"), "{error}");
        let config = parsed("[notify.slack]\nwebhook_url = \"https://hush.example/x\"").unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn the_environment_overrides_every_kind_of_key() {
        let config = with_env(
            "[bans]\ndurations = [600]",
            &[
                ("ANOMALY_BANS__DURATIONS", "5s,10s,permanent"),
                ("ANOMALY_LOG__PATHS", "/a.json, /b.json"),
                ("ANOMALY_THRESHOLDS__Z_SCORE", "4"),
                ("ANOMALY_ENFORCER__BACKEND", "dry-run"),
                ("ANOMALY_NOTIFY__SLACK__WEBHOOK_URL", "https://hooks.example/1"),
                ("ANOMALY_ALLOWLIST", "192.0.2.1"),
                ("ANOMALY_DASHBOARD__TOKEN", "12345678901234567890"),
                ("ANOMALY_PORT", "tcp://10.0.0.1"),
                ("HOME", "/root"),
            ],
        )
        .unwrap();
        let timed = |s| BanLength::Timed(Duration::from_secs(s));
        assert_eq!(config.engine.durations, [timed(5), timed(10), BanLength::Permanent]);
        assert_eq!(config.log.paths.len(), 2);
        assert_eq!(config.engine.z_score, 4.0);
        assert_eq!(config.enforcer.backend, Backend::DryRun);
        assert_eq!(config.allowlist.len(), 1);
        assert_eq!(config.dashboard.token.unwrap().expose(), "12345678901234567890");
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let error = with_env("", &[("ANOMALY_BANS__DURATION", "5")]).unwrap_err();
        assert!(error.contains("ANOMALY_BANS__DURATION") && error.contains("unknown field"), "{error}");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let secs = |t: &str| duration(t).map(|d| d.as_secs());
        assert_eq!(secs("90"), Some(90));
        assert_eq!(secs("1h30m"), Some(5400));
        assert_eq!(secs("7d"), Some(604_800));
        for bad in ["", "h", "10x", "-5", "1.5h", "99999999999999999999w", "5m3"] {
            assert_eq!(secs(bad), None, "{bad}");
        }
    }
}
