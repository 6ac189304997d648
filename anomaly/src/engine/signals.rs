//! What one request means to the detector: an asset or a page, an error, a POST.
//!
//! People load assets: on an asset-heavy site they make 750 requests a minute, but only some 100 of them for pages.
//! So an asset weighs a tenth of a page, never nothing; and an asset that is missing (a broken image, a phone that
//! asks for the same ten icons) weighs a fifth of a page that is.

/// Extensions of what a browser loads by itself to show a page, as [`word`] writes them.
const ASSETS: [u64; 23] = [
    word(b"avif"),
    word(b"bmp"),
    word(b"css"),
    word(b"eot"),
    word(b"gif"),
    word(b"ico"),
    word(b"jpeg"),
    word(b"jpg"),
    word(b"js"),
    word(b"map"),
    word(b"mjs"),
    word(b"mp3"),
    word(b"mp4"),
    word(b"ogg"),
    word(b"otf"),
    word(b"png"),
    word(b"svg"),
    word(b"swf"),
    word(b"ttf"),
    word(b"webm"),
    word(b"webp"),
    word(b"woff"),
    word(b"woff2"),
];
/// No asset's extension is longer.
const LONGEST: usize = 5;
/// The same as a table, each in the slot that its product with the factor gives it: one comparison tells.
static ASSET_SLOTS: Slots = Slots::of(&ASSETS);

struct Slots {
    factor: u64,
    slots: [u64; 128],
}

impl Slots {
    /// What no word is.
    const FREE: u64 = u64::MAX;

    /// Tries factors (all odd) until no two words share a slot (one in seven does).
    const fn of(words: &[u64]) -> Self {
        let mut table = Self { factor: 0x9e37_79b9_7f4a_7c15, slots: [Self::FREE; 128] };
        let mut at = 0;
        while at < words.len() {
            let slot = table.slot(words[at]);
            if table.slots[slot] == Self::FREE {
                table.slots[slot] = words[at];
                at += 1;
            } else {
                table = Self { factor: table.factor.wrapping_mul(0xd129_0d3a_32c2_a1c5), slots: [Self::FREE; 128] };
                at = 0;
            }
        }
        table
    }

    const fn slot(&self, word: u64) -> usize {
        (word.wrapping_mul(self.factor) >> 57) as usize
    }

    const fn hold(&self, word: u64) -> bool {
        self.slots[self.slot(word)] == word
    }
}

/// A short text in lower case as a number: its length in the highest byte, its last byte in the lowest.
const fn word(text: &[u8]) -> u64 {
    let (mut word, mut at) = (0, 0);
    while at < text.len() {
        word = word << 8 | text[at] as u64;
        at += 1;
    }
    word | (text.len() as u64) << 56
}

/// The class of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(u8);

impl Kind {
    /// A static asset by its extension.
    pub const ASSET: u8 = 1;
    /// Status >= 400.
    pub const ERROR: u8 = 1 << 1;
    /// Status 400 to 499.
    pub const CLIENT_ERROR: u8 = 1 << 2;
    /// Method POST.
    pub const POST: u8 = 1 << 3;

    /// The class of a request.
    pub fn of(method: &[u8], path: &[u8], status: u16) -> Self {
        let mut bits = 0;
        if is_asset(path) {
            bits |= Self::ASSET;
        }
        if status >= 400 {
            bits |= Self::ERROR;
            if status < 500 {
                bits |= Self::CLIENT_ERROR;
            }
        }
        if method == b"POST" {
            bits |= Self::POST;
        }
        Self(bits)
    }

    /// From [`Kind::bits`].
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Its flags.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// A static asset.
    pub const fn is_asset(self) -> bool {
        self.0 & Self::ASSET != 0
    }

    /// Answered with an error.
    pub const fn is_error(self) -> bool {
        self.0 & Self::ERROR != 0
    }

    /// Answered 4xx.
    pub const fn is_client_error(self) -> bool {
        self.0 & Self::CLIENT_ERROR != 0
    }

    /// A POST.
    pub const fn is_post(self) -> bool {
        self.0 & Self::POST != 0
    }

    /// Its path matters.
    pub const fn is_named(self) -> bool {
        self.0 & (Self::CLIENT_ERROR | Self::POST) != 0
    }

