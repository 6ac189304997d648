//! The fast way through a line of the usual form: one flat object, strings without escapes, numbers without sign or
//! exponent. Whatever else a line may be, [`scan`] gives up on it and [`super::fallback`] reads it.
//!
//! Almost every line has the keys of the line before it, in the same order. So what stood before each value, from the
//! end of the one before on, is remembered, and compared as a whole before it is read letter by letter.

use super::format::{Field, Keys};
use super::prefix::Prefix;
use super::value::{Clock, digits_at, ipv4_prefix};
use super::{Found, value};

/// More keys than this are not remembered, only read.
const REMEMBERED_KEYS: usize = 24;

/// The keys of the line before, in its order.
#[derive(Debug, Default)]
pub(super) struct Shape {
    openings: Vec<Opening>,
}

/// What stands before a value: `{"key":` or `,"key":`, and the opening quote if there is one.
#[derive(Debug)]
struct Opening {
    text: Prefix,
    value: Value,
}

/// What is known of a value before it is read.
#[derive(Clone, Copy, Debug)]
struct Value {
    field: Field,
    /// One bit of the field; none for those that nobody asks for.
    bit: u16,
    quoted: bool,
}

impl Shape {
    /// What stands before the nth value, letter by letter, and how many bytes it takes; remembers it.
    #[cold]
    #[inline(never)]
    fn learn(&mut self, nth: usize, rest: &[u8], keys: &Keys) -> Option<(Value, usize)> {
        let (value, len) = read_opening(rest, if nth == 0 { b'{' } else { b',' }, keys)?;
        if nth < REMEMBERED_KEYS.min(self.openings.len() + 1) {
            // One that is too long keeps its place, for the sake of those behind it.
            let opening = Opening { text: Prefix::new(&rest[..len]).unwrap_or(Prefix::NOTHING), value };
            match self.openings.get_mut(nth) {
                Some(old) => *old = opening,
                None => self.openings.push(opening),
            }
        }
        Some((value, len))
    }
}

/// The keys that `nginx/log_format.conf` begins with, in its order.
const USUAL: [Field; 6] = [Field::Client, Field::Time, Field::Method, Field::Path, Field::Status, Field::Size];

/// Reads a line of the usual form; `None` when it is not quite that, and what was found then means nothing.
pub(super) fn scan<'a>(
    line: &'a [u8],
    keys: &Keys,
    shape: &mut Shape,
    clock: &mut Clock,
    found: &mut Found<'a>,
) -> Option<()> {
    let mut line = Line { line, rest: line, seen: 0, nth: 0, keys, shape, clock, found };
    // Which field comes next decides where to jump to, and processors foretell that badly. So the first ones are guessed here:
    // in our own format, that is a branch which always goes the same way.
    let [a, b, c, d, e, f] = USUAL;
    let goes_on = line.next(a)? && line.next(b)? && line.next(c)? && line.next(d)? && line.next(e)? && line.next(f)?;
    while goes_on && line.next(Field::Other)? {}
    Some(())
}

/// A line that is being read.
struct Line<'a, 'p> {
    line: &'a [u8],
    /// What is not read yet.
    rest: &'a [u8],
    /// One bit of each field that was there.
    seen: u16,
    /// How many values were.
    nth: usize,
    keys: &'p Keys,
    shape: &'p mut Shape,
    clock: &'p mut Clock,
    found: &'p mut Found<'a>,
}

impl Line<'_, '_> {
    /// Reads the next value, or the end: then the answer is false. Only speed depends on `guess`, which must be a constant.
    #[inline(always)]
    fn next(&mut self, guess: Field) -> Option<bool> {
        let (value, len) = match self.shape.openings.get(self.nth) {
            Some(opening) if opening.text.begins(self.rest) => (opening.value, opening.text.len()),
            _ if self.nth > 0 && self.rest.first() == Some(&b'}') => {
                let mut behind = self.rest[1..].iter();
                return behind.all(|b| matches!(b, b' ' | b'\r' | b'\t' | b'\n')).then_some(false);
            }
            _ => self.shape.learn(self.nth, self.rest, self.keys)?,
        };
        // Which of two is meant is for others to say.
        if self.seen & value.bit != 0 {
            return None;
        }
        self.seen |= value.bit;
        self.nth += 1;
        self.rest = &self.rest[len..];
        // A value may be quoted in this line that was not in the one before.
        let is_quoted = value.quoted || self.rest.first() == Some(&b'"');
        if is_quoted && !value.quoted {
            self.rest = &self.rest[1..];
        }
        let len = match (is_quoted, value.field == guess) {
            (true, true) => self.quoted(guess)?,
            (true, false) => self.any_quoted(value.field)?,
            (false, _) => bare(self.rest, value.field, self.found)?,
        };
        self.rest = &self.rest[len..];
        Some(true)
    }

    #[inline(never)]
    fn any_quoted(&mut self, field: Field) -> Option<usize> {
        self.quoted(field)
    }

