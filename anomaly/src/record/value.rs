//! The values inside a line: addresses, stamps and numbers, from bytes.
//!
//! Nothing here knows keys or JSON. Each reader takes the whole value or nothing: there is no
//! trimming, no list, no "starts with".

use std::net::{IpAddr, Ipv4Addr};

use super::chunk::{self, Chunk};
use super::ipv6::ipv6;
use super::prefix::Prefix;
use crate::time::Timestamp;

/// Longest stamp that is looked at.
const LONGEST_STAMP: usize = 64;

/// An IPv4 or IPv6 address, IPv4-mapped IPv6 turned into IPv4.
///
/// No ports, zones, brackets or lists: an `X-Forwarded-For` list says whatever its sender likes, so
/// taking any one entry of it would let him frame a victim or get the proxy banned.
pub(super) fn address(text: &[u8]) -> Option<IpAddr> {
    if let Some((address, end)) = ipv4_prefix(text)
        && end == text.len()
    {
        return Some(IpAddr::V4(address));
    }
    Some(IpAddr::V6(ipv6(text)?).to_canonical())
}

/// An address with or without a port: `192.0.2.1:1234`, `[2001:db8::1]:1234`.
pub(super) fn address_with_port(text: &[u8]) -> Option<IpAddr> {
    let port = |port: &[u8]| number(port).is_some_and(|n| n <= u64::from(u16::MAX));
    if let Some(rest) = text.strip_prefix(b"[") {
        let end = memchr::memchr(b']', rest)?;
        let behind = &rest[end + 1..];
        return (behind.is_empty() || behind.strip_prefix(b":").is_some_and(port)).then(|| address(&rest[..end]))?;
    }
    match memchr::memchr(b':', text) {
        Some(colon) if text.contains(&b'.') && !text[colon + 1..].contains(&b':') => {
            port(&text[colon + 1..]).then(|| address(&text[..colon]))?
        }
        _ => address(text),
    }
}

/// A dotted quad at the beginning of `text`, and where it ends. As strict as the standard library: one to
/// three digits each, no leading zero.
#[inline]
pub(super) fn ipv4_prefix(text: &[u8]) -> Option<(Ipv4Addr, usize)> {
    // The longest has 15 bytes: with the one behind it and what is read past that, all that matters is in here.
    match text.first_chunk() {
        Some(bytes) => ipv4_in(bytes),
        None => ipv4_at_the_end(text),
    }
}

