//! What can be asked for, by path and method.
//!
//! Runs on: the I/O thread.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, Request, State as From};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Address;
use super::events::{self, Place};
use super::job::JobRequest;
use super::jobs::{Entry, Phase};
use super::map;
use super::metrics::Refused;
use super::problem::Problem;
use super::room::{NoRoom, Taken};
use super::schema::Record;
use super::service::{Asking, EndedWithReader, Service, State};
use crate::io::pool::live_output::Progress;

/// The service's paths, and their description.
#[derive(OpenApi)]
#[openapi(
    info(title = "pyspawner", description = "Runs Python jobs, each in a sandbox of its own, from a warm interpreter."),
    components(schemas(JobState, Problem, Record)),
    modifiers(&Token)
)]
struct Description;

/// Tokens, for generators of clients.
struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// All routes of a service that is reached at `address`.
pub(super) fn router(service: Arc<Service>, address: &Address) -> Router {
    let (router, api) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(post_job))
        .routes(routes!(get_job, delete_job))
        .routes(routes!(get_events))
        .routes(routes!(post_map))
        .routes(routes!(get_health))
        .routes(routes!(get_readiness))
        .routes(routes!(get_metrics))
        .split_for_parts();
    let description = Bytes::from(api.to_json().expect("a description is valid JSON"));
    let described = async move || {
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], description)
    };
    let router = router
        .route("/openapi.json", axum::routing::get(described))
        .fallback(async || Problem::no_such_path())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(service.clone());
    // Without tokens a web page that a user of this machine visits must not ask in that user's name, by a name that it
    // has lead to this machine ("DNS rebinding").
    match (service.tenants.have_tokens(), address) {
        (false, Address::Tcp(_)) => router.layer(axum::middleware::from_fn(check_host)),
        _ => router,
    }
}

async fn check_host(
    headers: HeaderMap,
    request: Request,
    next: axum::middleware::Next,
) -> Result<Response, Problem> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let name = host.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    });
    match name {
        Some("localhost" | "127.0.0.1" | "[::1]") => Ok(next.run(request).await),
        _ => Err(Problem::forbidden(
            "Host: expected localhost, 127.0.0.1 or [::1], since the service has no tokens (--tokens)",
        )),
    }
}

/// Who asks.
struct Caller {
    tenant: usize,
}

impl FromRequestParts<Arc<Service>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<Service>,
    ) -> Result<Self, Problem> {
        if !service.tenants.have_tokens() {
            return Ok(Self { tenant: 0 });
        }
        bearer(&parts.headers)
            .and_then(|token| service.tenants.of_token(token))
            .map(|tenant| Self { tenant })
            .ok_or_else(|| {
                service.metrics.count_refusal(Refused::Unauthorized);
                Problem::unauthorized()
            })
    }
}

/// Whoever may see what concerns all tenants.
struct Operator;

