//! What the server takes a request target for: one reading of a path, whatever its spelling.
//!
//! A path is percent-decoded once, slashes are merged, dot segments resolved, `;params` dropped, and it is cut at `?`. Nothing in here decides
//! anything; it only says which words a path contains and hashes its parts. One pass over at most [`MAX_BYTES`] bytes, no allocation.

use super::lexicon::{Lexicon, PRIME, fold};

/// Longer paths are judged by their first bytes: what a server routes by stands in front.
const MAX_BYTES: usize = 512;
/// Segments of a directory that make its route. Deeper ones (files of people) belong to the same route.
const ROUTE_DEPTH: usize = 4;
/// A segment that is longer varies (a slug, a token, a file name).
const LONG_SEGMENT: usize = 28;

/// A path as read, with its hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Of the whole normalised path.
    pub path: u32,
    /// Of its last segment that is not empty: what the resource is called, wherever it lies.
    pub name: u32,
    /// Of the directory it lies in, with segments that vary replaced.
    pub route: u32,
    /// Of the raw query, 0 without one.
    pub query: u32,
    /// See the constants.
    pub words: u16,
}

impl Target {
    /// Nobody asks for it by accident: files of version control, secrets, dumps, well-known exploits.
    pub const EXPLOIT: u16 = 1;
    /// A script or another file that a site does not link: asked for where it is not, it is a probe.
    pub const SCRIPT: u16 = 2;
    /// A log-in, a registration, a comment form: who repeats it, guesses or spams.
    pub const CREDENTIAL: u16 = 4;
    /// The query names a password.
    pub const CREDENTIAL_QUERY: u16 = 8;
    /// A WebDAV tree of well-known software: what lies in it is the user's.
    pub const DAV: u16 = 16;
    /// It is called like an asset, with no script before it.
    pub const ASSET: u16 = 32;
    /// The query probes (quote, traversal, tags).
    pub const PROBING_QUERY: u16 = 64;
    /// Site root.
    pub const ROOT: u16 = 128;
    /// The query has a quote: in names of people too.
    pub const QUOTED_QUERY: u16 = 512;
    /// It goes on behind a script (`/index.php/x`).
    pub const PATH_INFO: u16 = 1024;
    /// It lies at the root of the site.
    pub const TOP_LEVEL: u16 = 2048;
    /// Programs ask for it by themselves on every site: icons, `robots.txt`, autodiscovery.
    pub const AUTOMATIC: u16 = 4096;
    /// Its name is one of many (has a digit, or is long).
    pub const VARIES: u16 = 256;

    pub const fn has(&self, word: u16) -> bool {
        self.words & word != 0
    }

    /// Reads a request target. A path without anything to resolve, nearly every one, is read where it stands.
    pub fn of(raw: &[u8], lexicon: &Lexicon) -> Self {
        let cut = raw.iter().position(|b| *b == b'?' || *b == b'#').unwrap_or(raw.len());
        let query = if raw.get(cut) == Some(&b'?') { &raw[cut + 1..] } else { &[] };
        let path = &raw[..cut];
        let mut target = Self::default();
        if path.len() <= MAX_BYTES && path.first() == Some(&b'/') && is_plain(path) {
            target.read_path(path, lexicon);
        } else {
            let mut buffer = [0u8; MAX_BYTES];
            let len = normalise(path, &mut buffer);
            target.read_path(&buffer[..len], lexicon);
        }
        if !query.is_empty() {
            target.query = (fold(query, lexicon.seed) as u32) | 1;
            target.read_query(query, lexicon);
        }
        target
    }

