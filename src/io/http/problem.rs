//! What is wrong with a request, as a problem document (RFC 9457).
//!
//! Runs on: the I/O thread.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// A refusal, in the words of the user.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Names the kind of problem: `urn:pyspawner:problem:` and a word.
    #[serde(rename = "type")]
    kind: String,
    /// The kind in words, the same each time.
    title: &'static str,
    /// The response's status code.
    status: u16,
    /// What is wrong with this request.
    pub(super) detail: String,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl Problem {
    fn new(status: StatusCode, word: &str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:pyspawner:problem:{word}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// Whether the same request may be taken later.
    pub(super) fn is_for_now(&self) -> bool {
        self.retry_after.is_some()
    }

    /// The body, a header or a parameter is not as it should be.
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, "invalid-request", "The request is invalid", detail)
    }

    pub(super) fn unsupported_media_type(detail: impl Into<String>) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(
            status,
            "media-type",
            "The body's media type is not accepted",
            detail,
        )
    }

    pub(super) fn too_large(most: usize) -> Self {
        let detail = format!("a body may have {most} bytes");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self::new(status, "too-large", "The body is too large", detail)
    }

    /// The body did not come in time.
    pub(super) fn too_slow(limit: Duration) -> Self {
        let detail = format!("the body did not arrive within {limit:?}");
        let status = StatusCode::REQUEST_TIMEOUT;
        Self::new(status, "too-slow", "The body came too slowly", detail)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "A valid token is missing",
            "expected the header `Authorization: Bearer TOKEN` with a token of the service's token file",
        )
    }

    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        let status = StatusCode::FORBIDDEN;
        Self::new(status, "forbidden", "The request is not allowed", detail)
    }

    pub(super) fn no_such_job() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-job",
            "There is no such job",
            "the job never was, is another tenant's, or ended so long ago that its record is no longer kept (serve.result_ttl)",
        )
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-path",
            "There is nothing at this path",
            "/openapi.json describes what there is",
        )
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method",
            "The method is not allowed here",
            "/openapi.json describes what there is",
        )
    }

    /// The idempotency key belongs to another request.
    pub(super) fn key_reused() -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "key-reused",
            "The idempotency key is another job's",
            "a request with this Idempotency-Key came before, with another body",
        )
    }

    pub(super) fn queue_full(waiting: usize, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue-full",
                "The queue is full",
                format!("{waiting} jobs wait already (pool.queue, or the tenant's share)"),
            )
        }
    }

    /// The service cannot take it now.
    pub(super) fn unavailable(
        word: &str,
        detail: impl Into<String>,
        retry_after: Duration,
    ) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                word,
                "The service cannot take the request now",
                detail,
            )
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem is valid JSON");
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, after.as_secs().max(1).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"pyspawner\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
