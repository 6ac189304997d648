//! What can be read of a configuration that is refused, for the commands that must work all the same.
//!
//! `off`, `down`, `unban` and `status` need a socket or a pin directory, and nothing else to be right: a typo must not keep an
//! operator from lifting a ban. Whatever stands in the file by itself is read, the rest is as if it were not there. The daemon,
//! `replay` and `config check` never use this: they refuse.

use std::path::Path;

use serde::Deserialize;

use super::check::check;
use super::load::{configuration_path, environment_of, override_key};
use super::raw::Raw;
use super::{Config, ConfigError};

/// What a header may begin with.
const SECTIONS: [&str; 11] =
    ["log", "enforcer", "window", "baseline", "thresholds", "bans", "notify", "nginx", "dashboard", "store", "audit"];

/// What could be read of a refused configuration.
#[derive(Debug)]
pub struct Salvaged {
    /// What was read, over the defaults.
    pub config: Config,
    /// What was left out: keys, lines, variables.
    pub unread: Vec<String>,
    /// Keys (`section.key`) that were read.
    given: Vec<String>,
    /// Keys that are none, or whose values are of another type.
    refused: Vec<Vec<String>>,
    /// Keys (`section.key`) whose values cannot be meant.
    wrong: Vec<String>,
    /// Not all of the file could be read as TOML, or nothing of it.
    gaps: bool,
}

impl Salvaged {
    /// Whether the daemon that was started with this file, when it was good, has the value of `section.key` that is in
    /// [`Salvaged::config`], as far as the file tells. False where the key may stand in what could not be read.
    pub fn is_sure(&self, section: &str, key: &str) -> bool {
        let hides = |path: &Vec<String>| {
            let first = path.first().map_or("", String::as_str);
            first == section || (path.len() > 1 && !SECTIONS.contains(&first)) || path.last().is_some_and(|k| k == key)
        };
        let name = format!("{section}.{key}");
        let hidden = self.gaps || self.wrong.contains(&name) || self.refused.iter().any(hides);
        self.given.contains(&name) || !hidden
    }

    fn take(&mut self, table: &toml::Table) -> (toml::Table, Raw) {
        let mut good = toml::Table::new();
        for (path, value) in leaves(table) {
            let mut alone = toml::Table::new();
            insert(&mut alone, &path, value.clone());
            if Raw::deserialize(toml::Value::Table(alone)).is_ok() {
                insert(&mut good, &path, value);
                self.given.push(path.join("."));
            } else {
                self.unread.push(path.join("."));
                self.refused.push(path);
            }
        }
        // What is good by itself is good together: no key depends on another here.
        let raw = Raw::deserialize(toml::Value::Table(good.clone())).unwrap_or_default();
        (good, raw)
    }
}

/// Reads what can be read of the file that [`super::load_without_list`] would read, and of `environment`.
pub fn salvage(path: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> Salvaged {
    let mut salvaged = Salvaged {
        config: Config::default(),
        unread: Vec::new(),
        given: Vec::new(),
        refused: Vec::new(),
        wrong: Vec::new(),
        gaps: false,
    };
    let file = configuration_path(path);
    let bytes = file.as_ref().map(std::fs::read).transpose();
    let text = match &bytes {
        Ok(bytes) => String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()),
        Err(_) => {
            salvaged.gaps = true;
            salvaged.unread.push("the whole file".into());
            "".into()
        }
    };
    let table = toml::from_str(&text).unwrap_or_else(|_| {
        salvaged.gaps = true;
        let (table, lines) = by_statement(&text);
        salvaged.unread.extend(lines);
        table
    });
    let (mut table, mut raw) = salvaged.take(&table);
    for (name, keys, value) in environment_of(environment) {
        match override_key(table.clone(), &name, &keys, &value) {
            Ok(read) => {
                (table, raw) = read;
                salvaged.given.push(keys.join("."));
            }
            Err(_) => {
                salvaged.unread.push(name);
                salvaged.refused.push(keys);
            }
        }
    }
    // A value that cannot be meant leaves the default.
    let mut problems = Vec::new();
    salvaged.config = check(raw, &mut problems);
    for key in problems.iter().filter_map(|problem| problem.split([' ', ':']).next()) {
        salvaged.given.retain(|given| given != key);
        if !salvaged.unread.iter().any(|unread| unread == key) {
            salvaged.unread.push(key.to_owned());
        }
        salvaged.wrong.push(key.to_owned());
    }
    salvaged
}

/// The error in one line, with all that was wrong.
pub fn in_one_line(error: &ConfigError) -> String {
    error.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Each value that is no table, with the keys that lead to it. A table without a value is none.
fn leaves(table: &toml::Table) -> Vec<(Vec<String>, toml::Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                let deeper = leaves(inner).into_iter();
                found.extend(deeper.map(|(rest, value)| ([vec![key.clone()], rest].concat(), value)));
            }
            value => found.push((vec![key.clone()], value.clone())),
        }
    }
    found
}

