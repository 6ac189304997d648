//! Figures of single files: names of types, lengths of functions, fields of structs, lines of documentation.

use std::collections::{BTreeMap, BTreeSet};

use super::{File, item_end};

/// Names of types (struct, enum, trait, type) that more than one file defines, with those files.
pub fn doubled_names(files: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = names(files);
    all.retain(|_, places| places.len() > 1);
    all
}

/// Names of types and the files that define them.
pub fn names(files: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        for line in file.code.lines() {
            let words: Vec<&str> =
                line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
            let outer = !line.starts_with("        ");
            for pair in words.windows(2) {
                let is_type = ["struct", "enum", "trait", "type", "union"].contains(&pair[0]);
                if outer && is_type && pair[1].starts_with(|c: char| c.is_uppercase()) && !is_associated(line) {
                    found.entry(pair[1].to_owned()).or_default().insert(file.path.clone());
                }
            }
        }
    }
    found
}

/// `    type Error = ...;` in an implementation names nothing new.
fn is_associated(line: &str) -> bool {
    line.starts_with(' ') && line.trim_start().starts_with("type ")
}

/// The functions that are longer than `lines`, with their lengths; and how many functions there are.
pub fn long_functions(files: &[File], lines: usize) -> (Vec<(String, usize)>, usize) {
    let (mut long, mut all) = (Vec::new(), 0);
    for file in files {
        for (name, item) in items(&file.code, "fn ") {
            all += 1;
            let length = item.lines().filter(|line| !line.trim().is_empty()).count();
            if length > lines {
                long.push((format!("{}: {name}", file.path), length));
            }
        }
    }
    (long, all)
}

/// The structs with more than `fields` fields, and how many they have.
pub fn large_structs(files: &[File], fields: usize) -> Vec<(String, usize)> {
    let mut large = Vec::new();
    for file in files {
        for (name, item) in items(&file.code, "struct ") {
            let Some(body) = item.split_once('{').map(|(_, body)| body) else { continue };
            let count = body.lines().filter(|line| is_field(line)).count();
            if count > fields {
                large.push((format!("{}: {name}", file.path), count));
            }
        }
    }
    large
}

fn is_field(line: &str) -> bool {
    let line = line.trim_start();
    let line = line.strip_prefix("pub").map_or(line, |rest| {
        rest.strip_prefix("(super)").or_else(|| rest.strip_prefix("(crate)")).unwrap_or(rest).trim_start()
    });
    line.split_once(": ").is_some_and(|(name, _)| {
        name.starts_with(|c: char| c.is_lowercase() || c == '_')
            && name.chars().all(|c| c.is_alphanumeric() || c == '_')
    })
}

/// The items of one kind: their names, and their text up to where they end.
fn items<'a>(code: &'a str, keyword: &str) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(keyword) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '<' || c == '(' || c == '&') {
            continue;
        }
        let item = &code[at..item_end(&code[at..]) + at];
        let name = item[keyword.len()..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        if !name.is_empty() && item.contains('{') {
            found.push((name, item));
        }
    }
    found
}

/// Lines of documentation and of code, and comments that stand in the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Lines with code, tests not counted.
    pub code: usize,
    /// Lines that begin with `///` or `//!`.
    pub docs: usize,
    /// Other lines that begin with `//`.
    pub comments: usize,
}

/// The lines of all files together.
pub fn lines(files: &[File]) -> Lines {
    let mut sum = Lines::default();
    for file in files {
        sum.code += code_lines(file);
        for line in file.text.lines().map(str::trim_start) {
            if line.starts_with("///") || line.starts_with("//!") {
                sum.docs += 1;
            } else if line.starts_with("//") {
                sum.comments += 1;
            }
        }
    }
    sum
}

/// Lines of a file that hold code, without its tests.
pub fn code_lines(file: &File) -> usize {
    file.code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Lines of a file without its tests and their helpers; comments and blank lines count.
pub fn lines_without_tests(file: &File) -> usize {
    let tests = file.text.find("#[cfg(test)]\nmod ").map_or(0, |at| file.text[at..].lines().count());
    file.text.lines().count() - tests
}
