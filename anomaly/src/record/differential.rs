//! Holds the scanner and the fallbacks equal to what serde_json alone makes of a line, on random and mutated
//! lines. (Test code.)

use std::net::IpAddr;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::{Extension, LINES_AT_ONCE, Parsed, Parser, Record, Reject};
use crate::time::Timestamp;

/// What a line says, by serde_json and the standard library, as plainly as can be.
#[derive(Debug, PartialEq)]
struct Plain {
    client: Result<IpAddr, Reject>,
    time: Option<Timestamp>,
    method: Vec<u8>,
    path: Vec<u8>,
    extension: Extension,
    status: u16,
    response_size: u64,
    peer: Option<IpAddr>,
    damaged: bool,
}

/// The keys and values of an object in their order; a map would lose those that are there twice.
struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

fn plain(line: &[u8]) -> Option<Plain> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let pairs = deserializer.deserialize_map(Pairs).ok()?;
    deserializer.end().ok()?;
    let get = |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v);
    let text = |key: &str| get(key).and_then(Value::as_str);
    let address = |key: &str| Some(text(key)?.parse::<IpAddr>().ok()?.to_canonical());
    let number = |key: &str| match get(key)? {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.parse().ok().filter(|_| s.bytes().all(|b| b.is_ascii_digit())),
        _ => None,
    };
    let seconds = |key: &str| {
        let secs = match get(key)? {
            Value::Number(n) => n.as_f64()?,
            Value::String(s) => {
                let whole = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
                let (secs, fraction) = s.split_once('.').unwrap_or((s, "0"));
                if s.len() > 64 || !whole(secs) || !whole(fraction) {
                    return None;
                }
                s.parse().ok()?
            }
            _ => return None,
        };
        (1e8..1e11).contains(&secs).then(|| Timestamp::from_ms((secs * 1000.0).round() as i64))
    };
    let stamp = text("timestamp").filter(|s| s.len() <= 64).and_then(Timestamp::parse).or_else(|| seconds("timestamp"));
    let time = match (stamp, seconds("msec")) {
        (Some(stamp), Some(msec)) if stamp.as_secs() == msec.as_secs() => Some(msec),
        (stamp, msec) => stamp.or(msec),
    };
    let known = ["source_ip", "timestamp", "method", "path", "status", "response_size", "peer", "msec"];
    let twice = known.iter().any(|key| pairs.iter().filter(|(k, _)| k == key).count() > 1);
    let status = number("status").and_then(|n| u16::try_from(n).ok());
    let missing =
        text("method").is_none() || text("path").is_none() || status.is_none() || number("response_size").is_none();
    Some(Plain {
        client: address("source_ip").ok_or(match get("source_ip") {
            Some(_) => Reject::BadAddress,
            None => Reject::NoAddress,
        }),
        time,
        method: text("method").unwrap_or_default().into(),
        path: text("path").unwrap_or_default().into(),
        extension: Extension::of(text("path").unwrap_or_default().as_bytes()),
        status: status.unwrap_or_default(),
        response_size: number("response_size").unwrap_or_default(),
        peer: address("peer"),
        damaged: twice || missing || time.is_none(),
    })
}

