//! What one request means to the detector: an asset or a page, an error, a POST.
//!
//! People load assets: on an asset-heavy site they make 750 requests a minute, but only some 100 of them for pages.
//! So an asset weighs a tenth of a page, never nothing; and an asset that is missing (a broken image, a phone that
//! asks for the same ten icons) weighs a fifth of a page that is.

/// Extensions of what a browser loads by itself to show a page, as [`word`] writes them: comparing numbers costs a
/// third of comparing text.
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

/// A short text in lower case as a number: its length, then its bytes from the last one on.
const fn word(text: &[u8]) -> u64 {
    let mut word = text.len() as u64;
    let mut at = text.len();
    while at > 0 {
        at -= 1;
        word = word << 8 | text[at].to_ascii_lowercase() as u64;
    }
    word
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

fn is_asset(path: &[u8]) -> bool {
    let path = match memchr::memchr(b'?', path) {
        Some(end) => &path[..end],
        None => path,
    };
    let tail = &path[path.len().saturating_sub(LONGEST + 1)..];
    let Some(dot) = tail.iter().rposition(|b| *b == b'.') else { return false };
    ASSETS.contains(&word(&tail[dot + 1..]))
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
    fn reads_status_and_method() {
        let kind = Kind::of(b"POST", b"/login", 401);
        assert!(kind.is_post() && kind.is_error() && kind.is_client_error() && kind.is_named());
        let kind = Kind::of(b"GET", b"/", 502);
        assert!(kind.is_error() && !kind.is_client_error() && !kind.is_named());
        // A status that could not be read is no error.
        assert!(!Kind::of(b"GET", b"/", 0).is_error());
    }
}
