//! Which module takes something from which, and the circles among neighbours.

use std::collections::{BTreeMap, BTreeSet};

use super::File;

/// From the path of one file to those that it takes something from.
pub type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The imports between files: `use` trees and paths in the code, as far as they begin with `crate`, `super`, `self`, the name of
/// a crate of ours, or of a child module.
pub fn arrows(files: &[File]) -> Arrows {
    let by_module: BTreeMap<&[String], &str> = files.iter().map(|f| (&f.module[..], f.path.as_str())).collect();
    let mut arrows = Arrows::new();
    for file in files {
        let targets = arrows.entry(file.path.clone()).or_default();
        for path in paths(&file.code) {
            let Some(full) = absolute(file, &path, &by_module) else { continue };
            // The longest part of the path that is a file: what follows is an item in it.
            let found = (0..=full.len()).rev().find_map(|len| by_module.get(&full[..len]));
            if let Some(target) = found.filter(|target| **target != file.path) {
                targets.insert((*target).to_owned());
            }
        }
    }
    arrows
}

/// The module path that a path in `file` means; `None` where it leads out of our crates.
fn absolute(file: &File, path: &[String], by_module: &BTreeMap<&[String], &str>) -> Option<Vec<String>> {
    let in_engine = file.module.first().is_some_and(|first| first == "engine");
    let root: Vec<String> = if in_engine { vec!["engine".into()] } else { Vec::new() };
    let (first, rest) = path.split_first()?;
    let mut full = match first.as_str() {
        "crate" => root,
        "anomaly" => Vec::new(),
        "anomaly_engine" => vec!["engine".into()],
        "self" => file.module.clone(),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let mut base = file.module.clone();
            base.truncate(base.len().checked_sub(ups)?);
            base.extend(path[ups..].iter().cloned());
            return Some(base);
        }
        child => {
            let mut full = file.module.clone();
            full.push(child.to_owned());
            by_module.contains_key(&full[..]).then_some(())?;
            full
        }
    };
    full.extend(rest.iter().cloned());
    Some(full)
}

/// Every path in the code, `use` trees spread out: `use a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let tokens = tokens(code);
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at] == "use" {
            let end = tokens[at..].iter().position(|t| t == ";").map_or(tokens.len(), |end| at + end);
            spread(&tokens[at + 1..end], &mut Vec::new(), &mut found);
            at = end;
        } else if is_word(&tokens[at]) && tokens.get(at + 1).is_some_and(|t| t == "::") {
            let mut path = vec![tokens[at].clone()];
            while tokens.get(at + 1).is_some_and(|t| t == "::") && tokens.get(at + 2).is_some_and(|t| is_word(t)) {
                path.push(tokens[at + 2].clone());
                at += 2;
            }
            found.push(path);
            at += 1;
        } else {
            at += 1;
        }
    }
    found
}

fn spread(tokens: &[String], prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let depth = prefix.len();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => {
                let mut open = 0;
                let close = tokens[at..].iter().position(|t| {
                    open += i32::from(t == "{") - i32::from(t == "}");
                    open == 0
                });
                let end = close.map_or(tokens.len(), |close| at + close);
                for branch in branches(&tokens[at + 1..end]) {
                    spread(branch, &mut prefix.clone(), found);
                }
                prefix.truncate(depth);
                return;
            }
            "as" => break,
            word if is_word(word) => prefix.push(word.to_owned()),
            _ => {}
        }
        at += 1;
    }
    found.push(std::mem::take(prefix));
}

fn branches(tokens: &[String]) -> Vec<&[String]> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tokens[start..]);
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn tokens(code: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let len = if is_word(rest) {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push(rest[..len].to_owned());
        }
        rest = &rest[len..];
    }
    tokens
}

/// The circles among the neighbours of every folder: a folder's files and folders are its units (a file and the folder of the same name are one, its
/// `mod.rs` is none, for a parent and its children belong together), and no unit may come back to itself. Each circle is given
/// as the arrows that tie it.
pub fn circles(arrows: &Arrows) -> Vec<String> {
    let mut folders = BTreeSet::new();
    for path in arrows.keys() {
        folders.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
    }
    let mut found = Vec::new();
    for folder in folders {
        let unit = |path: &str| -> Option<String> {
            let inside = path.strip_prefix(&format!("{folder}/"))?;
            let unit = inside.split('/').next()?.trim_end_matches(".rs");
            (!["mod", "lib"].contains(&unit)).then(|| unit.to_owned())
        };
        let mut between: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (from, targets) in arrows {
            for to in targets {
                if let (Some(a), Some(b)) = (unit(from), unit(to))
                    && a != b
                {
                    between.entry(a).or_default().entry(b).or_insert_with(|| format!("{from} -> {to}"));
                }
            }
        }
        for (from, targets) in &between {
            for (to, arrow) in targets {
                if reaches(&between, to, from) {
                    found.push(format!("in {folder}: {arrow}"));
                }
            }
        }
    }
    found
}

fn reaches(between: &BTreeMap<String, BTreeMap<String, String>>, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(unit) = next.pop() {
        if unit == to {
            return true;
        }
        if seen.insert(unit) {
            next.extend(between.get(unit).into_iter().flat_map(|targets| targets.keys()).map(String::as_str));
        }
    }
    false
}

/// The room that a file is in: the first folder or file below its crate's source, `engine` for all of that crate.
pub fn room(path: &str) -> &str {
    if path.starts_with("anomaly/engine/") {
        return "engine";
    }
    let inside = path.strip_prefix("anomaly/src/").unwrap_or(path);
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// Arrows that lead to a room that stands before its own in `floors`, which lists the rooms from the top floor down; and rooms
/// that the list does not know.
pub fn upward(arrows: &Arrows, floors: &[&str]) -> Vec<String> {
    let floor = |path: &str| floors.iter().position(|name| *name == room(path));
    let mut found = Vec::new();
    for (from, targets) in arrows {
        let Some(own) = floor(from) else {
            found.push(format!("{from}: the room `{}` has no floor", room(from)));
            continue;
        };
        found.extend(
            targets.iter().filter(|to| floor(to).is_some_and(|other| other < own)).map(|to| format!("{from} -> {to}")),
        );
    }
    found
}