fn as_plain(result: Result<Record<'_>, Reject>, last: Timestamp, expected: &Plain) -> Plain {
    match result {
        Ok(record) => Plain {
            client: Ok(record.client),
            time: (expected.time.is_some() || record.time != last).then_some(record.time),
            method: record.method.into(),
            path: record.path.into(),
            extension: record.extension,
            status: record.status,
            response_size: record.response_size,
            peer: record.peer,
            damaged: record.damaged,
        },
        // Nothing else is said of a line without a client.
        Err(why) => Plain {
            client: Err(why),
            time: expected.time,
            method: expected.method.clone(),
            path: expected.path.clone(),
            extension: expected.extension,
            ..*expected
        },
    }
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// An object with most of the known keys, in any order.
    fn line(&mut self) -> Vec<u8> {
        let mut fields = vec![
            format!("\"source_ip\":{}", self.of(&ADDRESSES)),
            format!("\"timestamp\":{}", self.of(&STAMPS)),
            format!("\"method\":{}", self.of(&TEXTS)),
            format!("\"path\":{}", self.of(&TEXTS)),
            format!("\"status\":{}", self.of(&NUMBERS)),
            format!("\"response_size\":{}", self.of(&NUMBERS)),
        ];
        for (key, values) in
            [("peer", &ADDRESSES[..]), ("msec", &STAMPS), ("host", &TEXTS), ("x", &NUMBERS), ("y", &NESTED)]
        {
            if self.below(3) == 0 {
                fields.push(format!("\"{key}\":{}", self.of(values)));
            }
        }
        if self.below(3) == 0 {
            for i in (1..fields.len()).rev() {
                let j = self.below(i + 1);
                fields.swap(i, j);
            }
        }
        if self.below(8) == 0 {
            let twice = self.below(fields.len());
            fields.push(fields[twice].clone());
        }
        if self.below(8) == 0 {
            fields.remove(self.below(fields.len()));
        }
        let comma = self.of(&[",", ",", ",", ", ", " ,\t"]);
        format!("{{{}}}", fields.join(comma)).into_bytes()
    }

    fn mutate(&mut self, line: &mut Vec<u8>) {
        let at = self.below(line.len() + 1);
        match self.below(7) {
            0 if at < line.len() => line[at] = self.below(256) as u8,
            1 => drop(line.splice(at..at, self.of(&TOKENS).bytes())),
            2 => {
                let to = (at + self.below(6)).min(line.len());
                line.drain(at..to);
            }
            3 => line.truncate(at),
            4 => drop(line.drain(..at)),
            5 => {
                let to = (at + self.below(40)).min(line.len());
                let piece = line[at..to].to_vec();
                let into = self.below(line.len() + 1);
                line.splice(into..into, piece);
            }
            _ => line.insert(at, self.of(b"\"\\{}[]:,.-+0123456789eE \t\r\n\xff\x00u/")),
        }
    }
}