impl FromRequestParts<Arc<Service>> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<Service>,
    ) -> Result<Self, Problem> {
        let token = bearer(&parts.headers);
        let is_operator = token.is_some_and(|token| service.tenants.is_operators(token));
        if is_operator || !service.tenants.have_tokens() {
            return Ok(Self);
        }
        Err(match token {
            None => Problem::unauthorized(),
            Some(_) => Problem::forbidden(
                "this is the operator's: expected a token of the table [operator] of the token file",
            ),
        })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

// ---- jobs ------------------------------------------------------------------------------------

/// Where a job is on its way.
#[derive(Serialize, ToSchema)]
struct JobState {
    /// The job's name in URLs.
    job: String,
    /// What it calls itself: the request's `id`, or its name.
    id: String,
    /// `queued`, `running` or `ended`.
    state: &'static str,
    /// What it last said of its progress, if it said something.
    #[schema(value_type = Option<Object>)]
    progress: Option<Progress>,
    /// Once it has ended.
    #[schema(value_type = Option<Record>)]
    record: Option<Box<serde_json::value::RawValue>>,
}

impl JobState {
    fn of(entry: &Entry) -> Self {
        let live = entry.live();
        let record = live.record.as_deref().and_then(|record| {
            let text = String::from_utf8_lossy(record).trim_end().to_owned();
            serde_json::value::RawValue::from_string(text).ok()
        });
        Self {
            job: entry.name.clone(),
            id: entry.id.clone(),
            state: match live.phase {
                Phase::Queued => "queued",
                Phase::Running => "running",
                Phase::Ended => "ended",
            },
            progress: live.progress.as_ref().map(|(_, said)| said.clone()),
            record,
        }
    }
}

/// Run a job.
///
/// Answers with the job's record once it has ended. `Prefer: respond-async` answers at once with 202 and the job's
/// `Location`; `Accept: text/event-stream` with the events `queued`, `started`, `stdout`, `stderr`, `progress` and
/// `result` as they happen. A client that goes away ends its job, unless the answer was 202 or the request has an
/// `Idempotency-Key`.
#[utoipa::path(
    post, path = "/v1/jobs", operation_id = "run_job", tag = "jobs",
    params(
        ("Prefer" = Option<String>, Header, description = "`respond-async`: answer with 202 at once"),
        ("Idempotency-Key" = Option<String>, Header, description = "the same key is the same job, of a tenant and while its record is kept"),
    ),
    request_body = JobRequest,
    responses(
        (status = 200, description = "how the job ended", body = Record),
        (status = 202, description = "the job was taken", body = JobState, headers(("Location" = String))),
        (status = 401, description = "no valid token", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "the body came too slowly", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "the body is too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "the body is not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "the request is invalid", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "the queue is full: come back after `Retry-After`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "not ready, draining, or the job's turn did not come in time", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = []))
)]
async fn post_job(
    From(service): From<Arc<Service>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    service.check_state()?;
    let (head, body) = request.into_parts();
    check_media_type(&head.headers, "application/json")?;
    let key = idempotency_key(&head.headers)?;
    let is_async = prefers_async(&head.headers);
    let wants_events = accepts_events(&head.headers);
    let (body, _room) = read_body(&service, body).await?;
    let asking = Asking {
        digest: Sha256::digest(&body).into(),
        // The reader of events may come back for the rest.
        is_kept: is_async || wants_events,
        key,
        ..Asking::of(caller.tenant)
    };
    let has_key = asking.key.is_some();
    let (entry, is_new) = service.take(asking, &body)?;
    drop(body);
    if is_async {
        return Ok(accepted(&entry));
    }
    let guard = (is_new && !has_key).then(|| EndedWithReader::new(entry.clone()));
    if wants_events {
        return stream_events(&service, entry, Place::default(), guard);
    }
    let response = ended(&entry).await;
    drop(guard);
    response
}

/// Where a job is on its way, and its record once it has ended.
#[utoipa::path(
    get, path = "/v1/jobs/{job}", operation_id = "get_job", tag = "jobs",
    params(("job" = String, Path, description = "the job's name")),
    responses(
        (status = 200, description = "the job", body = JobState),
        (status = 404, description = "there is no such job", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = []))
)]
async fn get_job(
    From(service): From<Arc<Service>>,
    caller: Caller,
    JobName(name): JobName,
) -> Result<Json<JobState>, Problem> {
    let entry = find(&service, &caller, &name)?;
    Ok(Json(JobState::of(&entry)))
}

