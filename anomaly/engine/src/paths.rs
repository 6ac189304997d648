//! Which path a request means, however it is spelled.
//!
//! `/wp-login.php?a=1`, `//wp-login.php` and `/x/../wp%2dlogin.php` are one page to a server. So a path ends where its query
//! begins, is decoded once, its slashes are merged and its dot segments resolved, as Nginx does it. Not in here: what only
//! some servers take for the same (`/a` and `/A`, `/a;x=1`).

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

/// Hashes paths.
#[derive(Clone, Debug)]
pub struct Paths {
    state: FixedState,
    seed: u64,
    /// The path that is being put together, kept for its memory: no longer than a line.
    plain: Vec<u8>,
}

impl Paths {
    /// Hashes that follow from `seed`, which nobody may know who writes paths into our log.
    pub fn with_seed(seed: u64) -> Self {
        Self { state: FixedState::with_seed(seed), seed, plain: Vec::new() }
    }

    /// The seed: it gives the same hashes again.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The hash of the page that a path means.
    pub fn hash(&mut self, path: &[u8]) -> u32 {
        let path = without_query(path);
        if is_plain(path) {
            return self.state.hash_one(path) as u32;
        }
        make_plain(path, &mut self.plain);
        self.state.hash_one(self.plain.as_slice()) as u32
    }
}

/// A path up to its query; a fragment, which no browser sends, is none of a server's business either.
fn without_query(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#'));
    &path[..end.unwrap_or(path.len())]
}

/// Whether there is only one way to read a path: almost always. May say no where there is.
fn is_plain(path: &[u8]) -> bool {
    // No early end: so many bytes are compared at once.
    let encoded = path.iter().fold(false, |found, byte| found | (*byte == b'%'));
    let pairs = path.iter().zip(path.get(1..).unwrap_or_default());
    !pairs.fold(encoded, |found, (a, b)| found | (*a == b'/') & ((*b == b'/') | (*b == b'.')))
}

/// Decodes a path and resolves it.
#[inline(never)]
fn make_plain(path: &[u8], plain: &mut Vec<u8>) {
    plain.clear();
    let mut rest = path;
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                // Not a code: it stands for itself.
                _ => (b'%', &rest[1..]),
            },
            (byte, after) => (*byte, after),
        };
        rest = after;
        if byte == b'/' {
            resolve(plain);
        }
        if byte != b'/' || plain.last() != Some(&b'/') {
            plain.push(byte);
        }
    }
    resolve(plain);
}

/// Resolves the dot segment that a path ends with.
fn resolve(plain: &mut Vec<u8>) {
    if plain.ends_with(b"/.") {
        plain.pop();
    } else if plain.ends_with(b"/..") {
        plain.truncate(plain.len() - 3);
        // Above the root there is only the root.
        let parent = plain.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        plain.truncate(parent);
        plain.push(b'/');
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(path: &str) -> String {
        let mut plain = Vec::new();
        make_plain(without_query(path.as_bytes()), &mut plain);
        String::from_utf8_lossy(&plain).into_owned()
    }

    #[test]
    fn a_path_is_what_a_server_takes_it_for() {
        for (path, meant) in [
            ("/", "/"),
            ("", ""),
            ("*", "*"),
            ("//", "/"),
            ("/?a=/../b", "/"),
            ("/a#b?c", "/a"),
            ("/%61%2Fb%2fc", "/a/b/c"),
            ("/a%3Fb%23c", "/a?b#c"),
            ("/a%252e", "/a%2e"),
            ("/a%", "/a%"),
            ("/a%2", "/a%2"),
            ("/a%zz%61", "/a%zza"),
            ("/a%%61", "/a%a"),
            ("/a/./b//c/.", "/a/b/c/"),
            ("/a/b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/.env", "/.env"),
            ("/..a/...", "/..a/..."),
            ("/a.b/c..", "/a.b/c.."),
        ] {
            assert_eq!(plain(path), meant, "{path}");
        }
    }

    /// A byte of a path, written as itself or encoded.
    fn spelled(byte: u8, how: u8) -> String {
        let must = matches!(byte, b'%' | b'?' | b'#' | b'/') || !byte.is_ascii_graphic();
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
        fn spellings_of_one_path_count_as_one(
            segments in proptest::collection::vec(proptest::collection::vec(1u8.., 1..6), 1..6),
            hows in proptest::collection::vec(any::<u8>(), 64),
            tail in prop_oneof![Just(""), Just("?"), Just("?a=1&b=/../c"), Just("#top"), Just("?x#y")],
        ) {
            prop_assume!(segments.iter().all(|s| !matches!(s.as_slice(), b"." | b"..") && !s.contains(&b'/')));
            let mut hows = hows.iter().cycle().copied();
            let mut how = || hows.next().unwrap_or(0);
            let (mut straight, mut spelling) = (Vec::new(), String::new());
            for segment in &segments {
                straight.push(b'/');
                straight.extend(segment);
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
            spelling += tail;
            let mut paths = Paths::with_seed(1);
            let mut meant = Vec::new();
            make_plain(without_query(spelling.as_bytes()), &mut meant);
            prop_assert_eq!(&meant, &straight, "{}", spelling);
            // What was not to be resolved is hashed as it stands.
            if is_plain(&straight) && !straight.iter().any(|b| matches!(b, b'?' | b'#')) {
                prop_assert_eq!(paths.hash(spelling.as_bytes()), paths.hash(&straight));
            }
            prop_assert_eq!(paths.hash(spelling.as_bytes()), paths.state.hash_one(straight.as_slice()) as u32);
        }

        /// Who is spared the work would not have been changed by it.
        #[test]
        fn a_plain_path_means_itself(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'%'), Just(b'a'), any::<u8>()], 0..20)) {
            let path = without_query(&path);
            let mut meant = Vec::new();
            make_plain(path, &mut meant);
            prop_assert!(!is_plain(path) || meant == path);
        }
    }
}