/// What stands there first stays: a second value of the same key is one of the mistakes.
fn insert(table: &mut toml::Table, path: &[String], value: toml::Value) -> bool {
    match path {
        [] => false,
        [last] if table.contains_key(last) => false,
        [last] => table.insert(last.clone(), value).is_none(),
        [first, rest @ ..] => {
            let section = table.entry(first.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            section.as_table_mut().is_some_and(|section| insert(section, rest, value))
        }
    }
}

/// Reads text that is no TOML, a statement at a time: what is one by itself is taken under the header before it. Gives also
/// what was left out.
fn by_statement(text: &str) -> (toml::Table, Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    let (mut table, mut unread) = (toml::Table::new(), Vec::new());
    // None below a header that cannot be read: nobody knows what is meant there.
    let mut section = Some(Vec::new());
    let mut at = 0;
    while at < lines.len() {
        let (line, number) = (lines[at].trim(), at + 1);
        at += 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') {
            section = header(line);
            match &section {
                None => unread.push(format!("line {number} and what stands below it")),
                Some(_) if toml::from_str::<toml::Table>(line).is_err() => unread.push(format!("line {number}")),
                Some(_) => {}
            }
            continue;
        }
        let Some(section) = &section else { continue };
        // A list may go on over many lines. Where it does not end, what follows it is no part of it.
        let more = lines[at..].iter().take_while(|line| !begins(line)).count();
        let closed = lines[at..at + more].iter().rposition(|line| line.trim_start().starts_with(']'));
        let lengths = [Some(more), closed.map(|last| last + 1), Some(0)].into_iter().flatten();
        let parse = |taken: usize| Some((toml::from_str(&lines[at - 1..at + taken].join("\n")).ok()?, taken));
        let Some((read, taken)) = lengths.into_iter().find_map(parse) else {
            unread.push(format!("line {number}"));
            at += more;
            continue;
        };
        at += taken;
        let new = leaves(&read).into_iter().map(|(keys, value)| ([&section[..], &keys].concat(), value));
        let all_new = new.fold(true, |all, (keys, value)| insert(&mut table, &keys, value) && all);
        if !all_new {
            unread.push(format!("line {number}, which repeats a key"));
        }
    }
    (table, unread)
}

/// Whether a line begins a header or a statement of its own.
fn begins(line: &str) -> bool {
    let line = line.trim_start();
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let after = line.trim_start_matches(name);
    let is_header = line.strip_prefix('[').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
    is_header || (after.len() < line.len() && after.trim_start().starts_with('='))
}

