//! One job as a request has it, and as the pool runs it.
//!
//! Runs on: the I/O thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::problem::Problem;
use crate::config::{Limits, Profile};
use crate::io::pool::files::{self, WantedFiles};
use crate::io::pool::overrides::Overrides;
use crate::io::pool::payload::{self, Id, Job, Stdin, Streams, Timeout};
use crate::wire::assignment::Assignment;

/// A job. An array is taken for its `args`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JobRequest {
    /// What the job calls itself in its record; by default a name that nobody can guess.
    #[schema(value_type = Option<String>)]
    id: Option<Id>,
    /// Arguments of `child_main`.
    #[schema(value_type = Vec<serde_json::Value>, required = false)]
    args: Option<Box<RawValue>>,
    /// Keyword arguments.
    #[schema(value_type = Object, required = false)]
    kwargs: Option<Box<RawValue>>,
    /// What the job reads as standard input.
    stdin: Option<String>,
    /// Seconds, or text such as `"30s"`; can only shorten the profile's limit.
    #[schema(value_type = Option<String>)]
    timeout: Option<Timeout>,
    /// The profile that the job is to have; that of the service.
    profile: Option<String>,
    /// Keys of `[profile.NAME.limits]`, none wider than the profile's.
    #[serde(default)]
    #[schema(value_type = Object, required = false)]
    limits: serde_json::Map<String, serde_json::Value>,
    /// Files that the job finds in its working folder: text, or `{"base64": …}`, by path.
    #[schema(value_type = Option<Object>)]
    files: Option<Box<RawValue>>,
    /// Files that come back with the record, by path or by pattern such as `"*.csv"`.
    #[serde(default)]
    #[schema(required = false)]
    collect: Vec<String>,
    /// Variables besides the configured environment.
    #[serde(default)]
    #[schema(required = false)]
    env: BTreeMap<String, String>,
}

/// A request's job, checked. The arguments stay text: the child alone decodes them.
pub(super) struct RequestedJob {
    pub id: Option<String>,
    args: String,
    kwargs: String,
    environment: Option<String>,
    files: Option<String>,
    collect: Option<Arc<WantedFiles>>,
    stdin: Option<String>,
    timeout: Option<Duration>,
    limits: Option<Limits>,
}

/// What the service's profile allows.
pub(super) struct Allowed<'a> {
    pub profile_name: &'a str,
    pub limits: &'a Limits,
    /// Whether jobs start in a folder of their own.
    pub has_folder: bool,
}

impl RequestedJob {
    /// Reads a body: an array of arguments, or an object.
    pub(super) fn parse(body: &[u8], allowed: &Allowed<'_>) -> Result<Self, Problem> {
        let first = body.trim_ascii_start().first();
        let request: JobRequest = match first {
            Some(b'[') => JobRequest {
                args: Some(from_json(body)?),
                ..JobRequest::default()
            },
            Some(b'{') => from_json(body)?,
            _ => {
                return Err(Problem::invalid(
                    "the body: expected a JSON array of arguments, or an object with any of id, args, kwargs, stdin, \
                     timeout, profile, limits, env, files, collect",
                ));
            }
        };
        request.check(allowed).map_err(Problem::invalid)
    }

    /// The job, whose time begins now.
    ///
    /// # Errors
    /// Of `memfd_create(2)` and `write(2)`.
    pub(super) fn into_job(self, id: &str, profile: &Profile) -> std::io::Result<Job> {
        let in_force = self.limits.as_ref().unwrap_or(&profile.limits);
        let timeout = self.timeout.into_iter().chain(in_force.wall).min();
        let arguments = payload::Arguments {
            args: &self.args,
            kwargs: &self.kwargs,
            environment: self.environment.as_deref(),
            files: self.files.as_deref(),
        };
        Ok(Job {
            id: id.to_owned(),
            assignment: Assignment {
                shows_folder: self.collect.is_some(),
                ..Assignment::default()
            },
            payload: payload::encode(id, timeout, &arguments)?,
            stdin: self
                .stdin
                .map_or_else(Stdin::null, |text| Stdin::text(&text))?,
            streams: Streams::Capture,
            wants_result: true,
            collect: self.collect,
            timeout,
            overrides: Overrides {
                limits: self.limits,
                ..Overrides::default()
            },
        })
    }
}

impl JobRequest {
    fn check(self, allowed: &Allowed<'_>) -> Result<RequestedJob, String> {
        if let Some(profile) = &self.profile
            && profile != allowed.profile_name
        {
            return Err(format!(
                "profile: this service runs jobs with the profile {:?}, not {profile:?}",
                allowed.profile_name
            ));
        }
        let args = text_of(self.args, "[]");
        let kwargs = text_of(self.kwargs, "{}");
        if !args.starts_with('[') {
            return Err("args: expected an array".to_owned());
        }
        if !kwargs.starts_with('{') {
            return Err("kwargs: expected an object".to_owned());
        }
        let limits = allowed.limits.overlaid(&self.limits)?;
        if let Some(name) = limits
            .as_ref()
            .and_then(|limits| limits.wider_than(allowed.limits))
        {
            return Err(format!(
                "limits.{name}: expected no more than the profile's own limit"
            ));
        }
        for (name, value) in &self.env {
            let is_name = !name.is_empty() && !name.contains(['=', '\0']);
            if !is_name || value.contains('\0') {
                return Err(format!(
                    "env: {name:?}: expected a name without \"=\", and text without null characters"
                ));
            }
        }
        if !allowed.has_folder && (self.files.is_some() || !self.collect.is_empty()) {
            return Err(
                "files, collect: the profile's jobs do not start in a folder of their own"
                    .to_owned(),
            );
        }
        if let Some(files) = &self.files {
            files::check_brought(files)?;
        }
        let collect = WantedFiles::if_any(&self.collect)?;
        let environment = (!self.env.is_empty())
            .then(|| serde_json::to_string(&self.env).expect("text by text is JSON"));
        Ok(RequestedJob {
            id: self.id.map(|id| id.0),
            args,
            kwargs,
            environment,
            files: self.files.map(|files| files.get().to_owned()),
            collect,
            stdin: self.stdin,
            timeout: self.timeout.map(|timeout| timeout.0),
            limits,
        })
    }
}

fn text_of(value: Option<Box<RawValue>>, otherwise: &str) -> String {
    value.map_or_else(|| otherwise.to_owned(), |value| value.get().to_owned())
}

fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        // It may repeat what is wrong, such as a field's name.
        const LONGEST: usize = 500;
        let mut text = format!("the body: {error}");
        text.truncate(text.floor_char_boundary(LONGEST));
        Problem::invalid(text)
    })
}
