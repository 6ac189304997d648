//! What counts against a client, and what does not: answers that say nothing of it, and the many spellings of one path.

use anomaly::engine::{Decision, Engine, Input, Output, Settings, Signal};
use anomaly::record::Record;
use anomaly::time::Timestamp;

const START: i64 = 1_767_225_600;

/// The signals of the bans of one client that asks for these, one a second, on a site that is past its warm-up.
fn signals(requests: impl Iterator<Item = (&'static str, String, u16)>) -> Vec<Option<Signal>> {
    let mut engine = Engine::new(Settings::default(), 1);
    let mut out = Vec::new();
    let mut ask = |at: i64, client: &str, (method, path, status): (&str, &str, u16)| {
        let now = Timestamp::from_secs(START + at);
        let record =
            Record { method: method.as_bytes(), status, ..Record::new(client.parse().expect("an address"), now) };
        engine.handle(now, Input::Record(&record.with_path(path.as_bytes())), &mut out);
    };
    ask(0, "198.51.100.1", ("GET", "/", 200));
    for (n, (method, path, status)) in (600..).zip(requests) {
        ask(n, "192.0.2.1", (method, &path, status));
    }
    let ban = |output: Output| match output {
        Output::Decision(Decision::Ban(ban)) => Some(ban.finding.and_then(|f| f.signal).map(|(signal, _)| signal)),
        _ => None,
    };
    out.into_iter().filter_map(ban).collect()
}

#[test]
fn who_goes_before_the_answer_is_not_banned_for_it() {
    let gone = |status| move |n: u32| ("GET", format!("/photo/{n}"), status);
    assert_eq!(signals((0..300).map(gone(499))), []);
    assert_eq!(signals((0..60).map(gone(404))), [Some(Signal::UnknownPaths)]);
    // Many at once: the answers are no error answers either.
    let twice = |status| move |n: u32| ("GET", "/photo".to_owned() + &"/".repeat(n as usize % 2), status);
    assert_eq!(signals((0..58).map(twice(499))), []);
}

#[test]
fn who_makes_directories_that_are_there_is_not_banned_for_it() {
    let make = |method, status| move |n: u32| (method, format!("/remote.php/dav/files/a/{n}"), status);
    assert_eq!(signals((0..300).map(make("MKCOL", 405))), []);
    assert_eq!(signals((0..300).map(make("PUT", 405))), [Some(Signal::UnknownPaths)]);
    assert_eq!(signals((0..300).map(make("MKCOL", 404))), [Some(Signal::UnknownPaths)]);
}

/// A page that is missing is one missing page, whatever its query says; and who tries passwords cannot spread them over
/// spellings, nor over directories.
#[test]
fn spellings_of_one_path_count_as_one() {
    let spelled = |path: &str, n: u32| match n % 6 {
        0 => format!("{path}?n={n}"),
        1 => format!("{}{path}", "/".repeat(n as usize)),
        2 => format!("/{n}/..{path}"),
        3 => format!("{}{path}", "/.".repeat(n as usize)),
        4 => format!("/{n}/%2e%2E{path}#{n}"),
        _ => path.replace('-', "%2d").replace('l', if n % 4 == 1 { "%6c" } else { "%6C" }) + &format!("?{n}"),
    };
    assert_eq!(signals((0..30).map(|n| ("GET", spelled("/wp-login.php", n), 404))), []);
    assert_eq!(signals((0..20).map(|n| ("POST", spelled("/wp-login.php", n), 200))), [Some(Signal::RepeatedLogins)]);
    assert_eq!(signals((0..20).map(|n| ("GET", format!("/{n}/wp-login.php"), 404))), [Some(Signal::UnknownPaths)]);
    assert_eq!(signals((0..20).map(|n| ("POST", format!("/{n}/wp-login.php"), 200))), [Some(Signal::RepeatedLogins)]);
}
