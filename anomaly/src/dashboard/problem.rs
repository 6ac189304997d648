//! What went wrong with a request, as `application/problem+json` (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::Refusal;
use crate::view::control::RequestError;

/// The body of every answer of 400 and above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// A stable word for scripts: `bad_request`, `unauthorized`, `not_banned`, ...
    #[serde(rename = "type")]
    #[schema(example = "urn:anomaly:not_banned")]
    pub kind: String,
    /// The HTTP status in words.
    #[schema(example = "Not Found")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404, minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong with this very request, and what to do about it.
    #[schema(example = "no ban covers 203.0.113.10")]
    pub detail: String,
}

impl Problem {
    /// A problem; `word` is the end of its type.
    pub fn new(status: StatusCode, word: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:anomaly:{word}"),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: detail.into(),
        }
    }

    /// 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    /// 503: the daemon's loop does not answer.
    pub fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let (status, word) = match &error {
            RequestError::Refused(Refusal::NotBanned { .. }, _) => (StatusCode::NOT_FOUND, "not_banned"),
            RequestError::Refused(Refusal::AllowListed { .. }, _) => (StatusCode::CONFLICT, "allow_listed"),
            RequestError::Refused(Refusal::NeverBan { .. }, _) => (StatusCode::CONFLICT, "never_ban"),
            RequestError::Refused(Refusal::TooWide { .. }, _) => (StatusCode::CONFLICT, "too_wide"),
            RequestError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            RequestError::NotEnforced(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_enforced"),
            RequestError::StillDropped { .. } => (StatusCode::SERVICE_UNAVAILABLE, "still_dropped"),
            RequestError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store"),
        };
        Self::new(status, word, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Four strings and a number cannot fail to serialise.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"anomaly\""));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
