//! What a path ends in: `css` of `/a/b.CSS?v=3`.

const ONES: u64 = u64::MAX / 0xff;
/// How many bytes are looked at: the extension, and the dot before it.
const LOOKED_AT: usize = 8;

/// What stands behind the last dot of a path, before its query, in lower case: at most [`Extension::LONGEST`] bytes. Nothing
/// where more stands there, or no dot does.
///
/// A number, so that it is compared at once: its length in the highest byte, its last byte in the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension(u64);

impl Extension {
    /// That of a path without one.
    pub const NONE: Self = Self(0);
    /// More bytes are no extension.
    pub const LONGEST: usize = 6;

    /// One that is written like this: lower case, without its dot.
    pub const fn new(text: &[u8]) -> Self {
        assert!(text.len() <= Self::LONGEST);
        Self(word(text) | (text.len() as u64) << 56)
    }

    /// The extension of a path with or without a query.
    pub fn of(path: &[u8]) -> Self {
        let path = &path[..memchr::memchr(b'?', path).unwrap_or(path.len())];
        Self::of_tail(word(&path[path.len().saturating_sub(LOOKED_AT)..]))
    }

    /// The extension of a path that is `text[start..end]` and has no query. Each record asks this, and the lengths of paths are
    /// unpredictable: so what stands before a short one is read, too.
    #[inline(always)]
    pub fn of_path_in(text: &[u8], start: usize, end: usize) -> Self {
        let Some(tail) = text.get(..end).and_then(|text| text.last_chunk()) else { return Self::of(&text[start..end]) };
        let unwanted = 8 * LOOKED_AT.saturating_sub(end - start);
        Self::of_tail(u64::from_be_bytes(*tail) & u64::MAX.checked_shr(unwanted as u32).unwrap_or(0))
    }

    /// The extension of a path of which these are the last bytes, zeros before them where it has fewer.
    #[inline(always)]
    const fn of_tail(tail: u64) -> Self {
        let len = is_dot(tail).trailing_zeros() / 8;
        let is_long = len > Self::LONGEST as u32;
        let bytes = tail & ((1 << (8 * (len % 8))) - 1);
        Self(if is_long { Self::NONE.0 } else { lower(bytes) | (len as u64) << 56 })
    }

    /// The number that it is.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// A short text as a number, its last byte the lowest.
const fn word(text: &[u8]) -> u64 {
    let (mut word, mut at) = (0, 0);
    while at < text.len() {
        word = word << 8 | text[at] as u64;
        at += 1;
    }
    word
}

/// Which of eight bytes are dots: the high bit of the lowest one is set, of those above it perhaps wrongly.
const fn is_dot(word: u64) -> u64 {
    let zero = word ^ (ONES * b'.' as u64);
    zero.wrapping_sub(ONES) & !zero & (ONES << 7)
}

/// Eight bytes with A to Z in lower case.
const fn lower(word: u64) -> u64 {
    let low = word & (ONES * 0x7f);
    // The high bit of each byte that is at least A, or more than Z.
    let (from_a, above_z) = (low + ONES * (0x80 - b'A' as u64), low + ONES * (0x7f - b'Z' as u64));
    word | ((from_a ^ above_z) & !word & (ONES << 7)) >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knuth's linear congruential generator: the same paths in each run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) % n as u64) as usize
        }
    }

    #[test]
    fn of_paths() {
        for (path, extension) in [
            ("/a.css", "css"),
            ("/x/y.PNG", "png"),
            ("/app.js?v=3.0", "js"),
            ("/f.woff2", "woff2"),
            (".ico", "ico"),
            ("/a.b.svg?x=/y.php", "svg"),
            ("/a.sqlite", "sqlite"),
            ("/a.sqlite3", ""),
            ("/", ""),
            ("", ""),
            ("/a.html/", "html/"),
            ("/a.", ""),
            ("/css", ""),
            ("?.js", ""),
        ] {
            assert_eq!(Extension::of(path.as_bytes()), Extension::new(extension.as_bytes()), "{path}");
        }
    }

    #[test]
    fn reads_an_extension_as_bytes_would_be_read_one_by_one() {
        let slow = |path: &[u8]| {
            let path = path.split(|byte| *byte == b'?').next().expect("at least one part");
            let dot = path.iter().rposition(|byte| *byte == b'.');
            let extension = dot.map_or(&b""[..], |dot| &path[dot + 1..]).to_ascii_lowercase();
            Extension::new(if extension.len() <= Extension::LONGEST { &extension } else { b"" })
        };
        // Paths of few different bytes, so that dots, queries and extensions meet in every position.
        let (mut random, mut some) = (Random(1), 0);
        for _ in 0..200_000 {
            let (mut text, mut start) = (Vec::new(), 0);
            for part in 0..random.below(14) {
                let parts: [&[u8]; 12] =
                    [b".", b"?", b"JS", b"css", b"js", b"c", b"s", b"/", b"\x0a", b"\xea\xf3", b"woff2", b"\0"];
                text.extend_from_slice(parts[random.below(12)]);
                start = if part < 3 { text.len() } else { start };
            }
            let path = &text[start..];
            let end = start + memchr::memchr(b'?', path).unwrap_or(path.len());
            assert_eq!(Extension::of(path), slow(path), "{}", path.escape_ascii());
            assert_eq!(Extension::of_path_in(&text, start, end), slow(path), "{}", text.escape_ascii());
            some += u32::from(slow(path) != Extension::NONE);
        }
        assert!(some > 1000, "{some}");
        for byte in 0..=255u8 {
            assert_eq!(lower(u64::from(byte)), u64::from(byte.to_ascii_lowercase()));
            assert_eq!(lower(u64::from(byte) << 56), u64::from(byte.to_ascii_lowercase()) << 56);
        }
    }
}
