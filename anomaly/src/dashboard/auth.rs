//! Access control: token, `Host` and `Origin`.
//!
//! | from | reads | writes |
//! |---|---|---|
//! | Unix socket | yes: the file's mode (0660) decides which users can connect | yes |
//! | TCP, bound to loopback | yes, under a name of this host only (DNS rebinding) | with the token |
//! | TCP, bound to loopback, under the host of `notify.dashboard_url` | as beyond loopback: a proxy sends the world there | with the token |
//! | TCP, bound beyond loopback | with the token; page and `/healthz` without | with the token |
//!
//! Where no token is configured, writes over TCP are 403. A token that is sent is checked even where none
//! is needed, so that a page can verify it. Writes that a browser sends for another site
//! are refused although they would lack the token, too.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::config::Secret;

/// Over what a connection came; attached to each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The Unix socket.
    Unix,
    /// TCP on a listener that only this host can reach, under a name of this host.
    Loopback,
    /// TCP on any other listener, or through a proxy under its public name.
    Network,
}

/// What is compared with: made once, from the configuration.
#[derive(Debug)]
pub struct Gate {
    /// SHA-256 of the token: digests have one length, so comparing them tells nothing of the token's.
    token: Option<[u8; 32]>,
    /// Host name of `notify.dashboard_url`.
    public_host: Option<String>,
}

impl Gate {
    /// A gate for this token and public URL.
    pub fn new(token: Option<&Secret>, public_url: Option<&str>) -> Self {
        Self {
            token: token.map(|t| Sha256::digest(t.expose().as_bytes()).into()),
            public_host: public_url
                .and_then(|url| url.parse::<Uri>().ok())
                .and_then(|uri| uri.host().map(str::to_ascii_lowercase)),
        }
    }

    /// Whether writes over TCP are possible at all.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Lets a request through, or says why not. Returns the caller: for a proxy on this host that is the world.
    ///
    /// # Errors
    /// 401 for a missing or wrong token, 403 for the rest.
    fn check(&self, peer: Peer, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Peer, Problem> {
        if peer == Peer::Unix {
            return Ok(peer);
        }
        let host = host_name(uri, headers);
        let named = host.as_deref().filter(|name| peer == Peer::Loopback && !is_this_host(name));
        let peer = if named.is_some() { Peer::Network } else { peer };
        if named.is_some() && named != self.public_host.as_deref() {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "host_not_allowed",
                "this dashboard answers to localhost and loopback addresses only; a proxy in front may use the host of \
                 notify.dashboard_url",
            ));
        }
        let write = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        if write && from_another_site(headers, host.as_deref(), self.public_host.as_deref()) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "cross_site",
                "a page of another site may not change anything here",
            ));
        }
        let api = uri.path().starts_with("/api/");
        if write && api && self.token.is_none() {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "no_token_configured",
                "changes over TCP need dashboard.token (or dashboard.token_file), and none is configured; on the host \
                 itself, use `anomaly ban` and `anomaly unban`",
            ));
        }
        let needed = api && write || peer == Peer::Network && (api || uri.path() == "/metrics");
        match bearer(headers) {
            Some(sent) if self.token.is_some() && !self.is_token(sent) => Err(unauthorized("wrong token")),
            None if needed => Err(unauthorized("send the token of dashboard.token as `Authorization: Bearer …`")),
            // Beyond loopback the configuration demands a token; should it be missing, nothing is open.
            _ if needed && self.token.is_none() => Err(unauthorized("no token is configured")),
            _ => Ok(peer),
        }
    }

    /// Whether the request carries the token, or comes from where none is needed for reading.
    pub fn may_read(&self, peer: Peer, headers: &HeaderMap) -> bool {
        peer != Peer::Network || bearer(headers).is_some_and(|sent| self.is_token(sent))
    }

    fn is_token(&self, sent: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(sent).into();
        self.token.is_some_and(|token| token.ct_eq(&digest).into())
    }
}

fn is_this_host(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// The name under which the client means to reach us, in lower case, without port and brackets.
/// `None` where it names none (HTTP/1.0): no browser does that.
fn host_name(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let authority = match uri.authority() {
        Some(authority) => authority.as_str(),
        // A name that is no text is no name of ours.
        None => headers.get(header::HOST)?.to_str().unwrap_or("?"),
    };
    Some(without_port(authority).to_ascii_lowercase())
}

fn without_port(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    }
}

/// Whether a browser says that another site's page sent this. Programs send neither header.
fn from_another_site(headers: &HeaderMap, host: Option<&str>, public_host: Option<&str>) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let name = origin
        .to_str()
        .ok()
        .and_then(|text| text.split_once("://"))
        .map(|(_, authority)| without_port(authority).to_ascii_lowercase());
    // `Origin: null` (sandboxed frames, files) has no name.
    name.is_none() || name.as_deref() != host && name.as_deref() != public_host
}