/// The same of the first bytes of a longer text, without a branch for each of them: the lengths of the numbers are
/// unpredictable.
#[inline]
fn ipv4_in(text: &[u8; 20]) -> Option<(Ipv4Addr, usize)> {
    let chunk = Chunk::new(text.first_chunk()?);
    let digits = chunk.are_digits();
    // The first that is no digit ends a number, and so on.
    let first = !digits;
    let second = first & first.wrapping_sub(1);
    let third = second & second.wrapping_sub(1);
    let fourth = third & third.wrapping_sub(1);
    let ends = [first, second, third, fourth].map(u32::trailing_zeros);
    let inside = (1 << ends[3]) - 1;
    let starts = (!digits & inside) << 1 | 1;
    let wrong = (!digits & inside) ^ (chunk.are(b'.') & inside) // what is no dot between them
        | starts & !digits // a number without digits
        | digits & digits >> 1 & digits >> 2 & digits >> 3 & inside // one of more than three
        | chunk.are(b'0') & starts & digits >> 1; // one with a leading zero
    if wrong != 0 || ends[3] >= chunk::LEN as u32 {
        return None;
    }
    let (mut address, mut start) = (0, 0);
    for end in ends {
        let at = start as usize % chunk::LEN;
        let word = text[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default();
        // Three digits, zeros in front where there are fewer.
        let digits = word << (8 * (3 - (end - start)) % 32) & 0x0f_0f_0f;
        if digits.swap_bytes() > 0x02_05_05_00 {
            return None;
        }
        // Hundreds, tens and ones meet in the third byte.
        let value = digits.wrapping_mul(100 << 16 | 10 << 8 | 1) >> 16 & 0xff;
        address = address << 8 | value;
        start = end + 1;
    }
    Some((Ipv4Addr::from_bits(address), ends[3] as usize))
}

/// The digits that a text begins with, as a number where they are at most 19, and how many they are.
#[inline]
pub(super) fn digits(text: &[u8]) -> (u64, usize) {
    let Some(chunk) = text.first_chunk() else { return many_digits(text) };
    let len = (!Chunk::new(chunk).are_digits()).trailing_zeros();
    let word = text.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    if len < 8 { (few_digits(word, len), len as usize) } else { many_digits(text) }
}

/// A number of three digits before the byte `end`.
#[inline]
pub(super) fn three_digits(text: [u8; 4], end: u8) -> Option<u16> {
    let [a, b, c] = [text[0], text[1], text[2]].map(|byte| u16::from(byte.wrapping_sub(b'0')));
    (a.max(b).max(c) <= 9 && text[3] == end).then_some(a * 100 + b * 10 + c)
}

fn many_digits(text: &[u8]) -> (u64, usize) {
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

/// The number that the first `len` of eight bytes write, at most seven; all at once, because `len` is unpredictable.
/// Neighbours are added up in pairs, then pairs of those, then both halves.
#[inline]
const fn few_digits(word: u64, len: u32) -> u64 {
    // Moved to the end, with zeros before them.
    let digits = (word & 0x0f0f_0f0f_0f0f_0f0f) << 8 << (8 * (7 - len));
    let pairs = (digits.wrapping_mul(10) + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100) + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (fours.wrapping_mul(10_000) + (fours >> 32)) & 0xffff_ffff
}

#[cold]
fn ipv4_at_the_end(text: &[u8]) -> Option<(Ipv4Addr, usize)> {
    let mut octets = [0u8; 4];
    let mut at = 0;
    for (i, octet) in octets.iter_mut().enumerate() {
        if i > 0 {
            if text.get(at) != Some(&b'.') {
                return None;
            }
            at += 1;
        }
        let first = digit(text, at)?;
        at += 1;
        let mut value = first;
        if first != 0 {
            while let Some(next) = digit(text, at) {
                value = value * 10 + next;
                at += 1;
                if value > 255 {
                    return None;
                }
            }
        }
        *octet = u8::try_from(value).ok()?;
    }
    Some((Ipv4Addr::from(octets), at))
}

#[inline]
fn digit(text: &[u8], at: usize) -> Option<u32> {
    let digit = text.get(at)?.wrapping_sub(b'0');
    (digit < 10).then_some(u32::from(digit))
}

/// An unsigned integer in digits only.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for &byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// Seconds since the epoch with an optional fraction, as Nginx's `$msec` writes them; to the nearest
/// millisecond. Years 1973 to 5138, so that a small number is never taken for a stamp.
pub(super) fn epoch(text: &[u8]) -> Option<Timestamp> {
    if text.len() > LONGEST_STAMP {
        return None;
    }
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b"0"[..]),
    };
    let secs = number(whole)?;
    let fraction_ms = match fraction.len() {
        0 => return None,
        1..=3 => number(fraction)? * [100, 10, 1][fraction.len() - 1],
        _ => {
            let (tenths_of_ms, rest) = fraction.split_at(4);
            if !rest.iter().all(u8::is_ascii_digit) {
                return None;
            }
            (number(tenths_of_ms)? + 5) / 10
        }
    };
    epoch_ms(secs.checked_mul(1000)?.checked_add(fraction_ms)?)
}

/// The same of a bare number that serde_json has read.
pub(super) fn epoch_f64(secs: f64) -> Option<Timestamp> {
    // Not a number fails the comparison too.
    if !(0.0..1e11).contains(&secs) {
        return None;
    }
    epoch_ms((secs * 1000.0).round() as u64)
}

fn epoch_ms(ms: u64) -> Option<Timestamp> {
    (100_000_000_000..100_000_000_000_000).contains(&ms).then_some(Timestamp::from_ms(ms as i64))
}

/// An ISO 8601 stamp with a zone.
pub(super) fn stamp(text: &[u8]) -> Option<Timestamp> {
    if let Some(time) = usual_stamp(text) {
        return Some(time);
    }
    if text.len() > LONGEST_STAMP {
        return None;
    }
    Timestamp::parse(std::str::from_utf8(text).ok()?)
}

/// `2026-04-27T09:25:51+01:00`, `...+0100` or `...Z`, years 1 to 9998, no leap second. Everything else is left to
/// [`Timestamp::parse`], which agrees with this on what both accept.
fn usual_stamp(text: &[u8]) -> Option<Timestamp> {
    let (clock, zone) = text.split_at_checked(19)?;
    let two = |at: usize| Some(digit(clock, at)? * 10 + digit(clock, at + 1)?);
    if [clock[4], clock[7], clock[10], clock[13], clock[16]] != *b"--T::" {
        return None;
    }
    let year = two(0)? * 100 + two(2)?;
    let (month, day) = (two(5)?, two(8)?);
    let (hour, minute, second) = (two(11)?, two(14)?, two(17)?);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_in_month = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => return None,
    };
    if !(1..=9998).contains(&year) || !(1..=days_in_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let ahead_minutes = match *zone {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), ref rest @ ..] => {
            let (hours, minutes) = match *rest {
                [a, b, b':', c, d] | [a, b, c, d] => (pair(a, b)?, pair(c, d)?),
                _ => return None,
            };
            if hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = i64::from(hours * 60 + minutes);
            if sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let day_secs = i64::from(hour * 3600 + minute * 60 + second);
    Some(Timestamp::from_secs(days_from_civil(year, month, day) * 86_400 + day_secs - ahead_minutes * 60))
}

