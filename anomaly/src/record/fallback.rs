//! The slow ways through a line: serde_json for all that is JSON, and a search for what can still be read
//! where it is not.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::format::{Field, Keys};
use super::value::{self, Clock};
use super::{Found, Record};

/// Decoded strings that cannot be borrowed from the line.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    method: Vec<u8>,
    path: Vec<u8>,
}

/// Where a text field's value is.
#[derive(Clone, Copy, Default)]
enum Text<'a> {
    #[default]
    Missing,
    Line(&'a [u8]),
    Decoded,
}

/// What has been collected on the way.
struct Collected<'r, 'a> {
    found: Found<'r, 'a>,
    method: Text<'a>,
    path: Text<'a>,
    seen: u16,
}

impl Collected<'_, '_> {
    fn clear(&mut self) {
        self.found.clear();
        (self.method, self.path, self.seen) = (Text::Missing, Text::Missing, 0);
    }
}

/// Reads any line.
pub(super) fn read<'r, 'a>(
    line: &'a [u8],
    keys: &Keys,
    clock: &mut Clock,
    decoded: &'a mut Decoded,
    record: &'r mut Record<'a>,
) -> Found<'r, 'a> {
    let mut collected = Collected { found: Found::new(record), method: Text::Missing, path: Text::Missing, seen: 0 };
    // Strings as raw bytes first, since Nginx writes bytes above 0x7f as they are. serde_json gives
    // them only where there is a string: a `path` that is a number needs the second way.
    let is_json = [true, false].into_iter().any(|raw_text| {
        let collect = Collect { keys, object: "", clock: &mut *clock, decoded: &mut *decoded, raw_text };
        object(line, collect, &mut collected).is_ok()
    });
    if !is_json {
        salvage(line, keys, clock, decoded, &mut collected);
    }
    let Decoded { method, path } = decoded;
    let resolve = |text, decoded| match text {
        Text::Missing => None,
        Text::Line(text) => Some(text),
        Text::Decoded => Some(decoded),
    };
    let mut found = collected.found;
    found.method(resolve(collected.method, method.as_slice()));
    found.path(resolve(collected.path, path.as_slice()));
    found
}

/// The line as JSON; an error when it is not.
fn object<'a>(line: &'a [u8], collect: Collect<'_>, into: &mut Collected<'_, 'a>) -> serde_json::Result<()> {
    into.clear();
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    deserializer.deserialize_map(Members { collect, into })?;
    deserializer.end()
}

/// What is wanted, and where its parts go.
struct Collect<'s> {
    keys: &'s Keys,
    /// The object whose keys these are; empty at the top.
    object: &'s str,
    clock: &'s mut Clock,
    decoded: &'s mut Decoded,
    raw_text: bool,
}

struct Members<'s, 'r, 'de> {
    collect: Collect<'s>,
    into: &'s mut Collected<'r, 'de>,
}

impl<'de> Visitor<'de> for Members<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { collect: Collect { keys, object, clock, decoded, raw_text }, into } = self;
        while let Some(key) = map.next_key_seed(KeySeed { keys, object })? {
            let field = match key {
                Key::Object(object) => {
                    let collect = Collect { keys, object, clock: &mut *clock, decoded: &mut *decoded, raw_text };
                    map.next_value_seed(Members { collect, into: &mut *into })?;
                    continue;
                }
                Key::Field(field) => field,
            };
            // Of a key that is there twice the first one counts: what an attacker could smuggle in
            // (with escape=none) comes behind the address that Nginx wrote.
            let bit = field.bit();
            if field == Field::Other || into.seen & bit != 0 {
                into.found.record.damaged |= field != Field::Other;
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            into.seen |= bit;
            let raw_text = raw_text && matches!(field, Field::Method | Field::Path);
            let client_has_port = keys.client_has_port;
            map.next_value_seed(ValueSeed { field, client_has_port, raw_text, clock, decoded, into })?;
        }
        Ok(())
    }
}

/// The object with wanted keys inside: a line in which it is something else has no client and gives no record.
impl<'de> DeserializeSeed<'de> for Members<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

enum Key<'s> {
    Field(Field),
    Object(&'s str),
}

struct KeySeed<'s> {
    keys: &'s Keys,
    object: &'s str,
}

impl<'de, 's> DeserializeSeed<'de> for KeySeed<'s> {
    type Value = Key<'s>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key<'s>, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'s> Visitor<'_> for KeySeed<'s> {
    type Value = Key<'s>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<Key<'s>, E> {
        let object = if self.object.is_empty() { self.keys.object(key) } else { None };
        Ok(object.map_or_else(|| Key::Field(self.keys.field_in(self.object, key)), Key::Object))
    }
}

