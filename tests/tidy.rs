//! The repository's own rules, as far as a test can hold them: ARCHITECTURE.md's invariants about
//! what is absent, the layout, and what every file must have. Deliberately text, not syntax: a rule
//! that needs a parser belongs in clippy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::house::{self, imports, items};

/// Longer than 600 lines, and why.
const LONG: &[(&str, &str)] = &[];

/// May use `unsafe`, and for what.
const UNSAFE: &[(&str, &str)] = &[
    ("anomaly-ebpf/", "the kernel hands packets over as raw pointers"),
    ("anomaly/src/enforce/xdp/raw.rs", "the BPF calls that aya does not have"),
    ("anomaly-common/src/lib.rs", "the promise that the ABI is plain data can only be made where its types are"),
];

/// May read the clock, and why; everybody else is handed the time.
const CLOCK: &[(&str, &str)] = &[
    ("anomaly/src/daemon/clock.rs", "the one place of the daemon"),
    ("tests/lab/clock.rs", "a lab waits for real processes"),
    ("anomaly/benches/", "a benchmark measures time"),
    ("tests/web/limits.rs", "measures how long the server really waits"),
];

/// The rooms of the product from the top floor down: each may take something from those below it only.
const FLOORS: &[&str] = &[
    "main",
    "cli",
    "doctor",
    "daemon",
    "dashboard",
    "metrics",
    "notify",
    "audit",
    "replay",
    "view",
    "tail",
    "enforce",
    "store",
    "config",
    "record",
    "report",
    "lib",
    "engine",
];

/// Structs of more than 12 fields, and why.
const LARGE: &[(&str, &str)] = &[
    ("engine/src/contract.rs: Finding", "one figure of the evidence each"),
    ("engine/src/contract.rs: Snapshot", "one figure of the page each"),
    ("engine/src/lib.rs: Engine", "the parts that a record goes through, and the counters of each"),
    ("engine/src/settings.rs: Settings", "one key of the configuration each"),
    ("config/raw.rs: Raw", "one section of the configuration each"),
    ("report.rs: Status", "one key of `status --json` each"),
    ("daemon/apply/mod.rs: Apply", "to be split: what it holds, and what it has reported"),
    ("daemon/begin.rs: Begun", "to be split: a start hands over all that it has opened"),
    ("daemon/hot.rs: Hot", "to be split: reading and publishing"),
    ("daemon/start.rs: Service", "to be split: a start hands over all that it has opened"),
    ("enforce/xdp.rs: XdpEnforcer", "to be split: programs and what was reported of them"),
    ("store/writer.rs: Store", "to be split: what is open and what is unwritten"),
    ("tail/source.rs: Source", "to be split: the file and the place in it"),
];

/// Directories of what is built, fetched or found, not written.
const OTHERS: &[&str] = &["target", ".git", "node_modules", "__pycache__", "corpus", "artifacts"];

struct Source {
    /// From the top of the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Lines of code: without comments, and without the file's own tests.
    fn code(&self) -> impl Iterator<Item = &str> {
        // Not `house::code_of`: what rules are about also stands in strings.
        let (mut rest, mut kept) = (self.text.as_str(), Vec::new());
        while let Some(at) = rest.find("#[cfg(test)]") {
            kept.push(&rest[..at]);
            let item = &rest[at + "#[cfg(test)]".len()..];
            rest = &item[house::item_end(item)..];
        }
        kept.push(rest);
        let lines = kept.into_iter().flat_map(str::lines);
        lines.map(|line| line.split("//").next().unwrap_or_default()).filter(|line| !line.trim().is_empty())
    }

    fn is_in(&self, list: &[(&str, &str)]) -> bool {
        list.iter().any(|(path, _)| self.path.starts_with(path))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

fn files(wanted: impl Fn(&str) -> bool) -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("a directory of the repository").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !OTHERS.contains(&&*name) => walk(&path, found),
                Ok(kind) if kind.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    paths.sort();
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned();
    let sources = paths.iter().map(|full| (relative(full), full)).filter(|(path, _)| wanted(path));
    sources.filter_map(|(path, full)| Some(Source { path, text: std::fs::read_to_string(full).ok()? })).collect()
}

fn rust() -> Vec<Source> {
    let sources = files(|path| path.ends_with(".rs"));
    assert!(sources.len() > 30, "the walk has lost its way: {} files", sources.len());
    sources
}

/// Fails with one line per finding.
fn none(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

/// `path:line` of every line of code that holds one of `words`.
fn mentions<'a>(sources: impl IntoIterator<Item = &'a Source>, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for line in source.code() {
            found.extend(
                words
                    .iter()
                    .filter(|w| line.contains(**w))
                    .map(|w| format!("{}: {w} in: {}", source.path, line.trim())),
            );
        }
    }
    found
}

