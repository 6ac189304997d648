//! Posting a message to a URL: what Slack and the webhook share.

use std::time::Duration;

use reqwest::{StatusCode, header};

use super::batch::Batch;
use super::sink::{Outcome, Posting, Sink};
use super::{NotifyError, Reporter};
use crate::config::Secret;
use crate::report::inert;

/// How a sink writes the message of a batch.
pub(super) type Write = fn(&Batch, &Reporter, Option<&str>) -> String;

/// A sink that posts to a URL. The URL is a secret: no error has it.
pub(super) struct Endpoint {
    name: &'static str,
    shown: usize,
    write: Write,
    url: reqwest::Url,
    /// Made at the first post.
    client: Option<reqwest::Client>,
}

impl Endpoint {
    /// The sink `name`, whose messages name `shown` notices of a kind and are written by `write`.
    ///
    /// # Errors
    /// [`NotifyError::BadUrl`] where `url` is no http or https URL.
    pub(super) fn new(name: &'static str, url: &Secret, shown: usize, write: Write) -> Result<Self, NotifyError> {
        let url = reqwest::Url::parse(url.expose().trim()).map_err(|_| NotifyError::BadUrl(name))?;
        let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
        if is_http { Ok(Self { name, shown, write, url, client: None }) } else { Err(NotifyError::BadUrl(name)) }
    }

    /// Posts JSON, and says what became of it.
    async fn post_json(&mut self, body: String, timeout: Duration) -> Outcome {
        let Self { url, client, .. } = self;
        let url = &*url;
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
}

impl Sink for Endpoint {
    fn name(&self) -> &'static str {
        self.name
    }

    fn shown(&self) -> usize {
        self.shown
    }

    fn message(&self, batch: &Batch, reporter: &Reporter, dashboard: Option<&str>) -> String {
        (self.write)(batch, reporter, dashboard)
    }

    fn post(&mut self, message: String, timeout: Duration) -> Posting<'_> {
        Box::pin(self.post_json(message, timeout))
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