/// `27/Apr/2026:09:25:51 +0100`, as the combined format has it.
fn common_stamp(text: &[u8]) -> Option<Timestamp> {
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let [d1, d2, b'/', m1, m2, m3, b'/', y1, y2, y3, y4, b':', h1, h2, b':', i1, i2, b':', s1, s2, b' ', z, a, b, c, d] =
        *text
    else {
        return None;
    };
    let month = 1 + MONTHS.iter().position(|month| **month == [m1, m2, m3])?;
    let (tens, ones) = (b'0' + (month / 10) as u8, b'0' + (month % 10) as u8);
    usual_stamp(&[
        y1, y2, y3, y4, b'-', tens, ones, b'-', d1, d2, b'T', h1, h2, b':', i1, i2, b':', s1, s2, z, a, b, c, d,
    ])
}

fn pair(tens: u8, ones: u8) -> Option<u32> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then_some(u32::from(tens) * 10 + u32::from(ones))
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar.
///
/// The year is counted from March, so that the leap day is its last: 146,097 days in 400 years, and
/// (153 m + 2) / 5 days before the mth month (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
fn days_from_civil(year: u32, month: u32, day: u32) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let month_from_march = i64::from((month + 9) % 12);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Reads stamps, and remembers the last one: a log has thousands of lines with the same.
#[derive(Debug, Default)]
pub(super) struct Clock {
    text: Vec<u8>,
    /// The text with its closing quote, where it is short.
    quoted: Option<Prefix>,
    time: Timestamp,
}

impl Clock {
    /// The stamp of `text`: ISO 8601, seconds since the epoch, or as in the combined format.
    #[inline]
    pub(super) fn read(&mut self, text: &[u8]) -> Option<Timestamp> {
        if text == self.text && !text.is_empty() { Some(self.time) } else { self.read_new(text) }
    }

    /// Whether a line goes on with the last stamp and a quote; then how many bytes these are, and what it says.
    #[inline]
    pub(super) fn same_again(&self, rest: &[u8]) -> Option<(usize, Timestamp)> {
        let quoted = self.quoted.as_ref()?;
        quoted.begins(rest).then_some((quoted.len(), self.time))
    }

    #[cold]
    fn read_new(&mut self, text: &[u8]) -> Option<Timestamp> {
        let time = stamp(text).or_else(|| epoch(text)).or_else(|| common_stamp(text))?;
        self.text.clear();
        self.text.extend_from_slice(text);
        self.quoted = Prefix::new(&[text, b"\""].concat());
        self.time = time;
        Some(time)
    }
}

#[cfg(test)]
mod tests {
    use super::super::differential::Random;
    use super::*;