/// Invariant 1.
#[test]
fn the_engine_is_pure() {
    let engine: Vec<Source> = rust().into_iter().filter(|s| s.path.starts_with("anomaly/engine/")).collect();
    assert!(engine.len() >= 4, "where is the engine?");
    let impure = [
        "tokio",
        "serde",
        "tracing::",
        "std::fs",
        "std::io",
        "std::process",
        "std::thread",
        "std::env",
        "Instant",
        "SystemTime",
        "::now(",
        "println!",
        "eprintln!",
        "async ",
        "Mutex",
        "rand::",
    ];
    none("the engine does no I/O, reads no clock, logs nothing", mentions(&engine, &impure));
    let manifest = std::fs::read_to_string(root().join("anomaly/engine/Cargo.toml")).expect("the engine's manifest");
    let needed =
        manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("its dependencies");
    let names = needed.lines().filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()));
    let small = ["foldhash", "hashbrown", "ipnet", "jiff", "memchr"];
    none("the engine needs these crates only", names.filter(|name| !small.contains(&name.as_str())).collect());
}

/// `cargo xtask house --imports` prints the graph.
#[test]
fn no_module_comes_back_to_itself() {
    let arrows = imports::arrows(&house::files(root()));
    assert!(arrows.len() > 100, "the files were not found: {}", arrows.len());
    let circles = imports::circles(&arrows).into_iter();
    none("a circle of imports: give the type that ties it a room of its own", circles.collect());
}

#[test]
fn no_import_leads_upwards() {
    let arrows = imports::arrows(&house::files(root()));
    none("an import that leads upwards: see FLOORS", imports::upward(&arrows, FLOORS));
}

/// A change of one of these limits belongs into review: what exceeds it is named below, with the reason.
#[test]
fn structs_stay_small() {
    let large = items::large_structs(&house::files(root()), 12).into_iter();
    let excused = |name: &str| LARGE.iter().any(|(excused, _)| name.ends_with(excused));
    let found = large.filter(|(name, _)| !excused(name)).map(|(name, fields)| format!("{name}: {fields} fields"));
    none("a struct of more than 12 fields: which of them belong together?", found.collect());
}

/// Invariant 2. Clippy refuses the calls; this holds the list of exceptions.
#[test]
fn only_the_daemon_reads_the_clock() {
    let excused = rust().into_iter().filter(|s| s.path != "tests/tidy.rs" && s.text.contains("disallowed_methods"));
    none(
        "add no reader of the clock without a reason here",
        excused.filter(|s| !s.is_in(CLOCK)).map(|s| s.path).collect(),
    );
}

/// Invariants 3 and 6: those who act do not decide, those who show do not act.
#[test]
fn layers_do_not_reach_across() {
    let sources = rust();
    let within = |dir: &'static str| sources.iter().filter(move |s| s.path.starts_with(dir));
    none("enforcers never decide", mentions(within("anomaly/src/enforce/"), &["crate::engine::Engine", "Engine::"]));
    let deeds = ["crate::enforce::Enforcer", "Engine::", "Store::open"];
    none("the dashboard reads snapshots only", mentions(within("anomaly/src/dashboard/"), &deeds));
    let abi = ["use std::", "extern crate std", "serde"];
    none("anomaly-common is the ABI and nothing else", mentions(within("anomaly-common/src/"), &abi));
}

/// Invariant 10.
#[test]
fn no_shell_is_ever_started_by_the_daemon() {
    let sources = rust();
    let daemon = sources.iter().filter(|s| s.path.starts_with("anomaly/src/"));
    none("nothing from a log may meet a shell", mentions(daemon, &["\"sh\"", "/bin/sh", "\"bash\"", "\"-c\".into()"]));
}

#[test]
fn unsafe_stays_where_it_is_needed() {
    let sources: Vec<Source> = rust().into_iter().filter(|s| !s.is_in(UNSAFE) && s.path != "tests/tidy.rs").collect();
    none(
        "unsafe code lives in two places",
        mentions(&sources, &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]),
    );
}