    /// A string value whose opening quote is behind us; how many bytes it takes with its closing quote.
    #[inline(always)]
    fn quoted(&mut self, field: Field) -> Option<usize> {
        let Self { line, rest, found, .. } = self;
        let (line, rest) = (*line, *rest);
        match field {
            Field::Client => {
                found.has_client = true;
                if let Some((address, len)) = ipv4_prefix(rest)
                    && rest.get(len) == Some(&b'"')
                {
                    found.client = Some(address.into());
                    return Some(len + 1);
                }
            }
            Field::Time => {
                if let Some((len, time)) = self.clock.same_again(rest) {
                    found.time = Some(time);
                    return Some(len);
                }
            }
            Field::Status => {
                if let Some(chunk) = rest.first_chunk()
                    && let Some(status) = value::three_digits(*chunk, b'"')
                {
                    found.status = Some(status);
                    return Some(4);
                }
            }
            Field::Method => {
                if let Some(b"GET\"") = rest.first_chunk() {
                    found.method = Some(&rest[..3]);
                    return Some(4);
                }
            }
            Field::Size => {
                let (size, len) = digits_at(line, line.len() - rest.len());
                if (1..=18).contains(&len) && rest.get(len) == Some(&b'"') {
                    found.size = Some(size);
                    return Some(len + 1);
                }
            }
            Field::Path => {
                let len = string_end(rest)?;
                found.path = Some(&rest[..len]);
                return Some(len + 1);
            }
            Field::Other => return Some(string_end(rest)? + 1),
            Field::Peer | Field::Msec => {}
        }
        unusual(rest, field, self.keys, found, self.clock)
    }
}

/// What stands before a value, and how many bytes it takes; `first` is the first of them.
fn read_opening(rest: &[u8], first: u8, keys: &Keys) -> Option<(Value, usize)> {
    let byte = |at: usize| rest.get(at).copied();
    let skip_space = |at: usize| if byte(at) == Some(b' ') { at + 1 } else { at };
    if byte(0) != Some(first) {
        return None;
    }
    let at = if first == b',' { skip_space(1) } else { 1 };
    if byte(at) != Some(b'"') {
        return None;
    }
    let name = &rest[at + 1..];
    let len = string_end(name)?;
    let field = keys.field(&name[..len]);
    let colon = at + len + 2;
    if byte(colon) != Some(b':') {
        return None;
    }
    let at = skip_space(colon + 1);
    let quoted = byte(at) == Some(b'"');
    let bit = if field == Field::Other { 0 } else { 1 << field as u16 };
    Some((Value { field, bit, quoted }, at + usize::from(quoted)))
}

/// The same of a value that has not the form that most have.
#[inline(never)]
fn unusual<'a>(rest: &'a [u8], field: Field, keys: &Keys, found: &mut Found<'a>, clock: &mut Clock) -> Option<usize> {
    let len = string_end(rest)?;
    let text = &rest[..len];
    match field {
        // Read already, whatever their form.
        Field::Path | Field::Other => {}
        Field::Client if keys.client_has_port => found.client = value::address_with_port(text),
        Field::Client => found.client = value::address(text),
        Field::Time => found.time = clock.read(text),
        Field::Method => found.method = Some(text),
        Field::Status => found.status = value::number(text).and_then(|n| n.try_into().ok()),
        Field::Size => found.size = value::number(text),
        Field::Peer => found.peer = value::address(text),
        Field::Msec => found.msec = value::epoch(text),
    }
    Some(len + 1)
}

/// A number without quotes; how many bytes it takes. Only plain integers, `$msec` with at most three decimals, and any decimals
/// where nobody asks: where JSON's numbers get subtle, serde_json reads them.
#[inline(never)]
fn bare(rest: &[u8], field: Field, found: &mut Found<'_>) -> Option<usize> {
    let len = rest.iter().position(|b| !matches!(b, b'0'..=b'9' | b'.'))?;
    let text = &rest[..len];
    match (field, text) {
        (_, [] | [b'0', b'0'..=b'9', ..]) => return None,
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
    Some(len)
}

/// From this length on memchr is faster than what it costs to call it.
const SHORT_STRING: usize = 40;

/// Where the closing quote of a string without escapes is. Eight bytes at a time: most strings are short.
#[inline]
fn string_end(rest: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    // The high bit of the first byte that is zero is set (of later ones perhaps wrongly, which does not matter).
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let mut at = 0;
    while at < SHORT_STRING
        && let Some(chunk) = rest[at..].first_chunk()
    {
        let word = u64::from_le_bytes(*chunk);
        let hits = zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
        if hits != 0 {
            at += hits.trailing_zeros() as usize / 8;
            return (rest[at] == b'"').then_some(at);
        }
        at += 8;
    }
    let tail = &rest[at..];
    let len = if tail.len() < 8 {
        tail.iter().position(|b| matches!(b, b'"' | b'\\'))?
    } else {
        memchr::memchr2(b'"', b'\\', tail)?
    };
    (tail[len] == b'"').then_some(at + len)
}
