//! The fast way through a line of the usual form: one flat object, strings without escapes, plain
//! integers. Whatever else a line may be, [`scan`] gives up on it and [`super::fallback`] reads it.
//!
//! Almost every line has the keys of the line before it, in the same order. So the text of each key with its
//! colon is remembered, and compared as a whole, before a key is read letter by letter.

use super::format::{Field, Keys};
use super::value::{Clock, ipv4_prefix};
use super::{Found, value};

/// More keys than this are not remembered, only read.
const REMEMBERED_KEYS: usize = 24;
/// Nor is a key whose text with quotes and colon is longer than this.
const REMEMBERED_BYTES: usize = 32;

/// The keys of the line before, in its order.
#[derive(Debug, Default)]
pub(super) struct Shape {
    keys: Vec<ShapeKey>,
}

#[derive(Debug)]
struct ShapeKey {
    /// From the opening quote to the byte before the value.
    text: [u8; REMEMBERED_BYTES],
    len: usize,
    field: Field,
    /// Its first bytes as a number, and which bits of it count: most keys are compared by it alone.
    first: u128,
    mask: u128,
}

impl ShapeKey {
    fn new(text: &[u8], field: Field) -> Self {
        let mut key = Self { text: [0; REMEMBERED_BYTES], len: text.len(), field, first: 0, mask: 0 };
        key.text[..text.len()].copy_from_slice(text);
        key.mask = u128::MAX >> (8 * 16usize.saturating_sub(text.len()));
        key.first = first_bytes(&key.text).unwrap_or_default() & key.mask;
        key
    }

    #[inline]
    fn opens(&self, rest: &[u8]) -> bool {
        match first_bytes(rest) {
            Some(first) if self.len <= 16 => first & self.mask == self.first,
            _ => rest.len() >= self.len && rest[..self.len] == self.text[..self.len],
        }
    }
}

#[inline]
fn first_bytes(text: &[u8]) -> Option<u128> {
    text.first_chunk().map(|bytes| u128::from_le_bytes(*bytes))
}

impl Shape {
    fn remember(&mut self, nth: usize, text: &[u8], field: Field) {
        if nth >= REMEMBERED_KEYS || text.is_empty() || text.len() > REMEMBERED_BYTES || nth > self.keys.len() {
            return;
        }
        let key = ShapeKey::new(text, field);
        match self.keys.get_mut(nth) {
            Some(old) => *old = key,
            None => self.keys.push(key),
        }
    }
}

/// Reads a line of the usual form; `None` when it is not quite that.
pub(super) fn scan<'a>(line: &'a [u8], keys: &Keys, shape: &mut Shape, clock: &mut Clock) -> Option<Found<'a>> {
    let mut found = Found::default();
    let mut seen = 0u16;
    let mut at = 0;
    if line.first() != Some(&b'{') {
        return None;
    }
    at += 1;
    let mut nth = 0;
    loop {
        let field = match shape.keys.get(nth) {
            Some(key) if key.opens(&line[at..]) => {
                at += key.len;
                key.field
            }
            _ => {
                let (field, value_at) = read_key(line, at, keys)?;
                shape.remember(nth, &line[at..value_at], field);
                at = value_at;
                field
            }
        };
        nth += 1;
        if field != Field::Other {
            let bit = 1u16 << (field as u16);
            if seen & bit != 0 {
                return None;
            }
            seen |= bit;
        }
        at = if line.get(at) == Some(&b'"') {
            quoted(line, at + 1, field, keys, &mut found, clock)?
        } else {
            bare(line, at, field, &mut found)?
        };
        // Behind a value there is a comma and the next key, or the end.
        match line.get(at)? {
            b',' => {
                at += 1;
                if line.get(at) == Some(&b' ') {
                    at += 1;
                }
            }
            b'}' => {
                let rest = &line[at + 1..];
                return rest.iter().all(|b| matches!(b, b' ' | b'\r' | b'\t' | b'\n')).then_some(found);
            }
            _ => return None,
        }
    }
}

/// A key with its quotes and colon; where its value begins.
#[cold]
fn read_key(line: &[u8], at: usize, keys: &Keys) -> Option<(Field, usize)> {
    if line.get(at) != Some(&b'"') {
        return None;
    }
    let end = string_end(line, at + 1)?;
    let field = keys.field(&line[at + 1..end]);
    let mut at = end + 1;
    if line.get(at) != Some(&b':') {
        return None;
    }
    at += 1;
    if line.get(at) == Some(&b' ') {
        at += 1;
    }
    Some((field, at))
}

