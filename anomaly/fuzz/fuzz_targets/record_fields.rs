//! A line under keys of somebody's own choosing says what the same line says under Nginx's: `log.fields` renames, and
//! changes nothing else.
#![no_main]

use anomaly::record::{FieldMap, Format, Parser};
use libfuzzer_sys::fuzz_target;

/// Nginx's keys, in the order of [`FieldMap::new`].
const USUAL: [&str; 6] = ["source_ip", "timestamp", "method", "path", "status", "response_size"];

// A line of six keys, then the log. In the log every key is written as `"$1":` to `"$6":`.
fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|b| *b == b'\n') else { return };
    let (keys, log) = (&input[..end], &input[end + 1..]);
    let Ok(keys) = std::str::from_utf8(keys) else { return };
    let keys: Vec<&str> = keys.split(' ').collect();
    let Ok(keys) = <[&str; 6]>::try_from(keys) else { return };
    let plain = |key: &&str| key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    // In a broken line a key may stand where a value should be: it must not be an address or a number there.
    let name = |key: &&str| key.bytes().any(|b| matches!(b, b'g'..=b'z'));
    let own =
        |n: usize| !keys[..n].contains(&keys[n]) && !USUAL.contains(&keys[n]) && !["peer", "msec"].contains(&keys[n]);
    if !keys.iter().all(plain) || !keys.iter().all(name) || !(0..6).all(own) {
        return;
    }
    // A key that the line has all the same would be another one under the one map and none under the other.
    let foreign = |key: &str| contains(log, key.as_bytes());
    if USUAL.into_iter().chain(keys).chain(["peer", "msec"]).any(foreign) {
        return;
    }
    let [client, time, method, path, status, size] = keys;
    let (mut renamed, mut usual) = (
        Parser::with_format(&Format::Json(FieldMap::new(client, time, method, path, status, size))),
        Parser::with_format(&Format::Json(FieldMap::new(USUAL[0], USUAL[1], USUAL[2], USUAL[3], USUAL[4], USUAL[5]))),
    );
    for line in log.split(|b| *b == b'\n') {
        let (ours, theirs) = (with(line, &USUAL), with(line, &keys));
        let (a, b) = (usual.parse(&ours), renamed.parse(&theirs));
        match (a, b) {
            // Where a value holds a name, it differs by what was put in, and only there.
            (Ok(a), Ok(b)) => {
                let rest =
                    |r: &anomaly::record::Record<'_>| (r.client, r.time, r.status, r.response_size, r.peer, r.damaged);
                assert_eq!(rest(&a), rest(&b));
            }
            (a, b) => assert_eq!(a.map(|r| r.client), b.map(|r| r.client)),
        }
    }
});

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// `"$1":` to `"$6":` in the line become these keys.
fn with(line: &[u8], keys: &[&str; 6]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len() + 64);
    let mut rest = line;
    while let Some((&byte, tail)) = rest.split_first() {
        match rest {
            [b'"', b'$', n @ b'1'..=b'6', b'"', b':', after @ ..] => {
                out.push(b'"');
                out.extend_from_slice(keys[usize::from(n - b'1')].as_bytes());
                out.extend_from_slice(b"\":");
                rest = after;
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}
