//! The page and its parts: files of ours, compiled in; nothing is ever fetched from elsewhere.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, body::Bytes};

use super::App;
use super::auth::Peer;
use super::problem::Problem;

const PAGE: &str = include_str!("assets/index.html");

macro_rules! assets {
    ($($name:literal $type:literal)+) => {
        &[$(($name, $type, include_str!(concat!("assets/", $name)))),+]
    };
}

/// Name, media type, text.
const ASSETS: &[(&str, &str, &str)] = assets! {
    "style.css" "text/css; charset=utf-8"
    "app.js" "text/javascript; charset=utf-8"
    "api.js" "text/javascript; charset=utf-8"
    "cards.js" "text/javascript; charset=utf-8"
    "chart.js" "text/javascript; charset=utf-8"
    "dialogs.js" "text/javascript; charset=utf-8"
    "dom.js" "text/javascript; charset=utf-8"
    "format.js" "text/javascript; charset=utf-8"
    "ip.js" "text/javascript; charset=utf-8"
    "keep.js" "text/javascript; charset=utf-8"
    "load.js" "text/javascript; charset=utf-8"
    "tables.js" "text/javascript; charset=utf-8"
    "icon.svg" "image/svg+xml"
};

/// The dashboard. The page learns what needs a token, so that it can ask for the token first.
pub async fn page(State(app): State<App>, peer: Option<Extension<Peer>>) -> Response {
    let reads = if peer.is_some_and(|p| p.0 == Peer::Network) { "token" } else { "open" };
    let writes = if app.gate.has_token() { "token" } else { "off" };
    let text = PAGE
        .replace("{{reads}}", reads)
        .replace("{{writes}}", writes)
        .replace("{{version}}", env!("CARGO_PKG_VERSION"));
    text_response("text/html; charset=utf-8", text.into())
}

/// A part of the page.
pub async fn asset(name: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let Path(name) = name?;
    let (_, media_type, text) = ASSETS
        .iter()
        .find(|(known, _, _)| *known == name)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such file"))?;
    Ok(text_response(media_type, Bytes::from_static(text.as_bytes())))
}

/// The page of one address, as messages link to it.
pub async fn ip(ip: Result<Path<String>, PathRejection>) -> Result<Redirect, Problem> {
    let Path(ip) = ip?;
    // Only what was parsed goes into the answer.
    let prefix = crate::report::parse_ip(&ip).ok_or_else(|| Problem::bad_request("not an address or prefix"))?;
    Ok(Redirect::temporary(&format!("../#/ip/{}", crate::report::ip_text(&prefix).replace('/', "%2F"))))
}

/// 200 while log and enforcer are there, else 503 with the reason.
pub async fn healthz(State(app): State<App>, peer: Option<Extension<Peer>>, headers: HeaderMap) -> Response {
    let unhealthy = app.handle.live.borrow().status.unhealthy.clone();
    let peer = peer.map_or(Peer::Network, |p| p.0);
    match unhealthy {
        None => text_response("text/plain; charset=utf-8", Bytes::from_static(b"ok\n")),
        Some(reason) => {
            // Strangers learn that something is wrong, not what.
            let reason = if app.gate.may_read(peer, &headers) { reason } else { "unhealthy".into() };
            let mut response = text_response("text/plain; charset=utf-8", format!("{reason}\n").into());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// Prometheus text, or OpenMetrics where that is asked for.
pub async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    let open = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let metrics = &app.handle.metrics;
    if open {
        text_response("application/openmetrics-text; version=1.0.0; charset=utf-8", metrics.open_metrics().into())
    } else {
        text_response("text/plain; version=0.0.4; charset=utf-8", metrics.prometheus_text().into())
    }
}

fn text_response(media_type: &'static str, body: Bytes) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