    /// Weight as a page request, in tenths.
    pub const fn page_tenths(self) -> u32 {
        if self.is_asset() { 1 } else { 10 }
    }

    /// Weight as a distinct path answered 4xx, in tenths.
    pub const fn error_path_tenths(self) -> u32 {
        if self.is_asset() { 1 } else { 10 }
    }
}

/// Whether a path's extension, before a query, is one of [`ASSETS`]. Each record asks this, so it is done eight bytes at a
/// time.
fn is_asset(path: &[u8]) -> bool {
    let path = &path[..query_at(path)];
    let tail = match path.last_chunk() {
        Some(chunk) => u64::from_be_bytes(*chunk),
        None => path.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    let dots = is_byte(tail, b'.');
    let len = dots.trailing_zeros() / 8;
    if len as usize > LONGEST {
        return false;
    }
    ASSET_SLOTS.hold(lower(tail & ((1 << (8 * len)) - 1)) | u64::from(len) << 56)
}

/// Where the query of a path begins, or the path ends.
fn query_at(path: &[u8]) -> usize {
    let mut at = 0;
    while let Some(chunk) = path[at..].first_chunk() {
        let marks = is_byte(u64::from_le_bytes(*chunk), b'?');
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    path[at..].iter().position(|byte| *byte == b'?').map_or(path.len(), |more| at + more)
}

const ONES: u64 = u64::MAX / 0xff;

/// Which of eight bytes are `byte`: the high bit of the lowest one is set, of those above it perhaps wrongly.
const fn is_byte(word: u64, byte: u8) -> u64 {
    let zero = word ^ (ONES * byte as u64);
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

    #[test]
    fn tells_assets_from_pages() {
        for path in ["/a.css", "/x/y.PNG", "/app.js?v=3", "/f.woff2", "/.ico", "/a.b.svg?x=/y.php"] {
            assert!(Kind::of(b"GET", path.as_bytes(), 200).is_asset(), "{path}");
        }
        for path in ["/", "", "/index.php", "/a.html?x.css", "/css", "/a.cssx", "/robots.txt", "/a.css/", "/woff2"] {
            assert!(!Kind::of(b"GET", path.as_bytes(), 200).is_asset(), "{path}");
        }
    }

    #[test]
    fn reads_an_extension_as_bytes_would_be_read_one_by_one() {
        let slow = |path: &[u8]| {
            let path = path.split(|byte| *byte == b'?').next().expect("at least one part");
            let dot = path.iter().rposition(|byte| *byte == b'.');
            dot.is_some_and(|dot| {
                let extension = path[dot + 1..].to_ascii_lowercase();
                extension.len() <= LONGEST && ASSETS.contains(&word(&extension))
            })
        };
        // Paths of few different bytes, so that dots, queries and extensions meet in every position.
        let (mut seed, mut assets) = (1u64, 0);
        for _ in 0..200_000 {
            let mut path = Vec::new();
            let mut next = |below: u64| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % below
            };
            for _ in 0..next(14) {
                let parts: [&[u8]; 12] =
                    [b".", b"?", b"JS", b"css", b"js", b"c", b"s", b"/", b"\x0a", b"\xea\xf3", b"woff2", b"\0"];
                path.extend_from_slice(parts[next(12) as usize]);
            }
            assert_eq!(is_asset(&path), slow(&path), "{}", path.escape_ascii());
            assets += u32::from(slow(&path));
        }
        assert!(assets > 1000, "{assets}");
        for byte in 0..=255u8 {
            assert_eq!(lower(u64::from(byte)), u64::from(byte.to_ascii_lowercase()));
            assert_eq!(lower(u64::from(byte) << 56), u64::from(byte.to_ascii_lowercase()) << 56);
        }
    }

    #[test]
    fn reads_status_and_method() {
        let kind = Kind::of(b"POST", b"/login", 401);
        assert!(kind.is_post() && kind.is_error() && kind.is_client_error() && kind.is_named());
        let kind = Kind::of(b"GET", b"/", 502);
        assert!(kind.is_error() && !kind.is_client_error() && !kind.is_named());
        // A status that could not be read is no error.
        assert!(!Kind::of(b"GET", b"/", 0).is_error());
    }
}
