//! Server-sent events: every frame is made once and shared by all followers.
//!
//! A `status` and a `top` frame come at once and then every second, `decision` and `anomaly` as they happen. A
//! follower that is too slow misses status frames silently (the next one has everything). For decisions it receives the number that it
//! missed (`lagged`) and the newest ones (`recent`), as at its start.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{broadcast, watch};

use super::Handle;
use super::connection::closed;
use crate::metrics::Metrics;
use crate::report::DecisionRow;
use crate::view::control::Event;
use crate::view::live::Live;

/// Decisions that a slow follower may be behind.
const BEHIND: usize = 1024;
/// Decisions that a new follower receives at once.
const RECENT: usize = 50;
/// The busiest clients that a `top` frame names: more than a page shows, every second.
const TOP: usize = 20;
/// A comment is sent after this long without anything else, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What happened, with its reason: the data of `decision` events (bans and unbans) and of `anomaly` events (global
/// anomalies, bans that the brake held back, new levels that were accepted).
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct EventRow {
    /// What was decided.
    #[serde(flatten)]
    pub row: DecisionRow,
    /// Why, in words; of an unban how the ban ended: `expired` or `lifted`.
    pub reason: String,
}

/// Makes the frames and hands them out.
#[derive(Debug)]
pub struct Hub {
    newest: watch::Sender<Bytes>,
    decisions: broadcast::Sender<Bytes>,
    recent: Mutex<VecDeque<EventRow>>,
    closing: watch::Sender<bool>,
}

fn frame(event: &str, data: &impl Serialize, into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(format!("event: {event}\ndata: ").as_bytes());
    // JSON has no raw line breaks, so one data line is enough. Rows of strings and numbers cannot fail; should
    // they, the event is left out whole.
    match serde_json::to_writer(&mut *into, data) {
        Ok(()) => into.extend_from_slice(b"\n\n"),
        Err(_) => into.truncate(start),
    }
}

/// The row of an event, and its frame.
fn framed(event: Event) -> (EventRow, Vec<u8>) {
    let name = if matches!(&*event.row.action, "ban" | "unban") { "decision" } else { "anomaly" };
    let row = EventRow { row: event.row, reason: event.reason };
    let mut text = Vec::with_capacity(512);
    frame(name, &row, &mut text);
    (row, text)
}

/// The frame of an event, for golden files.
#[cfg(test)]
pub(crate) fn frame_of(event: Event) -> String {
    String::from_utf8(framed(event).1).expect("JSON is UTF-8")
}

fn live_frames(live: &Live) -> Bytes {
    let mut text = Vec::with_capacity(4096);
    frame("status", &live.status, &mut text);
    frame("top", &live.top.iter().take(TOP).collect::<Vec<_>>(), &mut text);
    text.into()
}

impl Hub {
    /// A hub that nobody feeds yet.
    pub fn new() -> Self {
        Self {
            newest: watch::Sender::new(Bytes::new()),
            decisions: broadcast::Sender::new(BEHIND),
            recent: Mutex::default(),
            closing: watch::Sender::new(false),
        }
    }

    /// Feeds the hub until the daemon is gone or [`Hub::close`] is called.
    pub async fn run(&self, mut live: watch::Receiver<Arc<Live>>, mut events: broadcast::Receiver<Event>) {
        let mut closing = self.closing.subscribe();
        loop {
            tokio::select! {
                changed = live.changed() => {
                    if changed.is_err() { break }
                    // Nobody listens: nothing is made.
                    if self.newest.receiver_count() > 0 {
                        let now = live.borrow_and_update().clone();
                        self.newest.send_replace(live_frames(&now));
                    }
                }
                event = events.recv() => match event {
                    Ok(event) => self.publish(event),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        let mut text = Vec::new();
                        frame("lagged", &Lagged { missed }, &mut text);
                        let _ = self.decisions.send(text.into());
                    }
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                () = closed(&mut closing) => break,
            }
        }
        self.close();
    }

    fn publish(&self, event: Event) {
        let (row, text) = framed(event);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(row);
        // Under the lock, as in `decisions`. An error only says that nobody listens.
        let _ = self.decisions.send(text.into());
    }

    /// The newest decisions as a `recent` frame, and those that come after them: none is in both, none in neither.
    fn decisions(&self, into: &mut Vec<u8>) -> broadcast::Receiver<Bytes> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        frame("recent", &*recent, into);
        self.decisions.subscribe()
    }

    /// Ends every stream.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// A new follower's stream.
    pub fn follow(self: &Arc<Self>, handle: &Handle) -> Response {
        let mut first = b"retry: 1000\n\n".to_vec();
        let mut follower = Follower {
            newest: self.newest.subscribe(),
            decisions: self.decisions(&mut first),
            closing: self.closing.subscribe(),
            hub: self.clone(),
            _counted: Counted::new(handle.metrics.clone()),
        };
        follower.newest.mark_unchanged();
        first.extend_from_slice(&live_frames(&handle.live.borrow()));
        let stream =
            futures_util::stream::unfold((Some(Bytes::from(first)), follower), |(first, mut follower)| async {
                let next = match first {
                    Some(first) => first,
                    None => follower.next().await?,
                };
                Some((Ok::<_, std::convert::Infallible>(next), (None, follower)))
            });
        let mut response = Body::from_stream(stream).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        // Nginx in front must not hold frames back.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

#[derive(Serialize)]
struct Lagged {
    missed: u64,
}

struct Follower {
    newest: watch::Receiver<Bytes>,
    decisions: broadcast::Receiver<Bytes>,
    closing: watch::Receiver<bool>,
    hub: Arc<Hub>,
    _counted: Counted,
}

impl Follower {
    /// The next frames; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            biased;
            () = closed(&mut self.closing) => None,
            decision = self.decisions.recv() => match decision {
                Ok(bytes) => Some(bytes),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let mut text = Vec::new();
                    frame("lagged", &Lagged { missed }, &mut text);
                    self.decisions = self.hub.decisions(&mut text);
                    Some(text.into())
                }
                Err(broadcast::error::RecvError::Closed) => None,
            },
            changed = self.newest.changed() => {
                changed.ok()?;
                Some(self.newest.borrow_and_update().clone())
            }
            () = tokio::time::sleep(KEEP_ALIVE) => Some(Bytes::from_static(b": still here\n\n")),
        }
    }
}

/// Counts a stream for as long as it lives.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.http_streams.inc();
        Self(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.http_streams.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_frame_of_what_was_missed() {
        let mut text = Vec::new();
        frame("lagged", &Lagged { missed: 12 }, &mut text);
        crate::golden::same("lagged.txt", &String::from_utf8(text).expect("JSON is UTF-8"));
    }
}
