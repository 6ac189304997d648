//! The shape of the source, measured from its text: which module imports which, circles among them, names of types that mean
//! several things, long functions and large structs. `tests/tidy.rs` holds the limits, `cargo xtask house` prints the figures.
//!
//! Deliberately text, not syntax: it reads `use` trees and paths. A path that only a macro makes is not seen.

pub mod imports;
pub mod items;

use std::path::{Path, PathBuf};

/// One Rust file of the product.
#[derive(Clone, Debug)]
pub struct File {
    /// From the top of the repository, with `/`.
    pub path: String,
    /// Its module: `["daemon", "apply"]`; those of the crate `anomaly-engine` begin with `engine`, the root of a crate is empty.
    pub module: Vec<String>,
    /// Its text without comments, the insides of strings, and its own tests.
    pub code: String,
    /// Its text as it stands.
    pub text: String,
}

/// The two crates that are measured, and the module that their files begin with.
const CRATES: [(&str, &[&str]); 2] = [("anomaly/src", &[]), ("anomaly/engine/src", &["engine"])];

/// Every file of the product below `root`, sorted by path. Modules of tests (`tests`, `differential`) are left out.
///
/// # Panics
/// Where a directory or a file cannot be read.
pub fn files(root: &Path) -> Vec<File> {
    let mut files = Vec::new();
    for (dir, prefix) in CRATES {
        let mut paths = Vec::new();
        walk(&root.join(dir), &mut paths);
        for full in paths {
            let path = full.strip_prefix(root).unwrap_or(&full).to_string_lossy().into_owned();
            let inside = path[dir.len() + 1..].trim_end_matches(".rs");
            let mut module: Vec<String> = prefix.iter().map(ToString::to_string).collect();
            module.extend(inside.split('/').map(ToString::to_string));
            if module.iter().any(|part| part == "tests" || part == "differential") {
                continue;
            }
            if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                module.pop();
            }
            let text = std::fs::read_to_string(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            files.push(File { path, module, code: code_of(&text), text });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Code without comments, insides of strings and characters, and items behind `#[cfg(test)]`. Lines stay where they are.
pub fn code_of(text: &str) -> String {
    without_tests(&without_comments(text))
}

fn without_comments(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let raw = rest.strip_prefix(b"br").or_else(|| rest.strip_prefix(b"r")).map(|after| {
            let hashes = after.iter().take_while(|b| **b == b'#').count();
            (rest.len() - after.len() + hashes, hashes)
        });
        let starts_word = at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let skipped = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            find(rest, b"*/").map_or(rest.len(), |end| end + 2)
        } else if let Some((open, hashes)) = raw.filter(|(open, _)| starts_word && rest.get(*open) == Some(&b'"')) {
            let mut close = vec![b'"'];
            close.extend(std::iter::repeat_n(b'#', hashes));
            find(&rest[open + 1..], &close).map_or(rest.len(), |end| open + 1 + end + close.len())
        } else if rest[0] == b'"' {
            string_end(rest)
        } else if rest[0] == b'\'' {
            // A character, not a lifetime: 'x', '\n', '\u{..}'.
            match rest {
                [_, b'\\', _, tail @ ..] => 3 + tail.iter().position(|b| *b == b'\'').map_or(0, |end| end + 1),
                [_, _, b'\'', ..] => 3,
                _ => 1,
            }
        } else {
            0
        };
        if skipped == 0 {
            out.push(rest[0]);
            at += 1;
        } else {
            out.extend(rest[..skipped].iter().filter(|b| **b == b'\n'));
            at += skipped;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn string_end(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Takes away the items behind each `#[cfg(test)]`: up to the `;`, or the `}` that closes their first `{`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let item = &rest[at + MARK.len()..];
        let end = item_end(item);
        out.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}

/// Where an item ends: after its `;`, or after the brace that closes its first one.
pub fn item_end(item: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in item.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && c == '}' {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    item.len()
}