#[test]
fn every_module_says_what_it_is() {
    let silent = rust().into_iter().filter(|s| !s.text.trim_start().starts_with("//!"));
    none("a module opens with //! on what it is, and is not", silent.map(|s| s.path).collect());
}

#[test]
fn files_stay_readable() {
    let long = rust().into_iter().filter(|s| s.text.lines().count() > 600 && !s.is_in(LONG));
    none("split by noun at 600 lines, or say why not in LONG", long.map(|s| s.path).collect());
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    let words = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!("), concat!("#[ig", "nore")];
    none("finish it", mentions(&rust(), &words));
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let noted = rust().into_iter().filter(|s| notes.iter().any(|n| s.text.contains(n)));
    none("finish it, or open an issue", noted.map(|s| s.path).collect());
}

#[test]
fn no_words_that_name_nothing() {
    let vague = ["utils", "helpers", "common", "types", "manager", "service"];
    let named = rust().into_iter().filter(|s| {
        let mut parts = s.path.trim_end_matches(".rs").split('/');
        parts.any(|part| vague.contains(&part))
    });
    none("name a module after what is in it", named.map(|s| s.path).collect());
}

#[test]
fn nothing_of_one_machine_is_in_the_repository() {
    let all = files(|path| path != ".git");
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/"), concat!("/tmp/ba", "sh_jobs")];
    let mut found = Vec::new();
    for source in &all {
        for (number, line) in source.text.lines().enumerate() {
            found.extend(
                places.iter().filter(|p| line.contains(**p)).map(|p| format!("{}:{}: {p}", source.path, number + 1)),
            );
        }
    }
    none("paths of somebody's machine", found);
}

#[test]
fn the_usual_files_are_there_and_say_the_usual_things() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    for name in [
        "LICENSE",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "ARCHITECTURE.md",
        "BENCHMARKS.md",
        "CONTRIBUTING.md",
        "anomaly/docs/comparison.md",
        "deny.toml",
        "clippy.toml",
        "rustfmt.toml",
        "Cargo.lock",
    ] {
        assert!(!read(name).trim().is_empty(), "{name} is empty");
    }
    assert!(read("CHANGELOG.md").contains("Unreleased"), "CHANGELOG.md has no Unreleased part");
    let (mit, apache) = (read("LICENSE-MIT"), read("LICENSE-APACHE"));
    assert!(read("LICENSE").ends_with(&mit), "LICENSE, which packages install, and LICENSE-MIT differ");
    let ends = ["Version 2.0, January 2004", "END OF TERMS AND CONDITIONS", "limitations under the License."];
    assert!(ends.iter().all(|part| apache.contains(part)), "LICENSE-APACHE is not the whole text");
    for invariant in 1..=10 {
        assert!(
            read("ARCHITECTURE.md").contains(&format!("{invariant}. ")),
            "ARCHITECTURE.md lacks invariant {invariant}"
        );
    }
    let ci = root().join(".ci/run").metadata().expect(".ci/run exists");
    assert!(std::os::unix::fs::PermissionsExt::mode(&ci.permissions()) & 0o111 != 0, ".ci/run is not executable");
}

/// A name in a comment that leads nowhere costs the reader a search. A bare name means a file of the same part of the
/// repository.
#[test]
fn comments_name_files_that_exist() {
    const PARTS: &[&str] =
        &["anomaly/src/", "anomaly/engine/", "anomaly/benches/", "anomaly/fuzz/", "anomaly-", "tests/", "xtask/"];
    let part = |path: &str| PARTS.iter().find(|part| path.starts_with(**part)).copied().unwrap_or_default();
    let sources = files(|path| [".rs", ".md", "clippy.toml"].iter().any(|end| path.ends_with(end)));
    let exists = |name: &str, part: &str| {
        let is_it = |path: &str| path.strip_suffix(name).is_some_and(|dir| dir.is_empty() || dir.ends_with('/'));
        sources.iter().any(|s| is_it(&s.path) && (name.contains('/') || s.path.starts_with(part)))
    };
    let mut dead = Vec::new();
    for source in &sources {
        // What the linter's own file says is about the daemon.
        let part = if source.path == "clippy.toml" { "anomaly/src/" } else { part(&source.path) };
        for (number, line) in source.text.lines().enumerate() {
            let comment = match line.split_once("//").filter(|(before, _)| !before.ends_with(':')) {
                Some((_, comment)) if source.path.ends_with(".rs") => comment,
                _ if source.path.ends_with(".rs") => continue,
                _ => line,
            };
            let words = comment.split(|c: char| !c.is_ascii_alphanumeric() && !"_-./".contains(c));
            let names =
                words.map(|word| word.trim_matches('.')).filter(|word| word.ends_with(".rs") && !word.contains("//"));
            // A path that begins above the file is code in a string.
            let gone = names.filter(|name| *name != ".rs" && !name.starts_with('/') && !exists(name, part));
            dead.extend(gone.map(|name| format!("{}:{}: {name}", source.path, number + 1)));
        }
    }
    none("no such file", dead);
}

