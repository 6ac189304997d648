//! One sink's task: collect, post, wait, try again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::{StatusCode, header};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Form, Inbox, Pace, Reporter, Score};
use crate::report::inert;

/// Attempts that are left once nobody holds the notifier any more.
const LAST_ATTEMPTS: u32 = 5;

/// Everything the task of a sink needs.
pub(super) struct Task {
    pub(super) form: Form,
    pub(super) url: reqwest::Url,
    pub(super) reporter: Reporter,
    pub(super) dashboard: Option<String>,
    pub(super) pace: Pace,
    pub(super) score: Arc<Score>,
    pub(super) inbox: Arc<Inbox>,
    /// True when the daemon ends; closed when the notifier was dropped.
    pub(super) closing: watch::Receiver<bool>,
}

/// What became of a post.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Accepted,
    /// Try again, not before this wait where the sink said so.
    Later(String, Option<Duration>),
    /// It will never be accepted.
    Refused(String),
}

impl Task {
    /// Ends when the notifier is gone or was told to end, and what waited has been posted.
    pub(super) async fn run(mut self) {
        let mut client = None;
        let mut window = self.pace.collect;
        let mut last_sent: Option<Instant> = None;
        loop {
            while self.inbox.lock().is_empty() {
                if self.is_closing() {
                    return;
                }
                let inbox = Arc::clone(&self.inbox);
                tokio::select! {
                    () = inbox.bell.notified() => {}
                    () = self.closed() => {}
                }
            }
            window = match last_sent {
                Some(at) if at.elapsed() < window.saturating_mul(2) => {
                    window.saturating_mul(2).min(self.pace.collect_max)
                }
                _ => self.pace.collect,
            };
            self.pause(window).await;
            self.deliver(&mut client).await;
            last_sent = Some(Instant::now());
        }
    }

    fn is_closing(&self) -> bool {
        *self.closing.borrow() || self.closing.has_changed().is_err()
    }

    /// Returns when the daemon ends or nobody holds the notifier any more.
    async fn closed(&mut self) {
        // Both answers mean the same here.
        let _ = self.closing.wait_for(|closing| *closing).await;
    }

    /// Waits, so that more can come together; not when the daemon ends.
    async fn pause(&mut self, wait: Duration) {
        tokio::select! {
            () = self.closed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Posts what waits until it is accepted or refused, with what came meanwhile.
    async fn deliver(&mut self, client: &mut Option<reqwest::Client>) {
        let mut wait = self.pace.retry;
        let mut last_attempts = LAST_ATTEMPTS;
        loop {
            let batch = self.inbox.take();
            let body = self.form.message(&batch, &self.reporter, self.dashboard.as_deref());
            let notices = batch.count();
            match post(client, &self.url, body, self.pace.timeout).await {
                Outcome::Accepted => {
                    self.score.sent.fetch_add(1, Ordering::Relaxed);
                    self.score.delivered.fetch_add(notices, Ordering::Relaxed);
                    self.score.set_well();
                    return;
                }
                Outcome::Refused(error) => {
                    self.score.lose(notices, &format!("they were refused ({error})"));
                    self.score.set_failing(error);
                    return;
                }
                Outcome::Later(error, asked) => {
                    tracing::debug!(sink = self.score.name, notices, %error, "post failed, trying again");
                    self.score.retried.fetch_add(1, Ordering::Relaxed);
                    self.score.set_failing(error);
                    let folded = self.inbox.put_back(batch);
                    self.score.folded.fetch_add(folded, Ordering::Relaxed);
                    let pause = asked.map_or(wait, |asked| asked.clamp(self.pace.retry, self.pace.asked_max));
                    wait = wait.saturating_mul(2).min(self.pace.retry_max);
                    if self.is_closing() {
                        // Whoever waits for us does not wait long, and ends us; nobody may wait at all.
                        last_attempts -= 1;
                        if last_attempts == 0 {
                            self.score.lose_at_the_end(self.inbox.take().count());
                            return;
                        }
                        tokio::time::sleep(self.pace.retry).await;
                    } else {
                        self.pause(pause).await;
                    }
                }
            }
        }
    }
}

async fn post(client: &mut Option<reqwest::Client>, url: &reqwest::Url, body: String, timeout: Duration) -> Outcome {
    let made = match client.take() {
        Some(made) => made,
        None => match make_client(url, timeout) {
            Ok(made) => made,
            Err(error) => return Outcome::Later(describe(error, url), None),
        },
    };
    let request = client
        .insert(made)
        .post(url.clone())
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .body(body);
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Outcome::Later(describe(error, url), None),
    };
    let status = response.status();
    if status.is_success() {
        return Outcome::Accepted;
    }
    let error = format!("HTTP {status}");
    let retry_after = retry_after(response.headers());
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
            Outcome::Later(error, retry_after)
        }
        status if status.is_server_error() => Outcome::Later(error, retry_after),
        _ => match said(response, url).await {
            Some(word) => Outcome::Refused(format!("{error} ({word})")),
            None => Outcome::Refused(error),
        },
    }
}