/// The keys of a header, also where its bracket is not closed: the name is what counts.
fn header(line: &str) -> Option<Vec<String>> {
    let name = line.trim_start_matches('[').split([']', '#']).next()?.trim();
    let keys: Vec<String> = name.split('.').map(|key| key.trim().to_owned()).collect();
    SECTIONS.contains(&keys.first()?.as_str()).then_some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is salvaged of a text, with variables.
    fn of(text: &str, environment: &[(&str, &str)]) -> Salvaged {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        std::fs::write(&file, text).unwrap();
        salvage(Some(&file), environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
    }

    const PLACES: &str = "[enforcer]\npin_dir = \"/pins\"\n[dashboard]\nsocket = \"/s.sock\"\n";

    /// Whether socket and pin directory are those of [`PLACES`], for sure.
    fn holds_places(salvaged: &Salvaged) -> bool {
        salvaged.config.dashboard.socket == Path::new("/s.sock")
            && salvaged.config.enforcer.pin_dir == Path::new("/pins")
            && salvaged.is_sure("dashboard", "socket")
            && salvaged.is_sure("enforcer", "pin_dir")
    }

    #[test]
    fn each_usual_mistake_leaves_the_rest_readable() {
        for mistake in [
            "allowlist = [\"192.0.2.1\"\n",
            "allowlist = [\"192.0.2.1\", \"192.0.2.2]\n",
            "allowlist = [\n  \"192.0.2.1\",\n  \"192.0.2.2\"\n\n",
            "allowlist = [\"192.0.2.1\", 192.0.2.2]\n",
            "allowlist = [\"192.0.2.300\"]\n",
            "allowlist = \"192.0.2.1\"\n",
            "allowlst = [\"192.0.2.1\"]\n",
            "allowlist [\"192.0.2.1\"]\n",
            "allowlist = [\"192.0.2.1\"]\nallowlist = [\"192.0.2.2\"]\n",
            "192.0.2.1\n",
            "[bans]\ndurations = [\"10m\", ]]\n",
            "[bans\ndurations = [\"10m\"]\n",
            "[bans]\nduration = [\"10m\"]\n",
            "[bnas]\ndurations = [\"10m\"]\n[bans]\n",
            "[thresholds]\nz_score = -1.0\n",
            "[notify.slack]\nwebhook_url = hooks.example.org\n",
            "\u{feff}[bans]\ndurations = 3\n",
        ] {
            let below = mistake.starts_with('[').then(|| format!("{PLACES}{mistake}"));
            for text in [format!("{mistake}{PLACES}")].into_iter().chain(below) {
                assert!(super::super::parse("x", &text, []).is_err(), "that is good: {text}");
                let salvaged = of(&text, &[]);
                assert!(holds_places(&salvaged), "{text}\n{salvaged:?}");
                assert!(!salvaged.unread.is_empty(), "{text}");
            }
        }
    }

    #[test]
    fn every_section_of_the_sample_is_known() {
        let sample: toml::Table = toml::from_str(super::super::SAMPLE).unwrap();
        let sections: Vec<&str> = sample.iter().filter(|(_, v)| v.is_table()).map(|(k, _)| k.as_str()).collect();
        assert_eq!(sections.len(), SECTIONS.len(), "{sections:?}");
        assert!(sections.iter().all(|section| SECTIONS.contains(section)), "{sections:?}");
    }

    #[test]
    fn what_cannot_be_known_is_not_claimed() {
        let unsure = |text: &str, section: &str, key: &str| {
            let salvaged = of(text, &[]);
            assert!(!salvaged.is_sure(section, key), "{text}\n{salvaged:?}");
            assert_eq!(salvaged.config, Config::default(), "{text}");
        };
        for (text, section, key) in [
            ("[dashboard]\nsocket = \"/s\n", "dashboard", "socket"),
            ("[dashboard]\nsokcet = \"/s\"\n", "dashboard", "socket"),
            ("[dashbord]\nsocket = \"/s\"\n", "dashboard", "socket"),
            ("[bans]\nsocket = \"/s\"\n", "dashboard", "socket"),
            ("[enforcer]\npin_dir = 3\n", "enforcer", "pin_dir"),
            ("[enforcer]\npin_dir = \"\"\n", "enforcer", "pin_dir"),
            ("[enforcr\npin_dir = \"/p\"\n", "enforcer", "pin_dir"),
            ("]]]", "enforcer", "pin_dir"),
        ] {
            unsure(text, section, key);
        }
        let listen = of("[dashboard]\nlisten = \"0.0.0.0:1\"\n", &[]);
        assert!(listen.is_sure("dashboard", "socket"), "a wrong value hides its own key only: {listen:?}");
        // A mistake elsewhere does not hide a key that is not there: then it is the default.
        let elsewhere = of("[bans]\nduration = 3\n", &[]);
        assert!(elsewhere.is_sure("dashboard", "socket") && elsewhere.is_sure("enforcer", "pin_dir"));
    }

    #[test]
    fn the_environment_counts_and_its_own_mistakes_hide_nothing_else() {
        let env = [
            ("ANOMALY_DASHBOARD__SOCKET", "/env.sock"),
            ("ANOMALY_BANS__DURATIONS", "a while"),
            ("ANOMALY_BANS__NONSENSE", "1"),
        ];
        let salvaged = of(&format!("{PLACES}junk"), &env);
        assert_eq!(salvaged.config.dashboard.socket, Path::new("/env.sock"));
        assert_eq!(salvaged.config.enforcer.pin_dir, Path::new("/pins"));
        assert!(salvaged.unread.contains(&"ANOMALY_BANS__NONSENSE".to_owned()), "{salvaged:?}");
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_environment_and_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("nowhere")] {
            let env = [("ANOMALY_DASHBOARD__SOCKET".to_owned(), "/env.sock".to_owned())];
            let salvaged = salvage(Some(&path), env);
            assert_eq!(salvaged.config.dashboard.socket, Path::new("/env.sock"));
            assert!(salvaged.is_sure("dashboard", "socket") && !salvaged.is_sure("enforcer", "pin_dir"));
        }
    }

    #[test]
    fn a_long_list_is_read_in_no_time_and_binary_junk_is_no_trouble() {
        let list: String = (0..60_000).map(|n| format!("  \"10.{}.{}.1\",\n", n / 256, n % 256)).collect();
        let salvaged = of(&format!("allowlist = [\n{list}]\nx\n{PLACES}"), &[]);
        assert!(holds_places(&salvaged) && salvaged.config.allowlist.len() == 60_000);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        std::fs::write(&file, [&[0xff, 0, 0xfe, b'\n'], PLACES.as_bytes()].concat()).unwrap();
        assert!(holds_places(&salvage(Some(&file), [])));
    }
}
