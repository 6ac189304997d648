//! Pages, JSON API, server-sent events and metrics over HTTP; reads snapshots only.
//!
//! It decides nothing: what people ask for goes to the daemon's loop and comes
//! back as an answer. It reads no clock but for deadlines of connections.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::metrics::ClassLabels;

mod address;
mod api;
mod auth;
mod connection;
mod handle;
mod openapi;
mod pages;
mod problem;
mod sse;

#[cfg(test)]
pub(crate) use sse::frame_of;

use auth::{Gate, Peer};
pub use handle::Handle;
use problem::Problem;

/// What every handler is given.
#[derive(Clone)]
struct App {
    handle: Handle,
    gate: Arc<Gate>,
    hub: Arc<sse::Hub>,
    bans: Arc<api::BansCache>,
}

/// Serves the dashboard on the given listeners until `shutdown` is ready, then lets what is being
/// answered finish (at most 3 seconds). Never fails: what goes wrong with one connection ends that one.
///
/// Whether reads need the token follows from the TCP listener's own address: beyond loopback they do.
/// The Unix socket needs no token; its file's mode decides which users can connect.
pub async fn serve(
    handle: Handle,
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    shutdown: impl Future<Output = ()>,
) {
    let hub = Arc::new(sse::Hub::new());
    let (close, closing) = watch::channel(false);
    let feed = {
        let (hub, live, events) = (hub.clone(), handle.live.clone(), handle.events.subscribe());
        async move { hub.run(live, events).await }
    };
    let metrics = handle.metrics.clone();
    let bans: Arc<api::BansCache> = Arc::default();
    let forget = {
        let (bans, live, closing) = (bans.clone(), handle.live.clone(), closing.clone());
        async move { bans.forget(live, closing).await }
    };
    let app = App {
        gate: Arc::new(Gate::new(handle.token.as_ref(), handle.public_url.as_deref())),
        handle,
        hub: hub.clone(),
        bans,
    };
    let shared = connection::Shared { router: router(app), metrics, closing };
    let over_tcp = async {
        if let Some(listener) = tcp {
            let peer = match listener.local_addr() {
                Ok(address) if address.ip().to_canonical().is_loopback() => Peer::Loopback,
                _ => Peer::Network,
            };
            connection::serve_tcp(listener, peer, shared.clone()).await;
        }
    };
    let over_unix = async {
        if let Some(listener) = unix {
            connection::serve_unix(listener, shared.clone()).await;
        }
    };
    let end = async {
        shutdown.await;
        hub.close();
        close.send_replace(true);
    };
    tokio::join!(over_tcp, over_unix, feed, forget, end);
}

fn router(app: App) -> Router {
    Router::new()
        .route("/", get(pages::page))
        .route("/ip/{ip}", get(pages::ip))
        .route("/assets/{name}", get(pages::asset))
        .route("/healthz", get(pages::healthz))
        .route("/metrics", get(pages::metrics))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/bans", get(api::bans).post(api::ban))
        .route("/api/v1/bans/{ip}", get(api::explain).delete(api::unban))
        .route("/api/v1/top", get(api::top))
        .route("/api/v1/baseline", get(api::baseline))
        .route("/api/v1/history", get(api::history))
        .route("/api/v1/events", get(api::events))
        .route("/api/v1/openapi.json", get(openapi::document))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing under this path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path does not know this method; the Allow header names those it knows",
            )
        })
        .layer(middleware::from_fn_with_state(app.gate.clone(), auth::guard))
        .layer(middleware::from_fn_with_state(app.clone(), finish))
        .with_state(app)
}

/// Nothing on these pages comes from elsewhere, runs inline, or may be framed.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// Whether the head of an HTTP answer is one of this dashboard's: nobody else sends this very policy.
pub fn is_ours(head: &str) -> bool {
    head.lines().filter_map(|line| line.split_once(": ")).any(|(name, value)| {
        name.eq_ignore_ascii_case(header::CONTENT_SECURITY_POLICY.as_str())
            && value.trim_end() == CONTENT_SECURITY_POLICY
    })
}

/// Counts the answer and gives it the headers that every answer has.
async fn finish(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await.into_response();
    let class = match response.status().as_u16() {
        ..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    };
    app.handle.metrics.http_requests.get_or_create(&ClassLabels { class }).inc();
    harden(response.headers_mut());
    response
}

fn harden(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