    fn read_path(&mut self, path: &[u8], lexicon: &Lexicon) {
        let seed = lexicon.seed;
        let mut whole = seed;
        let mut route = seed as u32 ^ 0x9e37_79b9;
        let (mut depth, mut segments) = (0, 0u32);
        let (mut script_before, mut dav, mut in_script) = (false, false, false);
        // Of the segment before: its hash, its words, whether it varies.
        let mut last = Segment::default();
        let mut before = Segment::default();
        let mut start = usize::from(path.first() == Some(&b'/'));
        while start < path.len() {
            let end = path[start..].iter().position(|b| *b == b'/').map_or(path.len(), |n| start + n);
            if end > start {
                if segments > 0 {
                    if depth < ROUTE_DEPTH && !dav {
                        route = mix(route, if last.varies { 42 } else { last.hash as u32 });
                        depth += 1;
                    }
                    if last.extension & Lexicon::SCRIPT != 0 {
                        script_before = true;
                        in_script |= last.stem & Lexicon::CREDENTIAL != 0;
                    }
                }
                let segment = Segment::read(&path[start..end], lexicon);
                whole = (whole ^ segment.hash).wrapping_mul(PRIME).rotate_left(23);
                if segment.words & Lexicon::EXPLOIT != 0 {
                    self.words |= Self::EXPLOIT;
                }
                dav |= segment.words & Lexicon::DAV != 0;
                before = last;
                last = segment;
                segments += 1;
            }
            start = end + 1;
        }
        if path.last() == Some(&b'/') {
            whole = whole.wrapping_add(1);
        }
        self.path = (whole ^ (whole >> 32)) as u32;
        self.name = last.hash as u32;
        self.route = route;
        let well_known = path.starts_with(b"/.well-known/");
        if last.hidden && !well_known {
            self.words |= Self::EXPLOIT;
        }
        if last.extension & Lexicon::SCRIPT != 0 {
            self.words |= Self::SCRIPT;
        } else if last.extension & Lexicon::SECRET != 0 {
            self.words |= Self::SCRIPT | Self::EXPLOIT;
        } else if last.extension & Lexicon::ASSET != 0 && !script_before {
            self.words |= Self::ASSET;
        }
        if dav {
            self.words = self.words & !(Self::EXPLOIT | Self::SCRIPT | Self::ASSET) | Self::DAV;
        }
        self.words |= match segments {
            0 => Self::ROOT,
            1 => Self::TOP_LEVEL,
            _ => 0,
        };
        if script_before {
            self.words |= Self::PATH_INFO;
        }
        if last.varies {
            self.words |= Self::VARIES;
        }
        if last.words & Lexicon::AUTOMATIC != 0 || last.automatic || well_known {
            self.words |= Self::AUTOMATIC;
        }
        let is_index = last.stem & Lexicon::INDEX != 0;
        // Path info behind a script does not hide it: `/wp-login.php/N.css`.
        if last.stem & Lexicon::CREDENTIAL != 0 || (is_index && before.stem & Lexicon::CREDENTIAL != 0) || in_script {
            self.words |= Self::CREDENTIAL;
        }
    }

    fn read_query(&mut self, query: &[u8], lexicon: &Lexicon) {
        let query = &query[..query.len().min(256)];
        let mut start = 0;
        let mut name_end = None;
        for at in 0..=query.len() {
            let byte = query.get(at).copied().unwrap_or(b'&');
            match byte {
                b'=' if name_end.is_none() => name_end = Some(at),
                b'&' => {
                    if let Some(end) = name_end
                        && end - start <= 10
                    {
                        let words = lexicon.find(fold(&query[start..end], lexicon.seed));
                        if words & Lexicon::PASSWORD != 0 && at > end + 1 {
                            self.words |= Self::CREDENTIAL_QUERY;
                        }
                        if self.words & Self::ROOT != 0 && &query[start..end] == b"author" {
                            self.words |= Self::PROBING_QUERY;
                        }
                    }
                    (start, name_end) = (at + 1, None);
                }
                b'%' | b'.' | b'<' | b'\'' | b';' | b'|' | b'$' | b'u' | b's' | b'e' | b'p' => {
                    self.read_probe(&query[at..])
                }
                _ => {}
            }
        }
    }

    /// Whether a probe begins here.
    fn read_probe(&mut self, rest: &[u8]) {
        let begins = |word: &[u8]| starts(rest, word);
        let probing = match rest[0] {
            b'%' => {
                begins(b"%2e%2e")
                    || begins(b"%3cscript")
                    || begins(b"%24%7bjndi")
                    || begins(b"%3benv")
                    || begins(b"%7cenv")
                    || begins(b"%0aenv")
                    || begins(b"%26set")
            }
            b'.' => begins(b"../") || begins(b"..%2f"),
            b'<' => begins(b"<script"),
            b';' => begins(b";env"),
            b'|' => begins(b"|env"),
            b'$' => begins(b"${jndi"),
            b'u' => begins(b"union+") || begins(b"union%20") || begins(b"usr%2fbin"),
            b's' => begins(b"sleep(") || begins(b"sleep%28"),
            b'e' => begins(b"etc/passwd") || begins(b"etc%2fpasswd"),
            b'p' => begins(b"php://"),
            _ => false,
        };
        if probing {
            self.words |= Self::PROBING_QUERY;
        } else if rest[0] == b'\'' || begins(b"%27") || begins(b".php") {
            self.words |= Self::QUOTED_QUERY;
        }
    }
}

/// A segment as read.
#[derive(Clone, Copy, Default)]
struct Segment {
    hash: u64,
    words: u16,
    /// Words of its stem and of its extension.
    stem: u16,
    extension: u16,
    varies: bool,
    hidden: bool,
    automatic: bool,
}

