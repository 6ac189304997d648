//! The fast way through a line of the usual form: one flat object, strings without escapes, numbers without sign or
//! exponent. Whatever else a line may be, [`scan`] gives up on it and [`super::fallback`] reads it.
//!
//! Nobody looks for the end of such a line before: it is where the object ends. So a newline ends a string, too.
//!
//! Almost every line has the keys of the line before it, in the same order. So what stood before each value, from the
//! end of the one before on, is remembered, and compared as a whole before it is read letter by letter.

use super::Extension;
use super::chunk;
use super::format::{Field, Keys};
use super::prefix::Prefix;
use super::value::{Clock, digits, ipv4_prefix};
use super::{Found, value};

/// More keys than this are not remembered, only read.
const REMEMBERED_KEYS: usize = 24;

/// The keys of the line before, in its order.
#[derive(Debug, Default)]
pub(super) struct Shape {
    openings: Vec<Opening>,
    /// They begin with the [`USUAL`] ones.
    is_usual: bool,
}

/// What stands before a value: `{"key":` or `,"key":`.
#[derive(Debug)]
struct Opening {
    text: Prefix,
    /// The same before a string.
    with_quote: Prefix,
    field: Field,
}

impl Opening {
    /// What is behind it where a text begins with it, and a string or a number follows.
    #[inline(always)]
    fn value<'a>(&self, text: &'a [u8]) -> Option<&'a [u8]> {
        let value = self.text.begins(text).then(|| &text[self.text.len()..])?;
        matches!(value, [b'"' | b'0'..=b'9', ..]).then_some(value)
    }
}

impl Shape {
    /// What stands before the values that our own format begins with, if it is that.
    #[inline]
    fn usual(&self) -> Option<&[Opening; USUAL.len()]> {
        self.openings.first_chunk().filter(|_| self.is_usual)
    }

    /// Whose value the nth is, and what is behind its opening, which is read letter by letter; remembers it.
    #[cold]
    #[inline(never)]
    fn learn<'a>(&mut self, nth: usize, rest: &'a [u8], keys: &Keys) -> Option<(Field, &'a [u8])> {
        let (field, len) = read_opening(rest, if nth == 0 { b'{' } else { b',' }, keys)?;
        if nth < REMEMBERED_KEYS.min(self.openings.len() + 1) {
            // One that is too long keeps its place, for the sake of those behind it.
            let prefix = |text: &[u8]| Prefix::new(text).unwrap_or_else(Prefix::nothing);
            let text = &rest[..len];
            let opening = Opening { text: prefix(text), with_quote: prefix(&[text, b"\""].concat()), field };
            match self.openings.get_mut(nth) {
                Some(old) => *old = opening,
                None => self.openings.push(opening),
            }
            self.is_usual = self.openings.iter().map(|opening| opening.field).take(USUAL.len()).eq(USUAL);
        }
        Some((field, &rest[len..]))
    }
}

/// The keys that `nginx/log_format.conf` begins with, in its order.
const USUAL: [Field; 6] = [Field::Client, Field::Time, Field::Method, Field::Path, Field::Status, Field::Size];

/// Reads the line of the usual form that `text` begins with: how many bytes it takes with its newline. `None` when it is not
/// quite of that form, and what was found then means nothing.
#[inline]
pub(super) fn scan<'a>(
    text: &'a [u8],
    keys: &Keys,
    shape: &mut Shape,
    clock: &mut Clock,
    found: &mut Found<'_, 'a>,
) -> Option<usize> {
    let (mut rest, mut nth) = (text, 0);
    if let Some(openings) = shape.usual() {
        // Which field comes next is where to jump to, and processors foretell that badly. Here they need not, and nothing has to
        // be asked but whether the keys are the same again.
        let [a, b, c, d, e, f] = USUAL;
        let _ = again(a, openings, text, (&mut rest, &mut nth), keys, clock, found)?
            && again(b, openings, text, (&mut rest, &mut nth), keys, clock, found)?
            && again(c, openings, text, (&mut rest, &mut nth), keys, clock, found)?
            && again(d, openings, text, (&mut rest, &mut nth), keys, clock, found)?
            && again(e, openings, text, (&mut rest, &mut nth), keys, clock, found)?
            && again(f, openings, text, (&mut rest, &mut nth), keys, clock, found)?;
    }
    let mut seen = USUAL[..nth].iter().fold(0, |seen, field| seen | field.bit());
    loop {
        let remembered = shape.openings.get(nth).and_then(|opening| Some((opening.field, opening.value(rest)?)));
        let (field, value) = match remembered {
            Some(remembered) => remembered,
            None if nth > 0 && rest.first() == Some(&b'}') => return Some(text.len() - behind(&rest[1..])?.len()),
            None => shape.learn(nth, rest, keys)?,
        };
        // Which of two is meant is for others to say.
        if seen & field.bit() != 0 {
            return None;
        }
        seen |= field.bit();
        nth += 1;
        rest = any_value(field, text, value, keys, clock, found)?;
    }
}

