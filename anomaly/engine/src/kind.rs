//! What one request means to the detector: an asset or a page, an error, a POST.
//!
//! People load assets: on an asset-heavy site they make 750 requests a minute, but only some 100 of them for pages.
//! So an asset weighs a tenth of a page, never nothing; and an asset that is missing (a broken image, a phone that
//! asks for the same ten icons) weighs a fifth of a page that is.
//!
//! Two answers are no errors whatever their number: 499, because the client went before it was answered (people click on,
//! programs stop waiting), and 405 to MKCOL, because the directory is there already (programs that synchronise files make each one
//! before they write into it). Both tell nothing of what was asked for.

use crate::record::{Extension, Record};

/// Extensions of what a browser loads by itself to show a page.
const ASSETS: [Extension; 23] = [
    Extension::new(b"avif"),
    Extension::new(b"bmp"),
    Extension::new(b"css"),
    Extension::new(b"eot"),
    Extension::new(b"gif"),
    Extension::new(b"ico"),
    Extension::new(b"jpeg"),
    Extension::new(b"jpg"),
    Extension::new(b"js"),
    Extension::new(b"map"),
    Extension::new(b"mjs"),
    Extension::new(b"mp3"),
    Extension::new(b"mp4"),
    Extension::new(b"ogg"),
    Extension::new(b"otf"),
    Extension::new(b"png"),
    Extension::new(b"svg"),
    Extension::new(b"swf"),
    Extension::new(b"ttf"),
    Extension::new(b"webm"),
    Extension::new(b"webp"),
    Extension::new(b"woff"),
    Extension::new(b"woff2"),
];
/// The same as a table, each in the slot that its product with the factor gives it: one comparison tells.
static ASSET_SLOTS: Slots = Slots::of(&ASSETS);

struct Slots {
    factor: u64,
    slots: [u64; 128],
}

impl Slots {
    /// What no extension is.
    const FREE: u64 = u64::MAX;

    /// Tries factors (all odd) until no two extensions share a slot (one in seven does).
    const fn of(extensions: &[Extension]) -> Self {
        let mut table = Self { factor: 0x9e37_79b9_7f4a_7c15, slots: [Self::FREE; 128] };
        let mut at = 0;
        while at < extensions.len() {
            let slot = table.slot(extensions[at]);
            if table.slots[slot] == Self::FREE {
                table.slots[slot] = extensions[at].bits();
                at += 1;
            } else {
                table = Self { factor: table.factor.wrapping_mul(0xd129_0d3a_32c2_a1c5), slots: [Self::FREE; 128] };
                at = 0;
            }
        }
        table
    }

    const fn slot(&self, extension: Extension) -> usize {
        (extension.bits().wrapping_mul(self.factor) >> 57) as usize
    }

    const fn hold(&self, extension: Extension) -> bool {
        self.slots[self.slot(extension)] == extension.bits()
    }
}

/// The class of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(u8);

impl Kind {
    /// A static asset by its extension.
    pub const ASSET: u8 = 1;
    /// Status >= 400, but for what `is_no_error` names.
    pub const ERROR: u8 = 1 << 1;
    /// The same below 500.
    pub const CLIENT_ERROR: u8 = 1 << 2;
    /// Method POST.
    pub const POST: u8 = 1 << 3;

    /// The class of the request that a record is of.
    pub fn of(record: &Record<'_>) -> Self {
        Self::new(record.method, record.extension, record.status)
    }

    /// The class of a request for a path with this extension.
    pub fn new(method: &[u8], extension: Extension, status: u16) -> Self {
        // All of this is unpredictable, so there are no branches.
        let flag = |is: bool, flag: u8| u8::from(is) * flag;
        let is_error = (status >= 400) & !is_no_error(method, status);
        Self(
            flag(ASSET_SLOTS.hold(extension), Self::ASSET)
                | flag(is_error, Self::ERROR)
                | flag(is_error & (status < 500), Self::CLIENT_ERROR)
                | flag(method == b"POST", Self::POST),
        )
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
        // Every other request is for an asset: a branch would be guessed wrong as often as right.
        10 - 9 * self.is_asset() as u32
    }

    /// Weight as a distinct path answered 4xx, in tenths.
    pub const fn error_path_tenths(self) -> u32 {
        if self.is_asset() { 1 } else { 10 }
    }
}

/// Whether an answer that looks like an error says nothing against its client.
fn is_no_error(method: &[u8], status: u16) -> bool {
    // Hardly any request has such a status: that can be foretold.
    status == 499 || (status == 405 && method == b"MKCOL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(method: &[u8], path: &str, status: u16) -> Kind {
        Kind::new(method, Extension::of(path.as_bytes()), status)
    }

    #[test]
    fn tells_assets_from_pages() {
        for path in ["/a.css", "/x/y.PNG", "/app.js?v=3", "/f.woff2", "/.ico", "/a.b.svg?x=/y.php"] {
            assert!(kind_of(b"GET", path, 200).is_asset(), "{path}");
        }
        for path in ["/", "", "/index.php", "/a.html?x.css", "/css", "/a.cssx", "/robots.txt", "/a.css/", "/woff2"] {
            assert!(!kind_of(b"GET", path, 200).is_asset(), "{path}");
        }
    }

    #[test]
    fn reads_status_and_method() {
        let kind = kind_of(b"POST", "/login", 401);
        assert!(kind.is_post() && kind.is_error() && kind.is_client_error() && kind.is_named());
        let kind = kind_of(b"GET", "/", 502);
        assert!(kind.is_error() && !kind.is_client_error() && !kind.is_named());
        // A status that could not be read is no error.
        assert!(!kind_of(b"GET", "/", 0).is_error());
    }

    #[test]
    fn who_goes_before_the_answer_or_makes_a_directory_again_has_done_nothing_wrong() {
        for (method, status, is_error) in [
            ("GET", 499, false),
            ("POST", 499, false),
            ("MKCOL", 499, false),
            ("MKCOL", 405, false),
            ("GET", 405, true),
            ("PROPFIND", 405, true),
            ("MKCOL", 403, true),
            ("MKCOL", 404, true),
            ("MKCOL", 409, true),
            ("GET", 498, true),
            ("GET", 500, true),
        ] {
            let kind = kind_of(method.as_bytes(), "/a/b", status);
            assert_eq!(kind.is_error(), is_error, "{method} {status}");
            assert_eq!(kind.is_client_error(), is_error && status < 500, "{method} {status}");
            assert_eq!(kind.is_named(), kind.is_client_error() || method == "POST", "{method} {status}");
        }
    }
}