/// What nobody uses is built, audited and updated all the same.
#[test]
fn every_dependency_is_used() {
    let sources = rust();
    let manifests = files(|path| path.ends_with("Cargo.toml"));
    let mut unused = Vec::new();
    for manifest in &manifests {
        let table: toml::Table = manifest.text.parse().unwrap_or_else(|e| panic!("{}: {e}", manifest.path));
        let dir = manifest.path.strip_suffix("Cargo.toml").unwrap_or_default();
        // The daemon's integration tests lie beside its directory; others take single files from elsewhere.
        let deeper: Vec<&str> = (manifests.iter().filter_map(|m| m.path.strip_suffix("Cargo.toml")))
            .filter(|other| *other != dir && other.starts_with(dir))
            .collect();
        let is_own = |path: &str| path.starts_with(dir) && !deeper.iter().any(|other| path.starts_with(other));
        let own = |s: &&Source| is_own(&s.path) || (dir == "anomaly/" && s.path.starts_with("tests/"));
        let taken: Vec<&str> = (sources.iter().filter(own).flat_map(|s| s.text.lines()))
            .filter_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"))
            .map(|path| path.trim_start_matches("../"))
            .collect();
        let within = |s: &&Source| own(s) || taken.iter().any(|path| s.path.ends_with(path));
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let names = table.get(kind).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys);
            for name in names {
                let word = name.replace('-', "_");
                if !sources.iter().filter(within).any(|s| s.text.lines().any(|line| uses(line, &word))) {
                    unused.push(format!("{}: {name} ({kind})", manifest.path));
                }
            }
        }
    }
    none("take it out", unused);
}

/// Whether a line of code names this crate: `name::`, or `use name`.
fn uses(line: &str, name: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let begins = !before.ends_with(|c: char| c.is_alphanumeric() || "_:.\"".contains(c));
        let of_the_root = before.ends_with(" ::") || before.ends_with("(::");
        let imported = before.trim_end().ends_with("use") && after.starts_with([';', ' ']);
        (begins || of_the_root) && (after.starts_with("::") || imported)
    })
}

#[test]
fn a_crate_is_used_where_its_name_begins_a_path() {
    for (line, used) in [
        ("use notify::Watcher;", true),
        ("    let x = ::notify::new();", true),
        ("use notify as files;", true),
        ("use crate::notify::Notice;", false),
        ("// notify::Watcher", false),
        ("let notify = 1;", false),
        ("sd_notify::notify()", false),
    ] {
        assert_eq!(uses(line, "notify"), used, "{line}");
    }
}

/// A golden file that no test compares shows nothing, and one that nobody reads through is renewed without a look.
#[test]
fn golden_files_are_compared_and_small() {
    let (golden, sources) = (files(|path| path.starts_with("tests/golden/") && !path.ends_with(".rs")), rust());
    assert!(golden.len() > 10, "where are the golden files?");
    let named = |path: &str| {
        let name = format!("\"{}\"", path.trim_start_matches("tests/golden/"));
        sources.iter().any(|source| source.text.contains(&name))
    };
    none("no test compares it", golden.iter().filter(|s| !named(&s.path)).map(|s| s.path.clone()).collect());
    none("split it", golden.iter().filter(|s| s.text.len() > 100_000).map(|s| s.path.clone()).collect());
}