/// What is behind a line whose object is over: only blanks may stand there.
#[inline]
fn behind(mut rest: &[u8]) -> Option<&[u8]> {
    while let [b' ' | b'\r' | b'\t', more @ ..] = rest {
        rest = more;
    }
    match rest {
        [] => Some(rest),
        [b'\n', next @ ..] => Some(next),
        _ => None,
    }
}

/// Reads the next value if it is a string and has the key of the line before, which is that of `field`.
#[inline(always)]
fn again<'a>(
    field: Field,
    openings: &[Opening; USUAL.len()],
    text: &'a [u8],
    (rest, nth): (&mut &'a [u8], &mut usize),
    keys: &Keys,
    clock: &mut Clock,
    found: &mut Found<'_, 'a>,
) -> Option<bool> {
    let opening = &openings[*nth].with_quote;
    if !opening.begins(rest) {
        return Some(false);
    }
    *rest = &rest[opening.len()..];
    *rest = &rest[quoted(field, text, rest, keys, clock, found)?..];
    *nth += 1;
    Some(true)
}

/// Reads a value, `value` being the end of `text`; what is behind it.
#[inline(never)]
fn any_value<'a>(
    field: Field,
    text: &'a [u8],
    value: &'a [u8],
    keys: &Keys,
    clock: &mut Clock,
    found: &mut Found<'_, 'a>,
) -> Option<&'a [u8]> {
    match value {
        [b'"', string @ ..] => Some(&string[quoted(field, text, string, keys, clock, found)?..]),
        _ => Some(&value[bare(value, field, found)?..]),
    }
}

/// A string value that `rest`, the end of `text`, begins with, its opening quote behind us; how many bytes it takes with its
/// closing quote. Faster where `field` is a constant.
#[inline(always)]
fn quoted<'a>(
    field: Field,
    text: &'a [u8],
    rest: &'a [u8],
    keys: &Keys,
    clock: &mut Clock,
    found: &mut Found<'_, 'a>,
) -> Option<usize> {
    match field {
        Field::Client => {
            found.has_client = true;
            if let Some((address, len)) = ipv4_prefix(rest)
                && rest.get(len) == Some(&b'"')
            {
                found.client(Some(address.into()));
                return Some(len + 1);
            }
        }
        Field::Time => {
            if let Some((len, time)) = clock.same_again(rest) {
                found.time(Some(time));
                return Some(len);
            }
        }
        Field::Status => {
            if let Some(chunk) = rest.first_chunk()
                && let Some(status) = value::three_digits(*chunk, b'"')
            {
                found.status(Some(status));
                return Some(4);
            }
        }
        Field::Method => {
            if let Some(b"GET\"") = rest.first_chunk() {
                found.method(Some(&rest[..3]));
                return Some(4);
            }
        }
        Field::Size => {
            let (size, len) = digits(rest);
            if (1..=18).contains(&len) && rest.get(len) == Some(&b'"') {
                found.size(Some(size));
                return Some(len + 1);
            }
        }
        Field::Path => {
            let (len, query) = path_end(rest)?;
            let start = text.len() - rest.len();
            found.record.extension = Extension::of_path_in(text, start, start + query);
            found.put(Field::Path, |found| &mut found.record.path, Some(&rest[..len]));
            return Some(len + 1);
        }
        Field::Other => return Some(string_end(rest)? + 1),
        Field::Peer | Field::Msec => {}
    }
    unusual(rest, field, keys, found, clock)
}

/// Whose value what stands before it says it is, and how many bytes that takes; `first` is the first of them.
fn read_opening(rest: &[u8], first: u8, keys: &Keys) -> Option<(Field, usize)> {
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
    Some((field, skip_space(colon + 1)))
}

