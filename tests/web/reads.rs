//! What can be read, and how it looks.

use std::sync::Arc;

use super::client::{ask, get, tcp, unix};
use super::fake::{HOSTILE, NOW, Options, Server, picture, point};

#[test]
fn every_row_arrives_as_the_daemon_made_it() {
    let server = Server::start(Options::default());
    let live = picture();
    assert_eq!(get(&server, "/api/v1/status").json(), serde_json::to_value(&live.status).expect("JSON"));
    assert_eq!(get(&server, "/api/v1/bans").json(), serde_json::to_value(&*live.bans).expect("JSON"));
    assert_eq!(get(&server, "/api/v1/top").json(), serde_json::to_value(&live.top).expect("JSON"));
    assert_eq!(get(&server, "/api/v1/baseline").json(), serde_json::to_value(&live.baseline).expect("JSON"));
    let over_unix = ask(unix(&server), "GET", "/api/v1/status", &[], "").json();
    assert_eq!(over_unix["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_newest_picture_is_shown_not_the_first() {
    let server = Server::start(Options::default());
    assert_eq!(get(&server, "/api/v1/bans").json().as_array().map(Vec::len), Some(1));
    server.show(|live| Arc::make_mut(&mut live.bans).clear());
    assert_eq!(get(&server, "/api/v1/bans").json().as_array().map(Vec::len), Some(0));
}

#[test]
fn limits_take_the_newest_bans_and_the_busiest_clients() {
    let server = Server::start(Options::default());
    server.show(|live| {
        let rows = (0..50).map(|i| super::fake::ban_row(&format!("203.0.113.{i}")));
        live.bans = Arc::new(rows.collect());
    });
    let bans = get(&server, "/api/v1/bans?limit=2").json();
    assert_eq!((bans[0]["ip"].as_str(), bans[1]["ip"].as_str()), (Some("203.0.113.48"), Some("203.0.113.49")));
    let top = get(&server, "/api/v1/top?limit=1").json();
    assert_eq!(top.as_array().map(Vec::len), Some(1));
    assert_eq!(top[0]["ip"], "203.0.113.10");
    for path in ["/api/v1/bans?limit=0", "/api/v1/bans?limit=x", "/api/v1/top?limit=1001", "/api/v1/top?limit=-1"] {
        assert_eq!(get(&server, path).problem(400), "bad_request", "{path}");
    }
}

#[test]
fn history_has_three_ranges_and_no_other() {
    let server = Server::start(Options::default());
    for (path, points, step) in [
        ("/api/v1/history", 300, 1),
        ("/api/v1/history?range=5m", 300, 1),
        ("/api/v1/history?range=1h", 121, 5),
        ("/api/v1/history?range=24h", 11, 60),
    ] {
        let answer = get(&server, path).json();
        let rows = answer.as_array().expect("points");
        assert_eq!(rows.len(), points, "{path}");
        let t = |i: usize| rows[i]["t"].as_i64().expect("a time");
        assert_eq!(t(1) - t(0), step, "{path}");
    }
    assert_eq!(get(&server, "/api/v1/history?range=7d").problem(400), "bad_request");
    let newest = point(NOW.as_secs() + 5);
    server.history.lock().expect("not poisoned").push(newest);
    let points = get(&server, "/api/v1/history").json();
    assert_eq!(points[points.as_array().map_or(0, |p| p.len() - 1)], serde_json::to_value(newest).expect("JSON"));
}

#[test]
fn an_address_a_prefix_and_a_stranger_have_their_cards() {
    let server = Server::start(Options::default());
    let card = get(&server, "/api/v1/bans/203.0.113.10").json();
    assert_eq!(card["active"][0]["ip"], "203.0.113.10");
    assert_eq!(card["bans"][0]["rule"], "rate_multiplier");
    assert_eq!(card["now"]["banned"], true);
    let path = card["bans"][0]["samples"][0]["path"].as_str().expect("a sample");
    assert!(path.contains("<script>") && !path.contains('\n') && !path.contains('\u{202e}'), "{path:?} of {HOSTILE:?}");
    let prefix = get(&server, "/api/v1/bans/2001:db8:7::%2F64").json();
    assert_eq!(prefix["ip"], "2001:db8:7::/64");
    assert_eq!(prefix["active"], serde_json::json!([]));
    let stranger = get(&server, "/api/v1/bans/192.0.2.200").json();
    assert_eq!((stranger["active"].as_array().map(Vec::len), stranger["now"].is_null()), (Some(0), true));
    for path in ["/api/v1/bans/nobody", "/api/v1/bans/%00", "/api/v1/bans/%ff", "/api/v1/bans/1.2.3.4%2F64"] {
        assert_eq!(get(&server, path).problem(400), "bad_request", "{path}");
    }
}

#[test]
fn everything_else_is_a_problem_document_too() {
    let server = Server::start(Options { token: Some("secret"), ..Options::default() });
    for path in ["/nothing", "/api/v1/nothing", "/api/v2/status", "/assets/nothing.js", "/api/v1/bans/1.2.3.0/24"] {
        assert_eq!(get(&server, path).problem(404), "not_found", "{path}");
    }
    for path in
        ["/assets/..%2f..%2fmod.rs", "/assets/../mod.rs", "/../../../etc/passwd", "/assets/%2e%2e/%2e%2e/etc/passwd"]
    {
        assert_eq!(get(&server, path).problem(404), "not_found", "{path}");
    }
    // Bytes that are no text. The fuzz target `api` found it.
    for path in ["/ip/%A6", "/assets/%A6", "/api/v1/bans/%A6"] {
        assert_eq!(get(&server, path).problem(400), "bad_request", "{path}");
    }
    let right = [("Authorization", "Bearer secret")];
    for (method, path, allow) in [
        ("PUT", "/api/v1/status", "GET,HEAD"),
        ("DELETE", "/api/v1/bans", "GET,HEAD,POST"),
        ("POST", "/api/v1/bans/192.0.2.1", "GET,HEAD,DELETE"),
        ("TRACE", "/metrics", "GET,HEAD"),
    ] {
        let answer = ask(tcp(&server), method, path, &right, "");
        assert_eq!(answer.problem(405), "method_not_allowed");
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
}

#[test]
fn health_follows_the_daemon_and_tells_strangers_little() {
    let server = Server::start(Options::default());
    assert_eq!((get(&server, "/healthz").status, get(&server, "/healthz").body.as_str()), (200, "ok\n"));
    server.show(|live| live.status.unhealthy = Some("the log /var/log/nginx/access.json is gone".into()));
    let sick = get(&server, "/healthz");
    assert_eq!(sick.status, 503);
    assert!(sick.body.contains("access.json is gone"));

    let abroad = Server::start(Options { beyond_loopback: true, token: Some("secret"), ..Options::default() });
    abroad.show(|live| live.status.unhealthy = Some("the log /var/log/nginx/access.json is gone".into()));
    let sick = get(&abroad, "/healthz");
    assert_eq!((sick.status, sick.body.as_str()), (503, "unhealthy\n"));
}

#[test]
fn every_answer_forbids_frames_sniffing_and_foreign_content() {
    let server = Server::start(Options::default());
    for path in ["/", "/assets/app.js", "/api/v1/status", "/metrics", "/healthz", "/nothing", "/api/v1/bans/nobody"] {
        let answer = get(&server, path);
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "", "{path}");
    }
}

#[test]
fn the_page_has_nothing_inline_and_nothing_from_elsewhere() {
    let server = Server::start(Options { token: Some("secret"), ..Options::default() });
    let page = get(&server, "/");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.body.contains("data-writes=\"token\"") && page.body.contains("data-reads=\"open\""), "{}", page.body);
    assert!(!page.body.contains("{{") && !page.body.contains("secret"), "{}", page.body);
    for wrong in ["style=\"", " onclick", " onload", "<style", "http://", "https://", "javascript:"] {
        assert!(!page.body.contains(wrong), "{wrong}");
    }
    let mut files = 0;
    for part in page.body.split(['"', '\'']).filter(|part| part.starts_with("assets/")) {
        let file = get(&server, &format!("/{part}"));
        assert_eq!(file.status, 200, "{part}");
        files += 1;
        for wrong in ["innerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://"] {
            assert!(!file.body.contains(wrong), "{part}: {wrong}");
        }
    }
    assert!(files >= 3, "{}", page.body);
}

#[test]
fn links_in_messages_lead_to_the_page_of_the_address() {
    let server = Server::start(Options::default());
    let link = get(&server, "/ip/2001:db8::%2F64");
    assert_eq!((link.status, link.header("location")), (307, "../#/ip/2001:db8::%2F64"));
    assert_eq!(get(&server, "/ip/evil%0d%0aSet-Cookie:x").problem(400), "bad_request");
}

#[test]
fn metrics_come_in_both_formats_and_name_no_address() {
    let server = Server::start(Options::default());
    server.metrics.live(&picture());
    let classic = get(&server, "/metrics");
    assert_eq!(classic.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let mut described = std::collections::HashSet::new();
    for line in classic.body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")) {
            described.insert(rest.split(' ').next().expect("a name").to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').expect("name and value");
            let name = series.split('{').next().expect("a name");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(described.contains(name) || described.contains(base), "{line} is not described");
            assert!(name.starts_with("anomaly_"), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(!line.contains("203.0.113") && !line.contains("2001:db8"), "{line}");
        }
    }
    for line in [
        "anomaly_log_records_total 1000000",
        "anomaly_active_bans 1.0",
        "anomaly_degraded{what=\"rejected\"} 1.0",
        "anomaly_degraded{what=\"store\"} 0.0",
        "anomaly_enforcer_info{enforcer=\"dry-run\",mode=\"none\"} 1.0",
        "# TYPE anomaly_log_records_total counter",
    ] {
        assert!(classic.body.lines().any(|l| l == line), "{line} in\n{}", classic.body);
    }
    let open =
        ask(tcp(&server), "GET", "/metrics", &[("Accept", "application/openmetrics-text;version=1.0.0,*/*;q=0.1")], "");
    assert!(open.header("content-type").starts_with("application/openmetrics-text"));
    assert!(open.body.ends_with("# EOF\n") && open.body.contains("# TYPE anomaly_log_records counter"));
}

#[test]
fn the_openapi_document_covers_every_api_route() {
    let server = Server::start(Options::default());
    let document = get(&server, "/api/v1/openapi.json").json();
    let paths = document["paths"].as_object().expect("paths");
    let source = include_str!("../../anomaly/src/dashboard/mod.rs");
    let mut routes = 0;
    for line in source.lines().filter(|line| line.contains(".route(\"/api/")) {
        let path = line.split('"').nth(1).expect("a path");
        let item = paths.get(path).unwrap_or_else(|| panic!("{path} is not documented"));
        for method in ["get", "post", "delete"] {
            let routed = line.contains(&format!("{method}("));
            assert_eq!(routed, !item[method].is_null(), "{method} {path}");
        }
        routes += 1;
    }
    assert_eq!(routes, paths.len());
}