/// TLS is set up when it is first needed: it reads the host's certificates, which takes time and memory.
fn make_client(url: &reqwest::Url, timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    // Fails if one is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(30))
        .user_agent(concat!("anomaly/", env!("CARGO_PKG_VERSION")));
    if url.scheme() == "https" {
        client.build()
    } else {
        // A host without certificates can still post to a plain URL.
        let roots = rustls::RootCertStore::empty();
        client
            .tls_backend_preconfigured(
                rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth(),
            )
            .build()
    }
}

/// An error with all its causes, and without the URL: that is a secret.
fn describe(error: reqwest::Error, url: &reqwest::Url) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    let mut text = inert(text.as_bytes());
    // Nothing below should say them, but nobody promises that it does not.
    let secrets = [Some(url.as_str()), Some(url.path()), url.query(), url.password(), Some(url.username())];
    for secret in secrets.into_iter().flatten().filter(|s| s.len() > 1) {
        text = text.replace(secret, "…");
    }
    text
}

/// The word that Slack answers with (`no_service`, `invalid_payload`): anything longer or other, or
/// something out of the URL, is not repeated.
async fn said(mut response: reqwest::Response, url: &reqwest::Url) -> Option<String> {
    let chunk = response.chunk().await.ok().flatten()?;
    let word = std::str::from_utf8(&chunk).ok()?.trim();
    let plain = !word.is_empty() && word.len() <= 40 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    (plain && !url.as_str().contains(word)).then(|| word.to_owned())
}

/// Seconds, or a date against the answer's own `Date`: the host's clock may be wrong.
fn retry_after(headers: &header::HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse::<u64>() {
        return Some(Duration::from_secs(secs));
    }
    let date = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|date| date.timestamp());
    let wait = date(text)?.duration_since(date(headers.get(header::DATE)?.to_str().ok()?)?);
    Duration::try_from(wait).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> header::HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), header::HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let secs = |h: &[_]| retry_after(&headers(h)).map(|d| d.as_secs());
        assert_eq!(secs(&[(header::RETRY_AFTER, "30")]), Some(30));
        assert_eq!(secs(&[(header::RETRY_AFTER, "soon")]), None);
        assert_eq!(secs(&[]), None);
        let date = (header::DATE, "Mon, 27 Apr 2026 09:25:51 GMT");
        assert_eq!(secs(&[(header::RETRY_AFTER, "Mon, 27 Apr 2026 09:26:21 GMT"), date.clone()]), Some(30));
        assert_eq!(secs(&[(header::RETRY_AFTER, "Mon, 27 Apr 2026 09:25:01 GMT"), date]), None);
        assert_eq!(secs(&[(header::RETRY_AFTER, "Mon, 27 Apr 2026 09:26:21 GMT")]), None);
    }
}