impl Segment {
    fn read(segment: &[u8], lexicon: &Lexicon) -> Self {
        let hash = fold(segment, lexicon.seed);
        let words = lexicon.find(hash);
        let mut digit = false;
        let mut dot = 0;
        for (at, byte) in segment.iter().enumerate() {
            digit |= byte.is_ascii_digit();
            if *byte == b'.' {
                dot = at;
            }
        }
        let extension = &segment[dot + usize::from(dot > 0)..];
        let (stem, extension) = if dot > 0 && (1..=8).contains(&extension.len()) {
            (lexicon.find(fold(&segment[..dot], lexicon.seed)), lexicon.find(fold(extension, lexicon.seed ^ 1)))
        } else {
            (words, 0)
        };
        let version = segment.len() <= 3 && segment[0] == b'v';
        let varies = segment.len() > LONG_SEGMENT || (digit && !version && extension & Lexicon::SCRIPT == 0);
        let automatic = segment[0] == b'a' && starts(segment, b"apple-touch-icon")
            || segment[0] == b's' && starts(segment, b"sitemap");
        Self { hash, words, stem, extension, varies, hidden: segment[0] == b'.' && segment.len() > 1, automatic }
    }
}

fn starts(a: &[u8], b: &[u8]) -> bool {
    a.len() >= b.len() && a[..b.len()].eq_ignore_ascii_case(b)
}

/// Whether nothing in a path has to be decoded, merged or resolved.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    for byte in path {
        if matches!(byte, b'%' | b';' | b'\\') || (before == b'/' && matches!(byte, b'/' | b'.')) {
            return false;
        }
        before = *byte;
    }
    true
}

pub fn mix(a: u32, b: u32) -> u32 {
    let x = (u64::from(a) << 32 | u64::from(b)).wrapping_mul(PRIME);
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_shr(32) as u32
}

fn hex(b: u8) -> Option<u8> {
    (b as char).to_digit(16).map(|d| d as u8)
}

/// Writes the normalised path.
fn normalise(raw: &[u8], out: &mut [u8; MAX_BYTES]) -> usize {
    let (mut len, mut at, mut parameter) = (0, 0, false);
    // `http://host/path` names the same resource.
    if raw.len() > 8 && (raw.starts_with(b"http://") || raw.starts_with(b"https://")) {
        at = raw.iter().enumerate().skip(8).find(|(_, b)| **b == b'/').map_or(raw.len(), |(i, _)| i);
    }
    while at < raw.len() && len < MAX_BYTES {
        let mut byte = raw[at];
        at += 1;
        if byte == b'%'
            && at + 1 < raw.len()
            && let (Some(high), Some(low)) = (hex(raw[at]), hex(raw[at + 1]))
        {
            byte = high << 4 | low;
            at += 2;
        }
        if byte == b'\\' {
            byte = b'/';
        }
        if byte == b';' {
            parameter = true;
        }
        if byte == b'/' {
            parameter = false;
            len = end_segment(out, len);
            if len > 0 && out[len - 1] == b'/' {
                continue;
            }
        }
        if !parameter && len < MAX_BYTES {
            out[len] = byte;
            len += 1;
        }
    }
    end_segment(out, len)
}