/// Puts the value of one key where it belongs. What is of the wrong type is missing.
struct ValueSeed<'s, 'r, 'de> {
    field: Field,
    client_has_port: bool,
    raw_text: bool,
    clock: &'s mut Clock,
    decoded: &'s mut Decoded,
    into: &'s mut Collected<'r, 'de>,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.field == Field::Client {
            self.into.found.has_client = true;
        }
        if self.raw_text { deserializer.deserialize_bytes(self) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> ValueSeed<'_, '_, 'de> {
    /// A string that is not a text field's.
    fn scalar(&mut self, text: &[u8]) {
        let found = &mut self.into.found;
        match self.field {
            Field::Client if self.client_has_port => found.client(value::address_with_port(text)),
            Field::Client => found.client(value::address(text)),
            Field::Time => found.time(self.clock.read(text)),
            Field::Status => found.status(value::number(text).and_then(|n| n.try_into().ok())),
            Field::Size => found.size(value::number(text)),
            Field::Peer => found.record.peer = value::address(text),
            Field::Msec => found.msec(value::epoch(text)),
            Field::Method | Field::Path | Field::Other => {}
        }
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_bytes<E>(mut self, text: &'de [u8]) -> Result<(), E> {
        match self.field {
            Field::Method => self.into.method = Text::Line(text),
            Field::Path => self.into.path = Text::Line(text),
            _ => self.scalar(text),
        }
        Ok(())
    }

    fn visit_bytes<E>(mut self, text: &[u8]) -> Result<(), E> {
        let (slot, buffer) = match self.field {
            Field::Method => (&mut self.into.method, &mut self.decoded.method),
            Field::Path => (&mut self.into.path, &mut self.decoded.path),
            _ => {
                self.scalar(text);
                return Ok(());
            }
        };
        buffer.clear();
        buffer.extend_from_slice(text);
        *slot = Text::Decoded;
        Ok(())
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<(), E> {
        self.visit_borrowed_bytes(text.as_bytes())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.visit_bytes(text.as_bytes())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        let found = &mut self.into.found;
        match self.field {
            Field::Status => found.status(number.try_into().ok()),
            Field::Size => found.size(Some(number)),
            Field::Time => found.time(value::epoch_f64(number as f64)),
            Field::Msec => found.msec(value::epoch_f64(number as f64)),
            _ => {}
        }
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        let found = &mut self.into.found;
        match self.field {
            Field::Time => found.time(value::epoch_f64(number)),
            Field::Msec => found.msec(value::epoch_f64(number)),
            _ => {}
        }
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// What can be read of a line that is not JSON: cut in two, two lines run together, broken escapes.
///
/// Each key is searched for by itself, as `"key"` and a colon. That cannot be forged from inside a
/// value: Nginx escapes every quote there (`\"` with escape=json, `\x22` otherwise), and a quote
/// with an odd number of backslashes before it does not open a key. An address only counts up to its closing
/// quote, so that a cut one is not taken for another.
fn salvage<'a>(
    line: &'a [u8],
    keys: &Keys,
    clock: &mut Clock,
    decoded: &mut Decoded,
    collected: &mut Collected<'_, 'a>,
) {
    collected.clear();
    collected.found.record.damaged = true;
    collected.found.broken = true;
    if !keys.flat {
        // What an object is called does not say where its keys are: one named by a client (Caddy logs the
        // names of headers) could pass for ours.
        return;
    }
    for (name, field) in keys.names() {
        let Some(rest) = value_of(line, name) else { continue };
        if let Some(text) = rest.strip_prefix(b"\"") {
            let (text, whole) = match closing_quote(text) {
                Some(end) => (&text[..end], true),
                None => (text, false),
            };
            collected.found.has_client |= field == Field::Client && whole;
            if whole || matches!(field, Field::Method | Field::Path) {
                let mut seed = salvage_seed(field, keys, clock, decoded, collected);
                match field {
                    Field::Method | Field::Path => salvaged_text(&mut seed, text),
                    _ => seed.scalar(text),
                }
            }
        } else {
            let len = rest.iter().position(|b| !matches!(b, b'0'..=b'9' | b'.')).unwrap_or(rest.len());
            collected.found.has_client |= field == Field::Client;
            // A number that the line's end cuts off may have had more digits.
            if field != Field::Client && field != Field::Peer && len < rest.len() {
                let mut seed = salvage_seed(field, keys, clock, decoded, collected);
                seed.scalar(&rest[..len]);
            }
        }
    }
}

fn salvage_seed<'s, 'r, 'de>(
    field: Field,
    keys: &Keys,
    clock: &'s mut Clock,
    decoded: &'s mut Decoded,
    into: &'s mut Collected<'r, 'de>,
) -> ValueSeed<'s, 'r, 'de> {
    ValueSeed { field, client_has_port: keys.client_has_port, raw_text: true, clock, decoded, into }
}

/// A text value of a broken line: decoded where its escapes are JSON's, else as it stands.
fn salvaged_text<'de>(seed: &mut ValueSeed<'_, '_, 'de>, text: &'de [u8]) {
    let (slot, buffer) = match seed.field {
        Field::Method => (&mut seed.into.method, &mut seed.decoded.method),
        _ => (&mut seed.into.path, &mut seed.decoded.path),
    };
    *slot = Text::Line(text);
    if memchr::memchr(b'\\', text).is_none() {
        return;
    }
    let mut quoted = Vec::with_capacity(text.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(text);
    quoted.push(b'"');
    if serde_json::Deserializer::from_slice(&quoted).deserialize_bytes(Append(buffer)).is_ok() {
        *slot = Text::Decoded;
    }
}

struct Append<'s>(&'s mut Vec<u8>);

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, text: &[u8]) -> Result<(), E> {
        self.0.clear();
        self.0.extend_from_slice(text);
        Ok(())
    }
}

/// What follows the first `"name":`.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    for at in memchr::memmem::find_iter(line, name) {
        let (before, rest) = (&line[..at], &line[at + name.len()..]);
        let Some((b'"', before)) = before.split_last() else { continue };
        let backslashes = before.iter().rev().take_while(|b| **b == b'\\').count();
        let Some(rest) = rest.strip_prefix(b"\"") else { continue };
        if backslashes % 2 == 0
            && let Some(rest) = rest.trim_ascii_start().strip_prefix(b":")
        {
            return Some(rest.trim_ascii_start());
        }
    }
    None
}

/// The first quote that no backslash escapes.
pub(super) fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(hit) = memchr::memchr2(b'"', b'\\', &text[at..]) {
        at += hit;
        if text[at] == b'"' {
            return Some(at);
        }
        // The escaped byte may be the last one that was written.
        at += 2;
        if at > text.len() {
            return None;
        }
    }
    None
}
