//! The JSON API: every handler reads the newest snapshot, or asks the daemon and waits for its answer.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::App;
use super::connection::closed;
use super::problem::Problem;
use crate::engine::BanLength;
use crate::report::{
    BanAnswer, BanRow, BaselineRow, DecisionRow, Explanation, HistoryPoint, Status, TopRow, inert, parse_ip,
};
use crate::view::control::{Request as Ask, RequestError};
use crate::view::history::Range;
use crate::view::live::Live;

/// Bound of a request's body.
pub const MAX_BODY: usize = 64 * 1024;
/// Until a body must be there.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Until the daemon's loop must have answered.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The longest ban with an end: 10 years.
const MAX_DURATION_SECS: u64 = 10 * 365 * 86_400;
/// Characters of an operator's reason.
const MAX_REASON: usize = 500;

/// JSON with status 200.
fn json(value: &impl Serialize) -> Response {
    json_with(StatusCode::OK, value)
}

fn json_with(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => json_bytes(status, body.into()),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()).into_response(),
    }
}

fn json_bytes(status: StatusCode, body: Bytes) -> Response {
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A list that the first caller makes while the other callers wait for it.
type List = Arc<OnceLock<Result<Bytes, String>>>;

/// How many lengths of the list of bans are kept: the page asks for one, the command line for all.
const LISTS: usize = 4;

/// The list of bans as JSON, made once however many ask for it, and forgotten when nobody has asked for a while.
#[derive(Debug, Default)]
pub struct BansCache(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    /// What the lists were made of: held so that no other can take its place in memory, but not kept alive.
    of: Weak<Vec<BanRow>>,
    lists: Vec<(Option<usize>, List)>,
    used: bool,
}

impl BansCache {
    /// The list, where somebody has made it already.
    fn made(&self, bans: &Arc<Vec<BanRow>>, limit: Option<usize>) -> Option<Result<Bytes, String>> {
        self.list(bans, limit.filter(|limit| *limit < bans.len())).get().cloned()
    }

    /// The newest so many, or all. May take long where there are many.
    fn get(&self, bans: &Arc<Vec<BanRow>>, limit: Option<usize>) -> Result<Bytes, String> {
        let limit = limit.filter(|limit| *limit < bans.len());
        let list = self.list(bans, limit);
        let first = limit.map_or(0, |limit| bans.len() - limit);
        let rows = bans.get(first..).unwrap_or_default();
        list.get_or_init(|| serde_json::to_vec(rows).map(Bytes::from).map_err(|e| e.to_string())).clone()
    }

    fn list(&self, bans: &Arc<Vec<BanRow>>, limit: Option<usize>) -> List {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(made.of.as_ptr(), Arc::as_ptr(bans)) {
            *made = Made { of: Arc::downgrade(bans), ..Made::default() };
        }
        made.used = true;
        if let Some((_, list)) = made.lists.iter().find(|(of, _)| *of == limit) {
            return Arc::clone(list);
        }
        if made.lists.len() == LISTS {
            made.lists.remove(0);
        }
        let list = List::default();
        made.lists.push((limit, Arc::clone(&list)));
        list
    }

    /// Forgets lists that no caller has asked for since the last time, with each new snapshot until `closing`.
    pub async fn forget(&self, mut live: watch::Receiver<Arc<Live>>, mut closing: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                changed = live.changed() => if changed.is_err() { break },
                () = closed(&mut closing) => break,
            }
            self.tick();
        }
    }

    fn tick(&self) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut made.used) {
            *made = Made::default();
        }
    }
}

/// State and figures of the daemon.
#[utoipa::path(get, path = "/api/v1/status", tag = "read",
    responses((status = 200, description = "The newest status, at most a second old", body = Status)))]
pub async fn status(State(app): State<App>) -> Response {
    json(&app.handle.live.borrow().status)
}

/// Which bans.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BansQuery {
    /// Only the newest so many; without it, all.
    #[param(minimum = 1, maximum = 1_000_000)]
    limit: Option<u32>,
}

/// Bans in force, oldest first.
#[utoipa::path(get, path = "/api/v1/bans", tag = "read", params(BansQuery),
    responses((status = 200, description = "Bans in force, oldest first", body = Vec<BanRow>)))]
pub async fn bans(
    State(app): State<App>,
    query: Result<Query<BansQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let limit = limit(query?.0.limit, 1_000_000)?;
    let bans = app.handle.live.borrow().bans.clone();
    let list = match app.bans.made(&bans, limit) {
        Some(list) => list,
        // Not on the thread that serves everybody: there may be a million.
        None => tokio::task::spawn_blocking(move || app.bans.get(&bans, limit))
            .await
            .map_err(|_| Problem::busy("the daemon is stopping"))?,
    };
    Ok(json_bytes(StatusCode::OK, list.map_err(Problem::busy)?))
}

fn limit(wanted: Option<u32>, most: u32) -> Result<Option<usize>, Problem> {
    match wanted {
        Some(n) if n == 0 || n > most => Err(Problem::bad_request(format!("limit must be 1 to {most}"))),
        other => Ok(other.map(|n| n as usize)),
    }
}