/// Resolves the segment that ends here, if it is `.` or `..`.
fn end_segment(out: &[u8; MAX_BYTES], len: usize) -> usize {
    let start = out[..len].iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
    match &out[start..len] {
        b"." => start,
        b".." => {
            // Above the root there is only the root.
            let parent = start.saturating_sub(1);
            out[..parent].iter().rposition(|b| *b == b'/').map_or(start.min(1), |i| i + 1)
        }
        _ => len,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(raw: &[u8]) -> String {
        let mut out = [0; MAX_BYTES];
        let cut = raw.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(raw.len());
        let len = normalise(&raw[..cut], &mut out);
        String::from_utf8_lossy(&out[..len]).into_owned()
    }

    fn target(path: &str) -> Target {
        Target::of(path.as_bytes(), &Lexicon::new(0))
    }

    #[test]
    fn a_path_is_what_a_server_takes_it_for() {
        for (path, meant) in [
            ("/", "/"),
            ("", ""),
            ("//", "/"),
            ("/?a=/../b", "/"),
            ("/a#b?c", "/a"),
            ("/%61%2Fb%2fc", "/a/b/c"),
            ("/a%252e", "/a%2e"),
            ("/a%", "/a%"),
            ("/a%zz%61", "/a%zza"),
            ("/a/./b//c/.", "/a/b/c/"),
            ("/a/b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/.env", "/.env"),
            ("/..a/...", "/..a/..."),
            ("/a;x=1/b;y", "/a/b"),
            ("https://example.org/a/b", "/a/b"),
        ] {
            assert_eq!(plain(path.as_bytes()), meant, "{path}");
        }
    }

    #[test]
    fn words_are_found_however_they_are_spelled() {
        for raw in ["//wp-login.php", "/./wp-login.php", "/x/../wp-login.php", "/%77p-login.php", "/wp-login.php;a=b"] {
            assert_eq!(target(raw), target("/wp-login.php"), "{raw}");
        }
        let has = |path: &str, word| target(path).has(word);
        assert!(has("/wp-login.php/7.css", Target::CREDENTIAL) && !has("/wp-login.php/7.css", Target::ASSET));
        assert!(has("/index.php/login", Target::CREDENTIAL) && has("/administrator/index.php", Target::CREDENTIAL));
        assert!(!has("/apps/text/session/5/push", Target::CREDENTIAL) && !has("/index.php", Target::CREDENTIAL));
        assert!(
            has("/old/.env", Target::EXPLOIT)
                && has("/a/db.sql", Target::EXPLOIT)
                && has("/x/.git/HEAD", Target::EXPLOIT)
        );
        assert!(!has("/.well-known/acme-challenge/x", Target::EXPLOIT));
        assert!(!has("/remote.php/dav/files/a/.env", Target::EXPLOIT), "what people keep is theirs");
        assert!(has("/login?user=a&pass=b", Target::CREDENTIAL_QUERY) && has("/?author=3", Target::PROBING_QUERY));
        assert!(has("/a/app.CSS?v=3", Target::ASSET) && !has("/a/app.css.php", Target::ASSET));
    }

    #[test]
    fn segments_that_vary_share_a_route() {
        assert_eq!(target("/core/preview/17").route, target("/core/preview/18?x").route);
        assert_eq!(target("/album/7/photo/1").route, target("/album/8/photo/2").route);
        assert_ne!(target("/album/list").route, target("/books/list").route);
        assert_ne!(target("/album/list").path, target("/album/list/").path);
    }

    /// A byte of a path, written as itself or encoded.
    fn spelled(byte: u8, how: u8) -> String {
        let must = matches!(byte, b'%' | b'?' | b'#' | b'/' | b';' | b'\\') || !byte.is_ascii_graphic();
        match how % 4 {
            0 => format!("%{byte:02x}"),
            1 => format!("%{byte:02X}"),
            _ if must => format!("%{byte:02X}"),
            _ => char::from(byte).to_string(),
        }
    }

    proptest! {
        /// However a path is spelled: in codes, with more slashes, by way of other directories, with a query.
        #[test]
        fn spellings_of_one_path_are_one(
            segments in proptest::collection::vec(proptest::collection::vec(1u8.., 1..6), 1..6),
            hows in proptest::collection::vec(any::<u8>(), 64),
            tail in prop_oneof![Just(""), Just("?"), Just("#top")],
        ) {
            let odd = |s: &Vec<u8>| matches!(s.as_slice(), b"." | b"..") || s.iter().any(|b| matches!(b, b'/' | b'\\' | b';'));
            prop_assume!(!segments.iter().any(odd));
            let mut hows = hows.iter().cycle().copied();
            let mut how = || hows.next().unwrap_or(0);
            let (mut straight, mut spelling) = (String::new(), String::new());
            for segment in &segments {
                straight += "/";
                segment.iter().for_each(|byte| straight += &spelled(*byte, 2));
                spelling += match how() % 8 {
                    0 => "//",
                    1 => "/./",
                    2 => "/x/../",
                    3 => "/%2e/",
                    4 => "/x/y/.%2e/%2E./",
                    5 => "%2f",
                    _ => "/",
                };
                segment.iter().for_each(|byte| spelling += &spelled(*byte, how()));
            }
            prop_assert_eq!(target(&(spelling + tail)), target(&straight));
        }

        /// Any bytes are read, and the short way gives what the long one does.
        #[test]
        fn a_plain_path_means_itself(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'%'), Just(b'a'), any::<u8>()], 0..20)) {
            let lexicon = Lexicon::new(7);
            let _ = Target::of(&path, &lexicon);
            let cut = path.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(path.len());
            let path = &path[..cut];
            if path.first() == Some(&b'/') && is_plain(path) {
                let mut out = [0; MAX_BYTES];
                let len = normalise(path, &mut out);
                prop_assert_eq!(&out[..len], path);
            }
        }
    }
}
