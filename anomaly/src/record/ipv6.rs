//! IPv6 addresses from bytes: most clients of many sites have one, and under a flood of addresses reading them with the
//! standard library took a third of the time that a line takes.

use std::net::Ipv6Addr;

/// Longest text of an IPv6 address: six groups and a dotted quad.
const LONGEST: usize = 45;

/// What a byte counts as a hexadecimal digit; [`NONE`] where it is none.
const DIGITS: [u8; 256] = {
    let mut digits = [NONE; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value as usize] as usize] = value;
        digits[b"0123456789ABCDEF"[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

const NONE: u8 = 0xff;

/// The address that the whole of `text` is, as strictly as the standard library reads it: groups of one to four digits, `::`
/// for one or more of them.
pub(super) fn ipv6(text: &[u8]) -> Option<Ipv6Addr> {
    let (mut at, mut gap) = (0, None);
    if text.starts_with(b"::") {
        (at, gap) = (2, Some(0));
    }
    let (mut bits, mut groups) = (0u128, 0);
    while at < text.len() {
        let (group, len) = group(&text[at..]);
        at += len;
        if len == 0 || groups == 8 {
            return None;
        }
        bits = bits << 16 | u128::from(group);
        groups += 1;
        match &text[at..] {
            [] => break,
            [b':', b':', ..] if gap.is_none() => {
                gap = Some(groups);
                at += 2;
            }
            [b':', _, ..] => at += 1,
            // Rare: the last two groups written as IPv4. And whatever is none.
            _ => return with_ipv4(text),
        }
    }
    let behind = match gap {
        None if groups == 8 => 8,
        Some(before) if groups < 8 => groups - before,
        _ => return None,
    };
    // What was written before the gap moves up to where it belongs.
    let last = u128::MAX.unbounded_shr(128 - 16 * behind);
    Some(Ipv6Addr::from_bits((bits & !last).unbounded_shl(16 * (8 - groups)) | bits & last))
}

/// The digits at the beginning of `text`, at most four, as a number, and how many they are.
fn group(text: &[u8]) -> (u16, usize) {
    let (mut value, mut len) = (0, 0);
    for byte in text.iter().take(4) {
        let digit = DIGITS[usize::from(*byte)];
        if digit == NONE {
            break;
        }
        value = value << 4 | u16::from(digit);
        len += 1;
    }
    (value, len)
}

#[cold]
fn with_ipv4(text: &[u8]) -> Option<Ipv6Addr> {
    if text.len() > LONGEST {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agrees(text: &str) -> Option<Ipv6Addr> {
        let read = ipv6(text.as_bytes());
        assert_eq!(read, text.parse().ok(), "{text}");
        read
    }

    #[test]
    fn reads_what_the_standard_library_reads() {
        for text in [
            "::",
            "::1",
            "1::",
            "2001:db8::1",
            "1:2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
            "1::3:4:5:6:7:8",
            "FE80::AbCd",
            "0000:0000:0000:0000:0000:0000:0000:0001",
            "::ffff:192.0.2.1",
            "64:ff9b::192.0.2.1",
            "1:2:3:4:5:6:192.0.2.1",
            "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255",
        ] {
            assert!(agrees(text).is_some(), "{text}");
        }
        for text in [
            "",
            ":",
            ":::",
            "1",
            "1:",
            ":1",
            "1::2::3",
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4:5:6:7:8::",
            "::1:2:3:4:5:6:7:8",
            "12345::",
            "1:::2",
            "g::",
            "1::g",
            "::1%eth0",
            "[::1]",
            "::1 ",
            " ::1",
            "1:2:3:4:5:6:7:192.0.2.1",
            "::192.0.2.256",
            "::1.2.3.4:5",
            "0x1::",
            "+1::",
            "1:2:3:4:5:6:7:8:",
            "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.2555",
        ] {
            assert_eq!(agrees(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library(text in "[0-9a-fA-F:]{0,40}|([0-9a-f]{0,5}:{1,2}){0,9}[0-9a-fg.]{0,5}") {
            agrees(&text);
        }

        #[test]
        fn reads_every_address_as_it_is_written(bits: u128, mask: u128, short: u8) {
            // With zeros, so that there are gaps.
            let address = Ipv6Addr::from_bits(if short < 128 { bits } else { bits & mask & mask.rotate_left(64) });
            prop_assert_eq!(agrees(&address.to_string()), Some(address));
            let groups = address.segments().map(|group| format!("{group:04X}"));
            prop_assert_eq!(agrees(&groups.join(":")), Some(address));
        }
    }
}
