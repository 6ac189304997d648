//! Which callers may change what.

use super::client::{ask, get, post, tcp, unix};
use super::fake::{Options, Server};

const BAN: &str = r#"{"ip":"192.0.2.7","duration_secs":3600,"reason":"scraper"}"#;

fn bans(server: &Server) -> usize {
    ask(unix(server), "GET", "/api/v1/bans", &[], "").json().as_array().expect("rows").len()
}

#[test]
fn writes_over_tcp_need_the_token() {
    let server = Server::start(Options { token: Some("secret"), ..Options::default() });
    let none = post(&server, "/api/v1/bans", &[], BAN);
    assert_eq!(none.problem(401), "unauthorized");
    assert_eq!(none.header("www-authenticate"), "Bearer realm=\"anomaly\"");
    for wrong in ["Bearer wrong", "Bearer secre", "Bearer secret2", "Bearer", "Basic c2VjcmV0", "secret"] {
        assert_eq!(post(&server, "/api/v1/bans", &[("Authorization", wrong)], BAN).status, 401, "{wrong:?}");
        let unban = ask(tcp(&server), "DELETE", "/api/v1/bans/203.0.113.10", &[("Authorization", wrong)], "");
        assert_eq!(unban.status, 401, "{wrong:?}");
    }
    assert_eq!(bans(&server), 1);
    let right = [("Authorization", "Bearer secret")];
    let made = post(&server, "/api/v1/bans", &right, BAN);
    assert_eq!((made.status, made.header("location")), (201, "/api/v1/bans/192.0.2.7%2F32"));
    let row = made.json();
    assert_eq!(
        (&row["ip"], &row["reason"], &row["origin"]),
        (&"192.0.2.7".into(), &"scraper".into(), &"operator".into())
    );
    assert_eq!(row["duration_secs"], 3600);
    assert_eq!(row["kept"], false);
    assert_eq!(get(&server, made.header("location")).json()["active"][0]["ip"], "192.0.2.7");
    // The same again is no other ban, unless that is what is asked for.
    let again = r#"{"ip":"192.0.2.7","duration_secs":60,"reason":"again"}"#;
    let kept = post(&server, "/api/v1/bans", &right, again);
    let row = kept.json();
    assert_eq!(
        (kept.status, &row["kept"], &row["reason"], &row["duration_secs"]),
        (200, &true.into(), &"scraper".into(), &3600.into())
    );
    let replaced = post(&server, "/api/v1/bans", &right, &again.replace('}', r#","replace":true}"#));
    let row = replaced.json();
    assert_eq!(
        (replaced.status, &row["kept"], &row["reason"], &row["duration_secs"]),
        (201, &false.into(), &"again".into(), &60.into())
    );
    assert_eq!(bans(&server), 2);
    let lifted = ask(tcp(&server), "DELETE", "/api/v1/bans/192.0.2.7", &right, "");
    assert_eq!((lifted.status, &lifted.json()[0]["action"]), (200, &"unban".into()));
    assert_eq!(ask(tcp(&server), "DELETE", "/api/v1/bans/192.0.2.7", &right, "").problem(404), "not_banned");
}

#[test]
fn without_a_configured_token_tcp_cannot_write_and_the_socket_can() {
    let server = Server::start(Options::default());
    for headers in [&[][..], &[("Authorization", "Bearer ")], &[("Authorization", "Bearer x")]] {
        assert_eq!(post(&server, "/api/v1/bans", headers, BAN).problem(403), "no_token_configured");
    }
    assert_eq!(bans(&server), 1);
    let headers = [("Content-Type", "application/json"), ("Host", "anything")];
    assert_eq!(ask(unix(&server), "POST", "/api/v1/bans", &headers, BAN).status, 201);
    assert_eq!(bans(&server), 2);
    assert_eq!(ask(unix(&server), "DELETE", "/api/v1/bans/192.0.2.0%2F24", &headers, "").problem(404), "not_banned");
    assert_eq!(ask(unix(&server), "DELETE", "/api/v1/bans/192.0.2.7", &headers, "").status, 200);
}

#[test]
fn beyond_loopback_reading_needs_the_token_as_well() {
    let server = Server::start(Options { token: Some("secret"), beyond_loopback: true, ..Options::default() });
    let right = [("Authorization", "Bearer secret"), ("Host", "198.51.100.4:8081")];
    for path in [
        "/api/v1/status",
        "/api/v1/bans",
        "/api/v1/top",
        "/api/v1/baseline",
        "/api/v1/history",
        "/api/v1/events",
        "/api/v1/openapi.json",
        "/api/v1/bans/203.0.113.10",
        "/api/v1/nothing",
        "/metrics",
    ] {
        assert_eq!(get(&server, path).problem(401), "unauthorized", "{path}");
        if path != "/api/v1/events" {
            assert_ne!(ask(tcp(&server), "GET", path, &right, "").status, 401, "{path}");
        }
    }
    for path in ["/", "/healthz", "/assets/app.js"] {
        assert_eq!(get(&server, path).status, 200, "{path}");
    }
    assert!(get(&server, "/").body.contains("data-reads=\"token\""));
    // Whoever may open the socket may read it, wherever TCP listens.
    assert_eq!(bans(&server), 1);
}

#[test]
fn another_site_reaches_nothing_through_a_browser() {
    let server = Server::start(Options {
        token: Some("secret"),
        public_url: Some("https://ops.example.org"),
        ..Options::default()
    });
    // A name that an attacker's DNS points to 127.0.0.1.
    let rebound = ask(tcp(&server), "GET", "/api/v1/status", &[("Host", "evil.example:8081")], "");
    assert_eq!(rebound.problem(403), "host_not_allowed");
    assert_eq!(ask(tcp(&server), "GET", "/", &[("Host", "evil.example")], "").problem(403), "host_not_allowed");
    // A proxy on this host sends the world here under the public name: reading needs the token, and the page asks for it.
    let public = ("Host", "ops.example.org");
    let right = ("Authorization", "Bearer secret");
    assert_eq!(ask(tcp(&server), "GET", "/api/v1/status", &[public], "").problem(401), "unauthorized");
    assert_eq!(ask(tcp(&server), "GET", "/api/v1/status", &[public, right], "").status, 200);
    assert!(ask(tcp(&server), "GET", "/", &[public], "").body.contains("data-reads=\"token\""));
    server.show(|live| live.status.unhealthy = Some("the log is gone".into()));
    assert_eq!(ask(tcp(&server), "GET", "/healthz", &[public], "").body, "unhealthy\n");
    for headers in [[("Origin", "https://evil.example")], [("Origin", "null")], [("Sec-Fetch-Site", "cross-site")]] {
        let mut all = vec![("Authorization", "Bearer secret")];
        all.extend(headers);
        assert_eq!(post(&server, "/api/v1/bans", &all, BAN).problem(403), "cross_site", "{headers:?}");
    }
    // What a form can send without asking first is not JSON.
    let form = [("Content-Type", "text/plain"), ("Authorization", "Bearer secret")];
    assert_eq!(ask(tcp(&server), "POST", "/api/v1/bans", &form, BAN).problem(415), "unsupported_media_type");
    assert_eq!(bans(&server), 1);
}

#[test]
fn a_refusal_says_why() {
    let server = Server::start(Options { token: Some("secret"), ..Options::default() });
    let right = [("Authorization", "Bearer secret")];
    let refused = post(&server, "/api/v1/bans", &right, r#"{"ip":"198.51.100.9"}"#);
    assert_eq!(refused.problem(409), "allow_listed");
    assert!(refused.body.contains("198.51.100.0/24"), "{}", refused.body);
}

#[test]
fn a_body_is_read_strictly() {
    let server = Server::start(Options { token: Some("secret"), ..Options::default() });
    let right = [("Authorization", "Bearer secret")];
    let long = format!(r#"{{"ip":"192.0.2.7","reason":"{}"}}"#, "x".repeat(501));
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\u{0}",
        r#"{"ip":"192.0.2.7"} trailing"#,
        r#"{"reason":"no address"}"#,
        r#"{"ip":"nobody"}"#,
        r#"{"ip":"192.0.2.7; rm -rf /"}"#,
        r#"{"ip":7}"#,
        r#"{"ip":"192.0.2.7","duration_secs":0}"#,
        r#"{"ip":"192.0.2.7","duration_secs":-1}"#,
        r#"{"ip":"192.0.2.7","duration_secs":1.5}"#,
        r#"{"ip":"192.0.2.7","duration_secs":999999999999}"#,
        r#"{"ip":"192.0.2.7","duration_secs":5,"permanent":true}"#,
        r#"{"ip":"192.0.2.7","forever":true}"#,
        &long,
    ] {
        assert_eq!(post(&server, "/api/v1/bans", &right, body).problem(400), "bad_request", "{body:?}");
    }
    assert_eq!(bans(&server), 1);
    let permanent = post(&server, "/api/v1/bans", &right, r#"{"ip":"2001:db8:9::/64","permanent":true}"#).json();
    assert_eq!((permanent["ip"].as_str(), permanent["until"].is_null()), (Some("2001:db8:9::/64"), true));
    assert_eq!(permanent["duration_secs"], serde_json::Value::Null);
    let inert =
        post(&server, "/api/v1/bans", &right, r#"{"ip":"192.0.2.8","reason":" \u001b[31mred\u202e\n "}"#).json();
    assert_eq!(inert["reason"], r"\u{1b}[31mred\u{202e}");
    // Also where a refusal names what was sent: the command line prints it. The fuzz target `api` found it.
    for key in [r"\u0008", r"\u001b[2J", "\u{202e}", "\u{9b}"] {
        let refused = post(&server, "/api/v1/bans", &right, &format!(r#"{{"ip{key}":1}}"#));
        assert_eq!(refused.problem(400), "bad_request");
        let detail = refused.json()["detail"].as_str().expect("words").to_owned();
        assert!(detail.contains("ip") && !detail.contains(['\u{8}', '\u{1b}', '\u{202e}', '\u{9b}']), "{detail:?}");
    }
}