/// A task or command that no document names is one that nobody finds.
#[test]
fn documents_name_every_task_and_command() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let readme = read("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 150, "README.md has {lines} lines: figures, recipes and how-to-build have documents of their own");
    let variants = |path: &str, list: &str| -> Vec<String> {
        let text = read(path);
        let body = text.split(list).nth(1).and_then(|rest| rest.split("\n}").next()).expect("the list is in the file");
        // Four spaces: a field of a variant is indented by more.
        let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
        let named = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
        named.map(|line| kebab(line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or(line))).collect()
    };
    let tasks = variants("xtask/src/main.rs", "enum Task {");
    let commands = variants("anomaly/src/cli/args.rs", "pub enum Command {");
    assert!(tasks.len() >= 5 && commands.len() >= 10, "the lists were not understood: {tasks:?} {commands:?}");
    let named = format!("{readme}{}", read("CONTRIBUTING.md"));
    let missing = tasks.into_iter().filter(|task| !named.contains(&format!("cargo xtask {task}")));
    none("neither README nor CONTRIBUTING names these tasks", missing.collect());
    let named = format!("{readme}{}", read("OPERATIONS.md"));
    let missing = commands.into_iter().filter(|command| !named.contains(&format!("anomaly {command}")));
    none("neither README nor OPERATIONS names these commands", missing.collect());
}

/// A link to a file, or to a heading of one, that is not there.
#[test]
fn links_in_documents_lead_somewhere() {
    let documents = files(|path| path.ends_with(".md"));
    let anchor = |heading: &str| -> String {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    let (mut dead, mut seen) = (Vec::new(), 0);
    for document in &documents {
        for target in document.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            seen += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let dir = root().join(&document.path);
            let path = if file.is_empty() { dir } else { dir.with_file_name("").join(file) };
            let headings = |text: &str| {
                text.lines().any(|l| l.starts_with('#') && anchor(l.trim_start_matches(['#', ' '])) == heading)
            };
            let found =
                path.exists() && (heading.is_empty() || std::fs::read_to_string(&path).is_ok_and(|t| headings(&t)));
            if !found {
                dead.push(format!("{}: {target}", document.path));
            }
        }
    }
    assert!(seen > 10, "no links were found");
    none("a link that leads nowhere", dead);
}

/// A promise whose test cannot be searched for is held by nobody.
#[test]
fn security_names_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let promises =
        text.split("## What is promised").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("promises");
    let all = files(|path| path.starts_with("tests/") || path.starts_with("anomaly"));
    let is_there = |name: &str| {
        let (declared, file) = (format!("fn {name}("), format!("/{}", name.replace("::", "/")));
        let is_file = |path: &str| path.rsplit_once('.').is_some_and(|(stem, _)| stem.ends_with(&file));
        root().join(name).is_file() || all.iter().any(|s| is_file(&s.path) || s.text.contains(&declared))
    };
    let cells = promises.lines().filter_map(|line| line.strip_suffix(" |")?.rsplit_once(" | ")).map(|(_, tests)| tests);
    let names: Vec<&str> = cells.flat_map(|tests| tests.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 40, "the table was not understood: {names:?}");
    none("no such test", names.into_iter().filter(|name| !is_there(name)).map(Into::into).collect());
}

fn kebab(camel: &str) -> String {
    let mut text = String::new();
    for c in camel.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// The two crates that are built apart must resolve the same dependency versions in every build.
#[test]
fn every_workspace_has_its_lock_file() {
    let manifests = files(|path| path.ends_with("Cargo.toml"));
    let apart = manifests.iter().filter(|m| m.text.contains("[workspace]"));
    let unlocked = apart.filter(|m| !root().join(&m.path).with_file_name("Cargo.lock").is_file());
    none("commit its Cargo.lock", unlocked.map(|m| m.path.clone()).collect());
}

#[test]
fn excuses_are_still_needed() {
    let mut kinds = BTreeMap::new();
    kinds.insert("LONG", LONG);
    kinds.insert("UNSAFE", UNSAFE);
    kinds.insert("CLOCK", CLOCK);
    let files = house::files(root());
    let large = items::large_structs(&files, 12);
    let small = LARGE.iter().filter(|(name, _)| !large.iter().any(|(found, _)| found.ends_with(name)));
    none("no large struct any more", small.map(|(name, _)| (*name).to_owned()).collect());
    let sources = rust();
    let stale = kinds.into_iter().flat_map(|(kind, list)| list.iter().map(move |(path, _)| (kind, *path)));
    let stale = stale.filter(|(_, path)| !sources.iter().any(|s| s.path.starts_with(path)));
    none("nothing there any more", stale.map(|(kind, path)| format!("{kind}: {path}")).collect());
}