/// The middleware around every route.
pub async fn guard(State(gate): State<Arc<Gate>>, mut request: Request<Body>, next: Next) -> Response {
    // A request that no connection of ours marked is treated as coming from farthest away.
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Network);
    match gate.check(peer, request.method(), request.uri(), request.headers()) {
        Ok(peer) => {
            request.extensions_mut().insert(peer);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(gate: &Gate, peer: Peer, method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(
                header::HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
                value.parse().expect("a header value"),
            );
        }
        gate.check(peer, &method, &path.parse().expect("a path"), &map).map_or_else(|p| p.status, |_| 200)
    }

    #[test]
    fn only_names_of_this_host_reach_a_loopback_listener() {
        let gate = Gate::new(None, Some("https://Anomaly.example.org/ops"));
        for (host, status) in [
            ("localhost:8081", 200),
            ("127.0.0.1:8081", 200),
            ("127.8.8.8", 200),
            ("[::1]:8081", 200),
            ("demo.localhost:1", 200),
            ("anomaly.example.org", 200),
            ("ANOMALY.example.org:443", 200),
            ("evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost.evil.example:8081", 403),
            ("192.0.2.1", 403),
            ("0.0.0.0:8081", 403),
            ("[::1", 403),
            ("", 403),
        ] {
            assert_eq!(ask(&gate, Peer::Loopback, Method::GET, "/", &[("host", host)]), status, "{host:?}");
            assert_eq!(ask(&gate, Peer::Unix, Method::GET, "/", &[("host", host)]), 200, "{host:?}");
        }
        // The request line's own host counts more than the header.
        let absolute = ask(&gate, Peer::Loopback, Method::GET, "http://evil.example/", &[("host", "localhost")]);
        assert_eq!(absolute, 403);
    }

    #[test]
    fn through_a_proxy_under_the_public_name_reading_needs_the_token() {
        let token = Secret::new("right");
        let url = Some("https://anomaly.example.org/ops");
        let (with, without) = (Gate::new(Some(&token), url), Gate::new(None, url));
        let host = ("host", "anomaly.example.org");
        let right = ("authorization", "Bearer right");
        let read =
            |gate: &Gate, path: &str, headers: &[(&str, &str)]| ask(gate, Peer::Loopback, Method::GET, path, headers);
        for path in ["/api/v1/status", "/api/v1/events", "/metrics"] {
            assert_eq!(read(&with, path, &[host]), 401, "{path}");
            assert_eq!(read(&with, path, &[host, right]), 200, "{path}");
            assert_eq!(read(&without, path, &[host, right]), 401, "{path}");
            // An ssh tunnel ends under the name of this host.
            assert_eq!(read(&with, path, &[("host", "localhost:8081")]), 200, "{path}");
        }
        for path in ["/", "/healthz", "/assets/app.js"] {
            assert_eq!(read(&with, path, &[host]), 200, "{path}");
        }
        let local = Gate::new(Some(&token), Some("http://localhost:8081"));
        assert_eq!(read(&local, "/api/v1/status", &[("host", "localhost:8081")]), 200);
    }

    #[test]
    fn a_browser_on_another_site_cannot_write_even_with_the_token() {
        let token = Secret::new("right");
        let gate = Gate::new(Some(&token), Some("https://anomaly.example.org"));
        let write = |headers: &[(&str, &str)]| {
            let mut all = vec![("authorization", "Bearer right"), ("host", "127.0.0.1:8081")];
            all.extend_from_slice(headers);
            ask(&gate, Peer::Loopback, Method::DELETE, "/api/v1/bans/192.0.2.1", &all)
        };
        assert_eq!(write(&[]), 200);
        assert_eq!(write(&[("origin", "http://127.0.0.1:8081")]), 200);
        assert_eq!(write(&[("origin", "https://anomaly.example.org")]), 200);
        assert_eq!(write(&[("sec-fetch-site", "same-origin"), ("origin", "https://whatever.example")]), 200);
        assert_eq!(write(&[("origin", "https://evil.example")]), 403);
        assert_eq!(write(&[("origin", "null")]), 403);
        assert_eq!(write(&[("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(write(&[("sec-fetch-site", "same-site")]), 403);
    }

    #[test]
    fn the_token_matters_where_the_table_says_so() {
        let token = Secret::new("right");
        let (with, without) = (Gate::new(Some(&token), None), Gate::new(None, None));
        let right = [("authorization", "bearer right")];
        let wrong = [("authorization", "Bearer wrong")];
        let ban = "/api/v1/bans/192.0.2.1";
        type Case<'a> = (&'a Gate, Peer, Method, &'a str, &'a [(&'a str, &'a str)], u16);
        let cases: &[Case<'_>] = &[
            (&with, Peer::Unix, Method::DELETE, ban, &[], 200),
            (&without, Peer::Unix, Method::DELETE, ban, &[], 200),
            (&with, Peer::Loopback, Method::GET, "/api/v1/status", &[], 200),
            (&with, Peer::Loopback, Method::GET, "/api/v1/status", &wrong, 401),
            (&with, Peer::Loopback, Method::DELETE, ban, &[], 401),
            (&with, Peer::Loopback, Method::DELETE, ban, &wrong, 401),
            (&with, Peer::Loopback, Method::DELETE, ban, &right, 200),
            (&without, Peer::Loopback, Method::DELETE, ban, &right, 403),
            (&without, Peer::Loopback, Method::GET, "/api/v1/status", &right, 200),
            (&with, Peer::Network, Method::GET, "/api/v1/status", &[], 401),
            (&with, Peer::Network, Method::GET, "/api/v1/status", &right, 200),
            (&with, Peer::Network, Method::GET, "/metrics", &[], 401),
            (&with, Peer::Network, Method::GET, "/", &[], 200),
            (&with, Peer::Network, Method::GET, "/healthz", &[], 200),
            (&without, Peer::Network, Method::GET, "/api/v1/status", &right, 401),
        ];
        for (gate, peer, method, path, headers, status) in cases {
            assert_eq!(
                ask(gate, *peer, method.clone(), path, headers),
                *status,
                "{peer:?} {method} {path} {headers:?}"
            );
        }
    }
}
