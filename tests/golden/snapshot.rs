//! Golden files: what goes over the wire, as text beside this file that a person can read.
//!
//! A test makes the text, [`same`] compares it with its file. After a change that is meant, renew them all by
//! `UPDATE_EXPECT=1 cargo test -p anomaly golden` and read the difference. The library's own tests include this file too:
//! what only the inside can make is golden as well.

use std::path::PathBuf;

/// Asserts that `text` is what the golden file `name` holds, byte for byte.
pub fn same(name: &str, text: &str) {
    expect_test::expect_file![path(name)].assert_eq(text);
}

/// Where the golden file `name` lies.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name)
}

/// JSON with a line for each value, for reading. Order, numbers and strings stay as they were sent, which a parser would not
/// promise; a short list or object stays on its line.
pub fn indent(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut rest) = (0, json);
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '"' => {
                taken = string_len(rest);
                out.push_str(&rest[..taken]);
            }
            '{' | '[' => match short(rest) {
                Some(len) => {
                    taken = len;
                    out.push_str(&rest[..len]);
                }
                None => {
                    depth += 1;
                    out.push(c);
                    line(&mut out, depth);
                }
            },
            '}' | ']' => {
                depth -= 1;
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(c),
        }
        rest = &rest[taken..];
    }
    out
}

fn line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Bytes of the string that `json` begins with, quotes included.
fn string_len(json: &str) -> usize {
    let mut escaped = true;
    for (at, b) in json.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    json.len()
}

/// Bytes of the list or object that `json` begins with, where it holds no other and fits in a line.
fn short(json: &str) -> Option<usize> {
    let mut at = 1;
    while at < json.len().min(100) {
        match json.as_bytes()[at] {
            b'}' | b']' => return Some(at + 1),
            b'{' | b'[' => return None,
            b'"' => at += string_len(&json[at..]),
            _ => at += 1,
        }
    }
    None
}

/// Every kind of an enum, with the text that shows it in a golden file. A kind that is not in the list does not compile, and
/// what is in the list must be in the file ([`shown`]): so a new kind needs a golden row.
macro_rules! kinds {
    ($enum:ty { $($variant:ident => $text:expr),+ $(,)? }) => {{
        type Kind = $enum;
        const _: fn(&Kind) = |kind| match kind {
            $(Kind::$variant { .. } => {})+
        };
        [$(($text, stringify!($variant))),+]
    }};
}
pub(crate) use kinds;

/// Asserts that a golden text shows each of these kinds.
pub fn shown(golden: &str, kinds: &[(&str, &str)]) {
    let missing: Vec<_> = kinds.iter().filter(|(text, _)| !golden.contains(text)).collect();
    assert!(missing.is_empty(), "no golden row shows these kinds: {missing:?}");
}

#[test]
fn golden_json_keeps_its_order_and_its_strings() {
    let long = "x".repeat(120);
    let json = format!(r#"{{"b":[1,2.50],"a":{{"t":"a\"{{:,","long":"{long}"}},"e":[],"n":null}}"#);
    let lines = [
        "{",
        r#"  "b": [1,2.50],"#,
        r#"  "a": {"#,
        r#"    "t": "a\"{:,","#,
        &format!(r#"    "long": "{long}""#),
        "  },",
        r#"  "e": [],"#,
        r#"  "n": null"#,
        "}",
    ];
    assert_eq!(indent(&json), lines.join("\n"));
}