/// The same of a value that has not the form that most have.
#[inline(never)]
fn unusual<'a>(
    rest: &'a [u8],
    field: Field,
    keys: &Keys,
    found: &mut Found<'_, 'a>,
    clock: &mut Clock,
) -> Option<usize> {
    let len = string_end(rest)?;
    let text = &rest[..len];
    match field {
        // Read already, whatever their form.
        Field::Path | Field::Other => {}
        Field::Client if keys.client_has_port => found.client(value::address_with_port(text)),
        Field::Client => found.client(value::address(text)),
        Field::Time => found.time(clock.read(text)),
        Field::Method => found.method(Some(text)),
        Field::Status => found.status(value::number(text).and_then(|n| n.try_into().ok())),
        Field::Size => found.size(value::number(text)),
        Field::Peer => found.record.peer = value::address(text),
        Field::Msec => found.msec(value::epoch(text)),
    }
    Some(len + 1)
}

/// A number without quotes; how many bytes it takes. Only plain integers, `$msec` with at most three decimals, and any decimals
/// where nobody asks: where JSON's numbers get subtle, serde_json reads them.
#[inline(never)]
fn bare(rest: &[u8], field: Field, found: &mut Found<'_, '_>) -> Option<usize> {
    let len = rest.iter().position(|b| !matches!(b, b'0'..=b'9' | b'.'))?;
    let text = &rest[..len];
    match (field, text) {
        (_, [] | [b'0', b'0'..=b'9', ..]) => return None,
        (Field::Status, _) => found.status(value::number(text)?.try_into().ok()),
        (Field::Size, _) => found.size(Some(value::number(text)?)),
        (Field::Msec, [.., b'.', _] | [.., b'.', _, _] | [.., b'.', _, _, _]) => found.msec(Some(value::epoch(text)?)),
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

/// Where the closing quote of a string without escapes is.
#[inline]
fn string_end(rest: &[u8]) -> Option<usize> {
    first_of([b'"', b'\\', b'\n'], rest).filter(|at| rest[*at] == b'"')
}

/// Where the closing quote of a path without escapes is, and where its query begins, if not there.
#[inline]
fn path_end(rest: &[u8]) -> Option<(usize, usize)> {
    let at = first_of([b'"', b'\\', b'\n', b'?'], rest)?;
    match rest[at] {
        b'"' => Some((at, at)),
        b'?' => Some((at + string_end(&rest[at..])?, at)),
        _ => None,
    }
}

/// Where the first of some bytes is.
#[inline(always)]
fn first_of<const N: usize>(bytes: [u8; N], text: &[u8]) -> Option<usize> {
    let mut at = 0;
    // Two at once, which is what most strings take: how long they are cannot be foretold.
    while let Some([low, high]) = chunk::two(&text[at..]) {
        let found = low.are_any(bytes) | high.are_any(bytes) << chunk::LEN;
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize);
        }
        at += 2 * chunk::LEN;
    }
    text[at..].iter().position(|byte| bytes.contains(byte)).map(|more| at + more)
}

#[cfg(test)]
mod tests {
    use super::super::format::FieldMap;
    use super::super::{Format, Record};
    use super::*;

    #[test]
    fn one_odd_line_does_not_slow_down_all_that_follow() {
        let Format::Json(map) = Format::nginx() else { panic!("our own format is JSON") };
        let keys = Keys::new(&FieldMap { peer: None, ..map });
        let (mut shape, mut clock) = (Shape::default(), Clock::default());
        let mut read = |line: &str| {
            let mut record = Record::BLANK;
            let len = scan(line.as_bytes(), &keys, &mut shape, &mut clock, &mut Found::new(&mut record));
            (len.is_some(), shape.is_usual)
        };
        let usual = r#"{"source_ip":"192.0.2.1","timestamp":"2026-04-27T09:25:51Z","method":"GET","path":"/","status":"200","response_size":"5"}"#;
        assert_eq!(read(usual), (true, true));
        for odd in [
            usual[..usual.len() - 26].to_owned(),
            usual.replace(r#""200""#, "200"),
            usual.replace(r#""200""#, "null"),
            usual.replace(':', ": "),
            usual.replace("status", "code"),
            r#"{"foo":"bar"}"#.to_owned(),
            "x".to_owned(),
        ] {
            for line in [&odd, &odd] {
                read(line);
            }
            // What is learned of it is learned anew.
            read(usual);
            assert_eq!(read(usual), (true, true), "{odd}");
        }
        // A log that writes numbers bare is read the same way, as far as that goes.
        let bare = usual.replace(r#""200""#, "200");
        for line in [&bare, &bare] {
            assert_eq!(read(line), (true, true));
        }
    }
}