const ADDRESSES: [&str; 12] = [
    r#""203.0.113.7""#,
    r#""203.0.113.7""#,
    r#""2001:db8::1""#,
    r#""::ffff:192.0.2.1""#,
    r#""192.0.2.255""#,
    r#""192.0.2.256""#,
    r#""01.2.3.4""#,
    r#""1.2.3.4, 5.6.7.8""#,
    r#""fe80::1%eth0""#,
    r#""""#,
    "null",
    r#""1\u002e2.3.4""#,
];
const STAMPS: [&str; 15] = [
    r#""2026-04-27T10:25:51+01:00""#,
    r#""2026-04-27T10:25:51+01:00""#,
    r#""2026-04-27T09:25:52Z""#,
    r#""1777281951.250""#,
    "1777281951.250",
    "1777281952",
    r#""1777281952.1234""#,
    r#""2026-02-30T00:00:00Z""#,
    r#""2024-02-29T23:59:60Z""#,
    r#""2026-04-27t10:25:51-0330""#,
    r#""2026-04-27T10:25:51.5Z""#,
    r#""2026-04-27 10:25""#,
    "17772819510",
    "-5.5",
    r#""""#,
];
const TEXTS: [&str; 11] = [
    r#""GET""#,
    r#""/index.html?a=b.js""#,
    r#""/a/logo.PNG""#,
    r#""/""#,
    r#""""#,
    r#""/\"quoted\"""#,
    r#""/\u00e9\ud83d\ude00\n""#,
    "\"/é\"",
    "7",
    "null",
    r#""{\"source_ip\":\"6.6.6.6\"}""#,
];
const NUMBERS: [&str; 16] = [
    "200",
    r#""200""#,
    r#""404""#,
    "0",
    r#""0""#,
    r#""007""#,
    "-1",
    "1.5",
    "1e3",
    "70000",
    "18446744073709551616",
    r#""""#,
    r#""-""#,
    "true",
    r#""18446744073709551615""#,
    "[1]",
];
const NESTED: [&str; 5] = [r#"{"source_ip":"6.6.6.6"}"#, "[]", "[[],{},\"]\"]", r#"{"a":{"b":[null,false]}}"#, "{}"];
const TOKENS: [&str; 14] = [
    "\"",
    "\\",
    "\\u0041",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    "null",
    "\"source_ip\":\"6.6.6.6\",",
    "\"status\":200,",
    ":",
    ",",
    "1e400",
];

#[test]
fn the_scanner_agrees_with_serde_json() {
    let mut random = Random(7);
    let mut parser = Parser::new();
    let mut last = Timestamp::EPOCH;
    parser.last = Some(last);
    let (mut agreed, mut records, mut salvaged) = (0, 0, 0);
    for nth in 0..150_000 {
        let mut line = random.line();
        for _ in 0..random.below(4) {
            random.mutate(&mut line);
        }
        let result = parser.parse(&line);
        let time = result.as_ref().ok().map(|r| r.time);
        match plain(&line) {
            Some(expected) => {
                let got = as_plain(result, last, &expected);
                assert_eq!(got, expected, "line {nth}: {}", String::from_utf8_lossy(&line));
                agreed += 1;
                records += usize::from(time.is_some());
            }
            None => salvaged += usize::from(time.is_some()),
        }
        last = time.unwrap_or(last);
    }
    assert!(agreed > 30_000 && records > 15_000 && salvaged > 10_000, "{agreed} {records} {salvaged}");
}

/// An owned copy of what lines have given.
fn owned(parsed: Parsed<'_>, into: &mut Vec<String>) {
    match parsed {
        Parsed::Records(records) => into.extend(records.iter().map(|record| format!("{record:?}"))),
        Parsed::Rejected(reject, line) => into.push(format!("{reject:?} {line:?}")),
    }
}

#[test]
fn lines_read_together_give_what_each_gives() {
    let mut random = Random(11);
    let (mut together, mut alone) = (Parser::new(), Parser::new());
    let mut several = 0;
    for _ in 0..3_000 {
        let mut lines = Vec::new();
        for _ in 0..=random.below(LINES_AT_ONCE - 1) {
            let usual =
                br#"{"source_ip":"192.0.2.1","timestamp":"2026-04-27T10:25:51+01:00","method":"GET","path":"/a.JS?b=c.d"}"#;
            let mut line = if random.below(3) == 0 { random.line() } else { usual.to_vec() };
            if random.below(5) == 0 {
                random.mutate(&mut line);
            }
            lines.push(line);
        }
        // With the last newline and without.
        let mut text = lines.join(&b'\n');
        text.extend(std::iter::repeat_n(b'\n', random.below(2)));
        if text.is_empty() {
            continue;
        }
        let (mut got, mut expected) = (Vec::new(), Vec::new());
        let mut on_parsed = |parsed: Parsed<'_>| {
            several += usize::from(matches!(parsed, Parsed::Records([_, _, ..])));
            owned(parsed, &mut got);
        };
        if random.below(2) == 0 {
            together.parse_all(&text, &mut on_parsed);
        } else {
            let mut rest = &text[..];
            while !rest.is_empty() {
                rest = &rest[together.parse_some(rest, 1 + random.below(3), &mut on_parsed)..];
            }
        }
        let lines = text.strip_suffix(b"\n").unwrap_or(&text).split(|byte| *byte == b'\n');
        for line in lines {
            match alone.parse(line) {
                Ok(record) => owned(Parsed::Records(&[record]), &mut expected),
                Err(reject) => owned(Parsed::Rejected(reject, line), &mut expected),
            }
        }
        assert_eq!(got, expected);
    }
    assert!(several > 500, "{several}");
}