/// How many clients.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TopQuery {
    /// At most so many; without it, as many as the daemon keeps.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Busiest clients in the window, busiest first.
#[utoipa::path(get, path = "/api/v1/top", tag = "read", params(TopQuery),
    responses((status = 200, description = "Busiest clients in the window", body = Vec<TopRow>)))]
pub async fn top(State(app): State<App>, query: Result<Query<TopQuery>, QueryRejection>) -> Result<Response, Problem> {
    let limit = limit(query?.0.limit, 1000)?.unwrap_or(usize::MAX);
    let live = app.handle.live.borrow().clone();
    Ok(json(&live.top.iter().take(limit).collect::<Vec<_>>()))
}

/// The baseline in effect, and the 24 hour slots.
#[utoipa::path(get, path = "/api/v1/baseline", tag = "read",
    responses((status = 200, description = "The baseline in effect", body = BaselineRow)))]
pub async fn baseline(State(app): State<App>) -> Response {
    json(&app.handle.live.borrow().baseline)
}

/// Which span of the graph.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// `5m` by the second (default), `1h` by 5 seconds, `24h` by the minute.
    #[param(inline, example = "5m")]
    range: Option<Range>,
}

/// The graph over time, oldest first.
#[utoipa::path(get, path = "/api/v1/history", tag = "read", params(HistoryQuery),
    responses((status = 200, description = "Points, oldest first; seconds without the daemon are gaps", body = Vec<HistoryPoint>)))]
pub async fn history(
    State(app): State<App>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let range = query?.0.range.unwrap_or_default();
    let points = app.handle.history.lock().unwrap_or_else(PoisonError::into_inner).points(range);
    Ok(json(&points))
}

/// Follow what happens: `status` and `top` at once and every second, `decision` and `anomaly` as they happen.
///
/// `top` has the 20 busiest clients. The stream starts with `recent`, the newest decisions and anomalies; `lagged` says
/// that a slow reader missed some, and is followed by `recent` again.
#[utoipa::path(get, path = "/api/v1/events", tag = "read",
    responses((status = 200, description = "Server-sent events; data is JSON", body = String, content_type = "text/event-stream")))]
pub async fn events(State(app): State<App>) -> Response {
    app.hub.follow(&app.handle)
}

/// Why an address is banned, was banned, or is not.
#[utoipa::path(get, path = "/api/v1/bans/{ip}", tag = "read", params(super::address::IpParam),
    responses((status = 200, description = "Its bans with their evidence; empty lists where there are none", body = Explanation)))]
pub async fn explain(State(app): State<App>, ip: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let prefix = prefix(&ip?.0)?;
    let card = ask(&app, |reply| Ask::Explain { prefix, reply }).await?;
    Ok(json(&card))
}

/// What to ban, for how long, and why.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BanRequest {
    /// Address or prefix; exactly this is banned. Prefixes shorter than /16 (IPv6: /32) need `force`.
    #[schema(value_type = super::address::Address, example = "203.0.113.10")]
    ip: String,
    /// Seconds; without it (or null), the next step of the ladder for this prefix.
    #[schema(example = 3600, minimum = 1, maximum = 315_360_000)]
    duration_secs: Option<u64>,
    /// Until it is lifted; not together with `duration_secs`.
    #[serde(default)]
    permanent: bool,
    /// Your words, at most 500 characters; shown wherever the ban is.
    #[serde(default)]
    #[schema(max_length = 500)]
    reason: String,
    /// Ban a very wide prefix all the same.
    #[serde(default)]
    force: bool,
    /// End when this says, also where the ban in force of the same prefix lasts longer. Without it the longer one stays.
    #[serde(default)]
    replace: bool,
}

/// Ban an address or prefix by hand.
#[utoipa::path(post, path = "/api/v1/bans", tag = "write",
    request_body(content = BanRequest, content_type = "application/json"),
    responses((status = 201, description = "It is banned", body = BanAnswer,
            headers(("location" = String, description = "Where its why-card is"))),
        (status = 200, description = "It stays banned: the ban in force of exactly this prefix lasts at least as long (`kept` is true); \
            `replace` ends it when this says", body = BanAnswer)))]
pub async fn ban(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let wanted: BanRequest = read_json(&parts.headers, body).await?;
    let prefix = prefix(&wanted.ip)?;
    let length = match (wanted.duration_secs, wanted.permanent) {
        (Some(_), true) => return Err(Problem::bad_request("duration_secs and permanent exclude one another")),
        (Some(secs), false) if secs == 0 || secs > MAX_DURATION_SECS => {
            return Err(Problem::bad_request(format!("duration_secs must be 1 to {MAX_DURATION_SECS}")));
        }
        (Some(secs), false) => Some(BanLength::Timed(Duration::from_secs(secs))),
        (None, true) => Some(BanLength::Permanent),
        (None, false) => None,
    };
    if wanted.reason.chars().count() > MAX_REASON {
        return Err(Problem::bad_request(format!("reason is longer than {MAX_REASON} characters")));
    }
    let reason = inert(wanted.reason.trim().as_bytes());
    let BanRequest { force, replace, .. } = wanted;
    let answer = ask(&app, |reply| Ask::Ban { prefix, length, reason, force, replace, reply }).await?;
    if answer.kept {
        return Ok(json(&answer));
    }
    let location = format!("/api/v1/bans/{}", prefix.to_string().replace('/', "%2F"));
    let mut response = json_with(StatusCode::CREATED, &answer);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Lift every ban that covers an address or prefix.
#[utoipa::path(delete, path = "/api/v1/bans/{ip}", tag = "write", params(super::address::IpParam),
    responses((status = 200, description = "The bans that were lifted", body = Vec<DecisionRow>)))]