/// Cancel a job. One that has ended stays as it is.
#[utoipa::path(
    delete, path = "/v1/jobs/{job}", operation_id = "cancel_job", tag = "jobs",
    params(("job" = String, Path, description = "the job's name")),
    responses(
        (status = 204, description = "the job has ended, or will at once"),
        (status = 404, description = "there is no such job", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = []))
)]
async fn delete_job(
    From(service): From<Arc<Service>>,
    caller: Caller,
    JobName(name): JobName,
) -> Result<StatusCode, Problem> {
    find(&service, &caller, &name)?.cancel.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// What happens to a job, as server-sent events. `Last-Event-ID` goes on after that event.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/events", operation_id = "follow_job", tag = "jobs",
    params(
        ("job" = String, Path, description = "the job's name"),
        ("Last-Event-ID" = Option<String>, Header, description = "the id of the last event that was read"),
    ),
    responses(
        (status = 200, description = "the events", content_type = "text/event-stream", body = String),
        (status = 404, description = "there is no such job", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = []))
)]
async fn get_events(
    From(service): From<Arc<Service>>,
    caller: Caller,
    JobName(name): JobName,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let entry = find(&service, &caller, &name)?;
    let from = match headers.get("last-event-id") {
        None => Place::default(),
        Some(id) => {
            let place = id.to_str().ok().and_then(|id| id.parse().ok());
            place.ok_or_else(|| Problem::invalid("Last-Event-ID: expected the id of an event"))?
        }
    };
    stream_events(&service, entry, from, ())
}

/// The name of a job in a path.
struct JobName(String);

impl<S: Send + Sync> FromRequestParts<S> for JobName {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = Path::from_request_parts(parts, state).await;
        // No job has a name that is no text.
        name.map(|Path(name)| Self(name))
            .map_err(|_| Problem::no_such_job())
    }
}

fn find(service: &Service, caller: &Caller, name: &str) -> Result<Arc<Entry>, Problem> {
    let found = service.jobs.find(caller.tenant, name);
    found.ok_or_else(Problem::no_such_job)
}

fn accepted(entry: &Entry) -> Response {
    let location = format!("/v1/jobs/{}", entry.name);
    let headers = [
        (header::LOCATION, location),
        (
            header::HeaderName::from_static("preference-applied"),
            "respond-async".to_owned(),
        ),
    ];
    (StatusCode::ACCEPTED, headers, Json(JobState::of(entry))).into_response()
}

/// Waits for the job's end, and answers with its record.
async fn ended(entry: &Arc<Entry>) -> Result<Response, Problem> {
    let record = entry.ended().await;
    if entry.live().is_overdue_in_queue {
        let detail = "the job's turn did not come in time (pool.queue_timeout)";
        let after = Duration::from_secs(1);
        return Err(Problem::unavailable("queue-timeout", detail, after));
    }
    let json = HeaderValue::from_static("application/json");
    let location = HeaderValue::from_str(&format!("/v1/jobs/{}", entry.name));
    let mut response = Body::from(record).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    if let Ok(location) = location {
        response
            .headers_mut()
            .insert(header::CONTENT_LOCATION, location);
    }
    Ok(response)
}

fn stream_events<G: Send + 'static>(
    service: &Service,
    entry: Arc<Entry>,
    from: Place,
    guard: G,
) -> Result<Response, Problem> {
    let place = place_for_stream(service)?;
    let mut response = events::stream(entry, from, (guard, place)).into_response();
    // Proxies that buffer would hold live output back.
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn place_for_stream(service: &Service) -> Result<OwnedSemaphorePermit, Problem> {
    let place = service.streams.clone().try_acquire_owned();
    place.map_err(|_| {
        let detail = "too many streams are open (serve.connections)";
        Problem::unavailable("streams", detail, Duration::from_secs(1))
    })
}

/// How the records of a stream of jobs are ordered.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct MapOptions {
    /// Whether records come in their lines' order, instead of as the jobs end.
    #[serde(default)]
    ordered: bool,
}

