//! What one request weighs: as load, as a failure, as a guess. Thousandths of a point.
//!
//! **Load is sameness.** An answer that is new for the client weighs 0.06 (0.03 in a tree of people's own files): a sync of 25
//! files a second or a page of a thousand thumbnails stays below what leaks out. The same answer again weighs one to two and a
//! half points, whatever it is called and whatever stands behind its `?`.
//!
//! **A failure weighs by how much it looks like a word list**: a script that is not there, a directory nobody led the client to,
//! a word at the root of the site weigh a point and more; one more dead link among those of a page a third of it.

use super::evidence::Likeness;
use super::outcome::{Method, Outcome};
use super::path::Target;
use super::signals::POINT;

/// From so many failures weigh fully, however many come at once: a page fires its broken links together, a tool goes on.
pub const HARD: i32 = 800;
/// An answer of so many bytes is a large one.
pub const LARGE: u64 = 1 << 20;
/// A large answer that was the same so often is downloaded again and again.
pub const LARGE_AGAIN: u8 = 8;
/// New pages in a minute that make it a full one.
pub const FULL_MINUTE: u16 = 75;
/// What a span of ten seconds adds at most by denied requests: of different calls, and of the same one again and again.
pub const DENIED_PER_SPAN: u16 = 8000;
/// See [`DENIED_PER_SPAN`].
pub const SAME_DENIED_PER_SPAN: u16 = 14_000;
/// New good answers between two log-ins that show a person: tools that guess load no pages.
pub const BETWEEN_LOGINS: u8 = 4;

/// What a request weighs as load.
pub fn load(method: Method, outcome: Outcome, likeness: Likeness, status: u16, target: &Target) -> i32 {
    let other_path = matches!(likeness, Likeness::Novel | Likeness::SameSize(_));
    match (outcome, method) {
        (Outcome::Neutral, _) => {
            if likeness == Likeness::Novel {
                60
            } else {
                200
            }
        }
        (Outcome::Server, _) => 300,
        (Outcome::Denied, _) => {
            if other_path {
                60
            } else {
                300
            }
        }
        (_, Method::Write | Method::Ask) => match likeness {
            Likeness::Identical(n) if n >= 250 => 500,
            Likeness::Identical(_) => 100,
            _ => 40,
        },
        (Outcome::Missing, _) => {
            if other_path {
                200
            } else {
                1500
            }
        }
        (_, Method::Post) => match likeness {
            Likeness::Novel => 60,
            Likeness::SamePath => 200,
            Likeness::Identical(_) | Likeness::SameSize(_) => 300,
        },
        _ => read(likeness, status, target),
    }
}

/// The load of a GET that was answered or led elsewhere.
fn read(likeness: Likeness, status: u16, target: &Target) -> i32 {
    match likeness {
        Likeness::Novel => {
            if target.has(Target::DAV) {
                30
            } else {
                60
            }
        }
        Likeness::SamePath => 400,
        // Path info behind a script varies as an attacker likes; files of one size are files.
        Likeness::SameSize(n) if target.has(Target::PATH_INFO) && !target.has(Target::DAV) => {
            if n >= 60 {
                1600
            } else {
                500
            }
        }
        Likeness::SameSize(n) => {
            if n >= 250 {
                300
            } else {
                150
            }
        }
        Likeness::Identical(_) if status == 304 => 250,
        // No browser gets an asset anew again and again.
        Likeness::Identical(n) if n >= 16 && target.has(Target::ASSET) => 2500,
        Likeness::Identical(n) => {
            if n >= 8 {
                1600
            } else {
                POINT
            }
        }
    }
}

/// What is known of a failure beside the request: whether the site is known to have the path or its route, and what the client
/// has met there.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The site is known to have this path.
    pub path_believed: bool,
    /// The client has met the route before.
    pub on_route: bool,
    /// The site is known to have the route.
    pub route_believed: bool,
}

/// What a failure weighs as one of a scanner.
pub fn failure(method: Method, outcome: Outcome, target: &Target, standing: Standing) -> i32 {
    let is_new = !standing.on_route && !standing.route_believed;
    let named = !target.has(Target::VARIES | Target::ROOT);
    if standing.path_believed && outcome != Outcome::Missing {
        return 0;
    }
    if target.has(Target::AUTOMATIC) && !target.has(Target::SCRIPT) {
        return 100;
    }
    let answered_post = method == Method::Post && outcome == Outcome::Good;
    let is_probe = target.has(Target::SCRIPT) && outcome != Outcome::Server && method != Method::Ask;
    if is_probe && !standing.path_believed && !answered_post {
        // One directory's dead pages after a relaunch; a tool looks in many, or at the root.
        let relaunch = standing.on_route && !target.has(Target::TOP_LEVEL) && method != Method::Post;
        return match outcome {
            Outcome::Missing if relaunch => 1150,
            Outcome::Missing => 1400,
            _ => POINT,
        };
    }
    match outcome {
        Outcome::Missing if matches!(method, Method::Ask | Method::Write) => 150,
        Outcome::Missing if is_new => POINT,
        // Words at the root of a site are what word lists hold.
        Outcome::Missing if target.has(Target::TOP_LEVEL) && named && !target.has(Target::ASSET) => POINT,
        Outcome::Missing | Outcome::Good => 350,
        Outcome::Redirect if method == Method::Post && is_new => POINT / 2,
        Outcome::Redirect if method == Method::Post => 0,
        Outcome::Redirect => 100,
        Outcome::Server if is_new => 200,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexicon::Lexicon;

    fn target(path: &str) -> Target {
        Target::of(path.as_bytes(), &Lexicon::new(1))
    }

    #[test]
    fn what_is_new_weighs_little_and_what_is_the_same_much() {
        let weigh = |path: &str, likeness| load(Method::Read, Outcome::Good, likeness, 200, &target(path));
        assert!(weigh("/remote.php/dav/files/a/1.txt", Likeness::Novel) * 25 < 4500, "25 files a second leak away");
        assert!(weigh("/gallery/17.jpg", Likeness::Novel) * 60 < 4500);
        for path in ["/", "/index.php/17.css", "/app.css"] {
            let flood = weigh(path, Likeness::Identical(20));
            assert!(flood * 8 > 4500 * 2, "{path}: a flood of 8 a second");
        }
        assert!(
            weigh("/app.js", Likeness::Identical(20)) >= weigh("/", Likeness::Identical(20)),
            "a name hides nobody"
        );
    }

    #[test]
    fn what_word_lists_hold_weighs_more_than_a_dead_link() {
        let unknown = Standing { path_believed: false, on_route: false, route_believed: false };
        let met = Standing { on_route: true, route_believed: true, ..unknown };
        let weigh = |path: &str, standing| failure(Method::Read, Outcome::Missing, &target(path), standing);
        assert!(weigh("/shell.php", unknown) > weigh("/backup", unknown));
        assert!(weigh("/blog/an-old-page", met) < weigh("/blog/an-old-page", unknown));
        assert_eq!(weigh("/favicon.ico", unknown), 100);
        assert_eq!(failure(Method::Read, Outcome::Server, &target("/blog/a-page"), met), 0, "an outage");
        assert!(
            failure(Method::Ask, Outcome::Missing, &target("/remote.php/dav/x"), unknown) < 200,
            "a sync asks first"
        );
    }
}
