//! The fast way through a line of the usual form: one flat object, strings without escapes, numbers without sign or
//! exponent. Whatever else a line may be, [`scan`] gives up on it and [`super::fallback`] reads it.
//!
//! Nobody looks for the end of such a line before: it is where the object ends. So a newline ends a string, too.
//!
//! Almost every line has the keys of the line before it, in the same order. So what stood before each value, from the
//! end of the one before on, is remembered, and compared as a whole before it is read letter by letter.

use super::chunk;
use super::extension::Extension;
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
    /// They begin with the [`USUAL`] ones, and all of these have quotes.
    is_usual: bool,
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
    quoted: bool,
}

impl Shape {
    /// What stands before the values that our own format begins with, if it is that.
    #[inline]
    fn usual(&self) -> Option<&[Opening; USUAL.len()]> {
        self.openings.first_chunk().filter(|_| self.is_usual)
    }

    /// What stands before the nth value, letter by letter, and how many bytes it takes; remembers it.
    #[cold]
    #[inline(never)]
    fn learn(&mut self, nth: usize, rest: &[u8], keys: &Keys) -> Option<(Value, usize)> {
        let (value, len) = read_opening(rest, if nth == 0 { b'{' } else { b',' }, keys)?;
        if nth < REMEMBERED_KEYS.min(self.openings.len() + 1) {
            // One that is too long keeps its place, for the sake of those behind it.
            let opening = Opening { text: Prefix::new(&rest[..len]).unwrap_or_else(Prefix::nothing), value };
            match self.openings.get_mut(nth) {
                Some(old) => *old = opening,
                None => self.openings.push(opening),
            }
            let first = self.openings.iter().map(|opening| (opening.value.field, opening.value.quoted));
            self.is_usual = first.take(USUAL.len()).eq(USUAL.map(|field| (field, true)));
        }
        Some((value, len))
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
        let (value, len) = match shape.openings.get(nth) {
            Some(opening) if opening.text.begins(rest) => (opening.value, opening.text.len()),
            _ if nth > 0 && rest.first() == Some(&b'}') => return Some(text.len() - behind(&rest[1..])?.len()),
            _ => shape.learn(nth, rest, keys)?,
        };
        // Which of two is meant is for others to say.
        if seen & value.field.bit() != 0 {
            return None;
        }
        seen |= value.field.bit();
        nth += 1;
        rest = &rest[len..];
        // A value may be quoted in this line that was not in the one before.
        let is_quoted = value.quoted || rest.first() == Some(&b'"');
        if is_quoted && !value.quoted {
            rest = &rest[1..];
        }
        let len = if is_quoted {
            any_quoted(value.field, text, rest, keys, clock, found)?
        } else {
            bare(rest, value.field, found)?
        };
        rest = &rest[len..];
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

/// Reads the next value if it has the key of the line before, which is that of `field`.
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
    let opening = &openings[*nth];
    if !opening.text.begins(rest) {
        return Some(false);
    }
    *rest = &rest[opening.text.len()..];
    *rest = &rest[quoted(field, text, rest, keys, clock, found)?..];
    *nth += 1;
    Some(true)
}

#[inline(never)]
fn any_quoted<'a>(
    field: Field,
    text: &'a [u8],
    rest: &'a [u8],
    keys: &Keys,
    clock: &mut Clock,
    found: &mut Found<'_, 'a>,
) -> Option<usize> {
    quoted(field, text, rest, keys, clock, found)
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
    Some((Value { field, quoted }, at + usize::from(quoted)))
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