pub async fn unban(State(app): State<App>, ip: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let prefix = prefix(&ip?.0)?;
    let lifted = ask(&app, |reply| Ask::Unban { prefix, reply }).await?;
    Ok(json(&lifted))
}

fn prefix(text: &str) -> Result<IpNet, Problem> {
    // What was sent is not repeated: it may be anything, and the client knows it.
    parse_ip(text).ok_or_else(|| {
        Problem::bad_request(
            "not an address (203.0.113.10, 2001:db8::1) or prefix (203.0.113.0/24, in a path with %2F)",
        )
    })
}

/// Sends a request to the daemon's loop and waits for the answer.
async fn ask<T>(app: &App, make: impl FnOnce(oneshot::Sender<Result<T, RequestError>>) -> Ask) -> Result<T, Problem> {
    let (reply, answer) = oneshot::channel();
    app.handle.requests.try_send(make(reply)).map_err(|error| match error {
        std::sync::mpsc::TrySendError::Full(_) => Problem::busy("too many requests wait for the daemon; try again"),
        std::sync::mpsc::TrySendError::Disconnected(_) => RequestError::Stopping.into(),
    })?;
    match timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(result)) => result.map_err(Problem::from),
        Ok(Err(_)) => Err(RequestError::Stopping.into()),
        Err(_) => Err(Problem::busy("the daemon did not answer within 10 seconds; it may still do what was asked")),
    }
}

async fn read_json<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    if essence.as_deref() != Some("application/json") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send the body as Content-Type: application/json",
        ));
    }
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            format!("a body may have {MAX_BODY} bytes at most"),
        )
    };
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    let bytes = timeout(BODY_DEADLINE, to_bytes(body, MAX_BODY))
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not arrive within 10 seconds"))?
        .map_err(|_| too_large())?;
    // The error names keys as they were sent.
    let unreadable = |error: serde_json::Error| inert(error.to_string().as_bytes());
    serde_json::from_slice(&bytes)
        .map_err(|e| Problem::bad_request(format!("the body cannot be read: {}", unreadable(e))))
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(inert(rejection.body_text().as_bytes()))
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(inert(rejection.body_text().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Ban, Origin};
    use crate::time::Timestamp;

    fn bans(count: u32) -> Arc<Vec<BanRow>> {
        let row = |n: u32| {
            let ban = Ban {
                prefix: IpNet::from(std::net::IpAddr::from(n.to_be_bytes())),
                at: Timestamp::from_secs(1_777_280_000),
                until: None,
                offence: 1,
                origin: Origin::Operator,
                finding: None,
                note: String::new(),
                in_past: false,
            };
            BanRow::new(&ban, "dry-run", 0, 0)
        };
        Arc::new((0..count).map(row).collect())
    }

    fn rows(list: &Bytes) -> usize {
        serde_json::from_slice::<Vec<BanRow>>(list).expect("rows").len()
    }

    #[test]
    fn a_list_of_bans_is_made_once_for_all_who_ask() {
        let (cache, three) = (BansCache::default(), bans(3));
        assert_eq!(cache.made(&three, Some(2)), None);
        let two = cache.get(&three, Some(2)).expect("a list");
        assert_eq!(cache.made(&three, Some(2)), Some(Ok(two.clone())));
        assert_eq!(rows(&two), 2);
        assert_eq!(cache.get(&three, Some(2)).expect("a list").as_ptr(), two.as_ptr());
        let all = cache.get(&three, None).expect("a list");
        assert_eq!(rows(&all), 3);
        assert_eq!(cache.get(&three, Some(1_000_000)).expect("a list").as_ptr(), all.as_ptr());
        assert_eq!(rows(&cache.get(&bans(1), Some(2)).expect("a list")), 1, "another picture");
    }

    #[test]
    fn lists_that_nobody_asks_for_are_forgotten() {
        let (cache, three) = (BansCache::default(), bans(3));
        for limit in 1..3 {
            cache.get(&three, Some(limit)).expect("a list");
        }
        let kept = || cache.0.lock().expect("not poisoned").lists.len();
        cache.tick();
        assert_eq!(kept(), 2, "they were asked for in this second");
        cache.tick();
        assert_eq!(kept(), 0);
        let many = bans(100);
        for limit in 1..100 {
            cache.get(&many, Some(limit)).expect("a list");
        }
        assert_eq!(kept(), LISTS);
    }
}