/// A string value whose opening quote is behind us; where the next byte after it is.
#[inline]
fn quoted<'a>(
    line: &'a [u8],
    at: usize,
    field: Field,
    keys: &Keys,
    found: &mut Found<'a>,
    clock: &mut Clock,
) -> Option<usize> {
    match field {
        Field::Client => {
            found.has_client = true;
            if let Some((address, len)) = ipv4_prefix(&line[at..])
                && line.get(at + len) == Some(&b'"')
            {
                found.client = Some(address.into());
                return Some(at + len + 1);
            }
        }
        Field::Time => {
            if let Some((len, time)) = clock.same_again(&line[at..]) {
                found.time = Some(time);
                return Some(at + len + 1);
            }
        }
        Field::Status => {
            if let Some([a, b, c, b'"']) = line.get(at..at + 4)
                && [a, b, c].iter().all(|d| d.is_ascii_digit())
            {
                found.status = Some([a, b, c].iter().fold(0, |n, d| n * 10 + u16::from(*d - b'0')));
                return Some(at + 4);
            }
        }
        Field::Method => {
            if let Some(get @ [b'G', b'E', b'T', b'"']) = line.get(at..at + 4) {
                found.method = Some(&get[..3]);
                return Some(at + 4);
            }
        }
        Field::Size => {
            let (size, len) = digits(&line[at..]);
            if (1..=18).contains(&len) && line.get(at + len) == Some(&b'"') {
                found.size = Some(size);
                return Some(at + len + 1);
            }
        }
        _ => {}
    }
    let end = string_end(line, at)?;
    let text = &line[at..end];
    match field {
        Field::Other => {}
        Field::Client if keys.client_has_port => found.client = value::address_with_port(text),
        Field::Client => found.client = value::address(text),
        Field::Time => found.time = clock.read(text),
        Field::Method => found.method = Some(text),
        Field::Path => found.path = Some(text),
        Field::Status => found.status = value::number(text).and_then(|n| n.try_into().ok()),
        Field::Size => found.size = value::number(text),
        Field::Peer => found.peer = value::address(text),
        Field::Msec => found.msec = value::epoch(text),
    }
    Some(end + 1)
}

/// The digits at the beginning of a text, as a number where they are at most 19, and how many they are.
#[inline]
fn digits(text: &[u8]) -> (u64, usize) {
    let mut value = 0u64;
    for (len, byte) in text.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return (value, len);
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    (value, text.len())
}

/// A number without quotes. Only plain integers, and `$msec` with at most three decimals: where
/// JSON's numbers get subtle, serde_json reads them.
fn bare(line: &[u8], at: usize, field: Field, found: &mut Found<'_>) -> Option<usize> {
    let rest = &line[at..];
    let len = rest.iter().position(|b| !matches!(b, b'0'..=b'9' | b'.'))?;
    let text = &rest[..len];
    match (field, text) {
        (_, [] | [b'0', _, ..]) => return None,
        (Field::Status, _) => found.status = value::number(text)?.try_into().ok(),
        (Field::Size, _) => found.size = Some(value::number(text)?),
        (Field::Msec, [.., b'.', _] | [.., b'.', _, _] | [.., b'.', _, _, _]) => found.msec = Some(value::epoch(text)?),
        (Field::Other, _) => {
            let mut parts = text.split(|&b| b == b'.');
            let whole = parts.next().is_some_and(|p| !p.is_empty());
            let fraction = parts.next().is_none_or(|p| !p.is_empty());
            if !whole || !fraction || parts.next().is_some() {
                return None;
            }
        }
        _ => return None,
    }
    Some(at + len)
}

/// From this length on memchr is faster than what it costs to call it.
const SHORT_STRING: usize = 40;

/// The closing quote of a string without escapes that begins at `at`. Eight bytes at a time: most
/// strings are short.
#[inline]
fn string_end(line: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    // The high bit of the first byte that is zero is set (of later ones perhaps wrongly, which does not matter).
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    for _ in 0..SHORT_STRING / 8 {
        let Some(chunk) = line.get(at..).and_then(|rest| rest.first_chunk::<8>()) else { break };
        let word = u64::from_le_bytes(*chunk);
        let hits = zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
        if hits != 0 {
            at += hits.trailing_zeros() as usize / 8;
            return (line[at] == b'"').then_some(at);
        }
        at += 8;
    }
    let rest = line.get(at..)?;
    let len = if rest.len() < 8 {
        rest.iter().position(|b| matches!(b, b'"' | b'\\'))?
    } else {
        memchr::memchr2(b'"', b'\\', rest)?
    };
    (rest[len] == b'"').then_some(at + len)
}