    #[test]
    fn addresses_as_the_standard_library_reads_them() {
        for text in ["0.0.0.0", "1.2.3.4", "255.255.255.255", "2001:db8::1", "::", "::fffe:0:1"] {
            assert_eq!(address(text.as_bytes()), text.parse().ok(), "{text}");
        }
        assert_eq!(address(b"::ffff:1.2.3.4"), "1.2.3.4".parse().ok());
        assert_eq!(address(b"::ffff:102:304"), "1.2.3.4".parse().ok());
        for text in [
            "",
            "-",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.04",
            "1.2.3.256",
            "1.2.3.4 ",
            " 1.2.3.4",
            "1.2.3.4:80",
            "1.2.3.4, 5.6.7.8",
            "1.2.3.4/32",
            "fe80::1%eth0",
            "[::1]",
            "unix:",
            "1.2.3.",
            "1..3.4",
            "0x1.2.3.4",
            "1.2.3.4294967297",
        ] {
            assert_eq!(address(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn dotted_quads_are_read_at_once_as_they_are_one_by_one() {
        let (mut random, mut read) = (Random(1), 0);
        let mut next = |below| random.below(below);
        let numbers =
            ["0", "1", "10", "99", "100", "199", "255", "256", "260", "300", "999", "00", "01", "012", "1000", ""];
        for _ in 0..200_000 {
            let mut text = Vec::new();
            for nth in 0..4 {
                text.extend_from_slice(
                    if nth == 0 { "" } else { [".", ".", ".", ".", ".", "..", ":", "x"][next(8)] }.as_bytes(),
                );
                let known = if next(8) == 0 { numbers.len() } else { 7 };
                text.extend_from_slice(numbers[next(known)].as_bytes());
            }
            text.extend_from_slice([&b"\""[..], b"\"", b".", b"/", b":", b"5"][next(6)]);
            text.resize(20, b'"');
            // What is a prefix only because a digit was left out is nobody's address.
            let expected = ipv4_at_the_end(&text).filter(|(_, end)| !text[*end].is_ascii_digit());
            assert_eq!(ipv4_prefix(&text), expected, "{}", text.escape_ascii());
            read += u32::from(expected.is_some());
        }
        assert!(read > 20_000, "{read}");
    }

    #[test]
    fn usual_stamps_are_read_as_jiff_reads_them() {
        let mut tried = 0;
        for year in [1, 4, 100, 400, 1600, 1900, 1969, 1970, 1972, 2000, 2023, 2024, 2026, 2100, 9998] {
            for (month, day) in
                [(1, 1), (1, 31), (2, 28), (2, 29), (3, 1), (4, 30), (4, 31), (12, 31), (13, 1), (0, 1), (6, 0)]
            {
                for rest in ["00:00:00Z", "23:59:59+01:00", "12:30:45-0530", "24:00:00Z", "12:60:00Z", "09:25:51+14:00"]
                {
                    let text = format!("{year:04}-{month:02}-{day:02}T{rest}");
                    let read = usual_stamp(text.as_bytes());
                    if read.is_some() {
                        assert_eq!(read, Timestamp::parse(&text), "{text}");
                        tried += 1;
                    } else {
                        assert_eq!(stamp(text.as_bytes()), Timestamp::parse(&text), "{text}");
                    }
                }
            }
        }
        assert!(tried > 300, "{tried}");
        assert_eq!(stamp(b"2026-04-27T09:25:51"), None, "no zone, no instant");
        assert!(stamp(b"2026-04-27T09:25:51.250Z").is_some());
    }

    #[test]
    fn summer_time_and_leap_seconds_have_an_instant() {
        let secs = |text: &str| stamp(text.as_bytes()).map(Timestamp::as_secs);
        // The hour that comes twice when summer time ends is two hours; the one that is left out when it begins is none.
        let (summer, winter) = (secs("2026-10-25T02:30:00+02:00"), secs("2026-10-25T02:30:00+01:00"));
        assert_eq!(summer.map(|s| s + 3600), winter);
        assert_eq!(secs("2026-03-29T01:59:59+01:00").map(|s| s + 1), secs("2026-03-29T03:00:00+02:00"));
        // A leap second is the one before it: no record is lost by it, and log time does not go back.
        assert_eq!(secs("2016-12-31T23:59:60Z"), secs("2016-12-31T23:59:59Z"));
        assert!(secs("2016-12-31T23:59:60Z").is_some());
    }

    #[test]
    fn epoch_seconds_to_the_nearest_millisecond() {
        let read = |text: &str| epoch(text.as_bytes()).map(Timestamp::as_ms);
        assert_eq!(read("1714209951.123"), Some(1_714_209_951_123));
        assert_eq!(read("1714209951.1"), Some(1_714_209_951_100));
        assert_eq!(read("1714209951"), Some(1_714_209_951_000));
        assert_eq!(read("1714209951.9996"), Some(1_714_209_952_000));
        assert_eq!(read("1714209951.12349999"), Some(1_714_209_951_123));
        for text in
            ["", ".", "5", "-1", "1714209951.", "1714209951.x", "1714209951.1234x", "1e9", "99999999999999999999"]
        {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(epoch_f64(f64::NAN), None);
        assert_eq!(epoch_f64(1_714_209_951.123).map(Timestamp::as_ms), Some(1_714_209_951_123));
    }

    #[test]
    fn digits_are_counted_and_read_wherever_the_text_ends() {
        for number in ["", "0", "7", "007", "42", "1234567", "12345678", "999999999999999999", "1234567890123456789"] {
            for before in ["", "x", "12345678", "a long text: "] {
                for behind in ["", "\"", "\"}", " and more than eight bytes", "/9"] {
                    let text = format!("{before}{number}{behind}");
                    let read = digits(&text.as_bytes()[before.len()..]);
                    assert_eq!(read, (number.parse().unwrap_or(0), number.len()), "{text}");
                }
            }
        }
        for (text, read) in
            [(b"404\"", Some(404)), (b"000\"", Some(0)), (b"404,", None), (b"4x4\"", None), (b"40\"\"", None)]
        {
            assert_eq!(three_digits(*text, b'"'), read);
        }
    }

    #[test]
    fn a_stamp_is_remembered_only_when_it_was_read() {
        let mut clock = Clock::default();
        assert_eq!(clock.read(b""), None);
        assert_eq!(clock.read(b"soon"), None);
        assert_eq!(clock.same_again(b"\"rest"), None);
        let time = clock.read(b"2026-04-27T09:25:51Z");
        assert!(time.is_some());
        assert_eq!(clock.read(b"later"), None);
        assert_eq!(clock.same_again(b"2026-04-27T09:25:51Z\",").map(|(_, t)| t), time);
        assert_eq!(clock.same_again(b"2026-04-27T09:25:51Z"), None);
    }
}
