//! A line of the combined (or common) format:
//! `203.0.113.7 - user [27/Apr/2026:09:25:51 +0100] "GET /path HTTP/1.1" 200 153 "referer" "agent"`.
//!
//! The address is what the line begins with, so nothing that a client sends can pass for it.

use super::fallback::closing_quote;
use super::value::{self, Clock};
use super::{Found, Record};

/// Reads a line. What is missing behind the address is missing in the record.
pub(super) fn read<'r, 'a>(line: &'a [u8], clock: &mut Clock, record: &'r mut Record<'a>) -> Found<'r, 'a> {
    let mut found = Found::new(record);
    let (address, rest) = line.split_at(memchr::memchr(b' ', line).unwrap_or(line.len()));
    // A line that does not even go on is not of this format.
    found.broken = rest.is_empty();
    found.has_client = !found.broken;
    if found.broken {
        return found;
    }
    found.client(value::address(address));
    let Some(quote) = memchr::memchr(b'"', rest) else { return found };
    let (before, request) = (&rest[..quote], &rest[quote + 1..]);
    // The user's name may have brackets in it: the stamp is what stands last before the request.
    if let Some(stamp) = before.trim_ascii_end().strip_suffix(b"]")
        && let Some(bracket) = memchr::memrchr(b'[', stamp)
    {
        found.time(clock.read(&stamp[bracket + 1..]));
    }
    let Some(end) = closing_quote(request) else {
        found.record.damaged = true;
        return found;
    };
    let (request, after) = (&request[..end], &request[end + 1..]);
    let mut words = request.splitn(2, |b| *b == b' ');
    found.method(words.next());
    // The protocol is the last word; a path may have blanks.
    found.path(words.next().map(|path| match memchr::memrchr(b' ', path) {
        Some(blank) if path[blank + 1..].starts_with(b"HTTP/") => &path[..blank],
        _ => path,
    }));
    let mut numbers = after.trim_ascii_start().split(|b| *b == b' ');
    found.status(numbers.next().and_then(value::number).and_then(|n| n.try_into().ok()));
    found.size(numbers.next().and_then(|size| if size == b"-" { Some(0) } else { value::number(size) }));
    found
}