/// Run a job for each line, and answer with a record for each, as they end.
///
/// Lines are as `pyspawner map` reads them, and may have what the body of `/v1/jobs` may have. Both directions are streamed: a
/// reader that waits has the jobs wait. Every line that is not empty has exactly one record. If the connection ends, so do the
/// jobs that run.
#[utoipa::path(
    post, path = "/v1/map", operation_id = "map_jobs", tag = "jobs",
    params(MapOptions),
    request_body(content = String, content_type = "application/x-ndjson", description = "a job a line"),
    responses(
        (status = 200, description = "a record a line", body = String, content_type = "application/x-ndjson"),
        (status = 401, description = "no valid token", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "the body is no NDJSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "the request is invalid", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "not ready, or too many streams are open", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = []))
)]
async fn post_map(
    From(service): From<Arc<Service>>,
    caller: Caller,
    options: Result<Query<MapOptions>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    service.check_state()?;
    let Query(options) = options.map_err(|error| Problem::invalid(error.body_text()))?;
    let (head, body) = request.into_parts();
    check_media_type(&head.headers, NDJSON)?;
    let place = place_for_stream(&service)?;
    let records = map::records(service, caller.tenant, body, options.ordered, place);
    let mut response = Body::from_stream(records).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

const NDJSON: &str = "application/x-ndjson";

// ---- the service ------------------------------------------------------------------------------

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", operation_id = "health", tag = "service",
    responses((status = 200, description = "it is", body = String, content_type = "text/plain")))]
async fn get_health() -> &'static str {
    "ok\n"
}

/// Whether jobs are taken.
#[utoipa::path(get, path = "/readyz", operation_id = "readiness", tag = "service",
    responses(
        (status = 200, description = "they are", body = String, content_type = "text/plain"),
        (status = 503, description = "modules are being imported, or the service is about to end", body = String, content_type = "text/plain"),
    ))]
async fn get_readiness(From(service): From<Arc<Service>>) -> (StatusCode, &'static str) {
    match service.state() {
        State::Ready => (StatusCode::OK, "ready\n"),
        State::Warming => (StatusCode::SERVICE_UNAVAILABLE, "warming\n"),
        State::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

/// What the service has done, for Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "service",
    responses((status = 200, description = "the metrics", body = String, content_type = "text/plain")),
    security(("token" = [])))]
async fn get_metrics(
    From(service): From<Arc<Service>>,
    _: Operator,
) -> Result<Response, (StatusCode, String)> {
    let encoded = service
        .metrics
        .encode(service.counts(), service.resident_memory());
    let (text, media_type) =
        encoded.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}

// ---- requests ---------------------------------------------------------------------------------

/// A web page of elsewhere can send other types without asking, and has to ask for this one.
fn check_media_type(headers: &HeaderMap, expected: &str) -> Result<(), Problem> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = given.map(|given| given.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case(expected) => Ok(()),
        _ => {
            let detail = format!("Content-Type: expected {expected}");
            Err(Problem::unsupported_media_type(detail))
        }
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    const LONGEST: usize = 255;
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if (1..=LONGEST).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid(format!(
            "Idempotency-Key: expected 1 to {LONGEST} visible ASCII characters"
        ))),
    }
}

/// RFC 7240.
fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .any(|preference| preference.trim().eq_ignore_ascii_case("respond-async"))
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let essence = range.split(';').next().unwrap_or_default();
            essence.trim().eq_ignore_ascii_case("text/event-stream")
        })
}

/// The whole body, within its bounds, with the room that it takes among all bodies.
async fn read_body(service: &Service, body: Body) -> Result<(Bytes, Taken), Problem> {
    let bounds = service.bounds;
    // What is announced need not be waited for.
    if body.size_hint().lower() > bounds.body as u64 {
        return Err(Problem::too_large(bounds.body));
    }
    let mut body = Limited::new(body, bounds.body);
    let mut bytes = Vec::new();
    let mut room = Taken::default();
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => Problem::too_large(bounds.body),
                false => Problem::invalid(format!("the body: {error}")),
            })?;
            let Ok(data) = frame.into_data() else {
                continue; // trailers
            };
            bytes.extend_from_slice(&data);
            let extended = service.room.extend(&mut room, bytes.len());
            extended.map_err(|NoRoom| no_room(service))?;
        }
        Ok(())
    };
    match tokio::time::timeout(bounds.body_time, read).await {
        Ok(Ok(())) => Ok((bytes.into(), room)),
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err(Problem::too_slow(bounds.body_time)),
    }
}

fn no_room(service: &Service) -> Problem {
    service.metrics.count_refusal(Refused::NoRoom);
    let detail = "too many bodies are being sent at once";
    Problem::unavailable("bodies", detail, Duration::from_secs(1))
}
