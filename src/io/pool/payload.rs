//! A job as the host holds it: its arguments stay text, and are decoded in the child alone.
//!
//! Runs on: the I/O thread.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::overrides::Overrides;
use crate::sys::files::sealed_memfd;
use crate::wire::assignment::Assignment;
use crate::wire::payload::Payload;

/// A job, ready to run.
pub(crate) struct Job {
    pub id: String,
    pub assignment: Assignment,
    pub payload: Payload,
    pub stdin: Stdin,
    pub streams: Streams,
    /// Whether what `child_main` returns is for the report.
    pub wants_result: bool,
    pub timeout: Option<Duration>,
    pub overrides: Overrides,
}

/// What the child reads as standard input.
pub(crate) enum Stdin {
    /// The host's own.
    Inherit,
    /// Of this job alone: flags and locks belong to the open file, and would pass from job
    /// to job with it.
    Private(OwnedFd),
}

impl Stdin {
    /// Nothing to read.
    pub(crate) fn null() -> std::io::Result<Self> {
        Ok(Self::Private(std::fs::File::open("/dev/null")?.into()))
    }

    /// This text, in a sealed memory file.
    pub(crate) fn text(text: &str) -> std::io::Result<Self> {
        sealed_memfd("pyspawner-stdin", &[text.as_bytes()]).map(Self::Private)
    }
}

/// Where the child's output goes.
pub(crate) enum Streams {
    /// To the host's own standard output and error.
    Inherit,
    /// Into the report.
    Capture,
    /// To these.
    Given { stdout: OwnedFd, stderr: OwnedFd },
}

/// The arguments of a call, as JSON text.
pub(crate) struct Arguments<'a> {
    pub args: &'a str,
    pub kwargs: &'a str,
}

/// A job's arguments with what `pyspawner_host` tells about the job.
pub(crate) fn encode(
    id: &str,
    timeout: Option<Duration>,
    arguments: &Arguments<'_>,
) -> std::io::Result<Payload> {
    let deadline = timeout
        .and_then(|timeout| SystemTime::now().checked_add(timeout))
        .and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map(|end| end.as_secs_f64());
    let head = serde_json::json!({ "id": id, "deadline": deadline }).to_string();
    let head = head.strip_suffix('}').expect("an object ends so");
    let parts: [&[u8]; 6] = [
        head.as_bytes(),
        b",\"args\":",
        arguments.args.as_bytes(),
        b",\"kwargs\":",
        arguments.kwargs.as_bytes(),
        b"}",
    ];
    Payload::new(&parts)
}

/// One line of `pyspawner map`'s input that is a job.
#[derive(Debug)]
pub(crate) struct JobLine<'a> {
    pub id: Option<String>,
    pub args: &'a str,
    pub kwargs: &'a str,
    pub stdin: Option<String>,
    pub timeout: Option<Duration>,
}

impl<'a> JobLine<'a> {
    /// Reads a line: an array of arguments, or an object.
    ///
    /// # Errors
    /// With what is wrong with it, in words.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, String> {
        let text =
            std::str::from_utf8(line).map_err(|error| format!("the line is not UTF-8: {error}"))?;
        match text.trim_start().bytes().next() {
            None => Err("the line is empty".to_owned()),
            Some(b'[') => {
                let args: &RawValue = serde_json::from_str(text).map_err(json_error)?;
                Ok(Self {
                    id: None,
                    args: args.get(),
                    kwargs: "{}",
                    stdin: None,
                    timeout: None,
                })
            }
            Some(b'{') => {
                let object: Object = serde_json::from_str(text).map_err(json_error)?;
                object.check()
            }
            Some(_) => Err("expected a JSON array of arguments, or an object".to_owned()),
        }
    }
}

fn json_error(error: serde_json::Error) -> String {
    format!("the line is not a job: {error}")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object<'a> {
    id: Option<Id>,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
    #[serde(borrow)]
    kwargs: Option<&'a RawValue>,
    stdin: Option<String>,
    timeout: Option<Timeout>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "id: expected text or a whole number")]
enum Id {
    Text(String),
    Number(i64),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "timeout: expected seconds, or text such as \"30s\""
)]
enum Timeout {
    Seconds(f64),
    Text(String),
}

impl<'a> Object<'a> {
    fn check(self) -> Result<JobLine<'a>, String> {
        let args = self.args.map_or("[]", RawValue::get);
        let kwargs = self.kwargs.map_or("{}", RawValue::get);
        if !args.starts_with('[') {
            return Err("args: expected an array".to_owned());
        }
        if !kwargs.starts_with('{') {
            return Err("kwargs: expected an object".to_owned());
        }
        let timeout = match self.timeout {
            None => None,
            Some(Timeout::Seconds(seconds)) => Some(seconds.to_string()),
            Some(Timeout::Text(text)) => Some(text),
        };
        Ok(JobLine {
            id: self.id.map(|id| match id {
                Id::Text(text) => text,
                Id::Number(number) => number.to_string(),
            }),
            args,
            kwargs,
            stdin: self.stdin,
            timeout: timeout
                .map(|text| crate::config::parse_duration(&text))
                .transpose()
                .map_err(|error| format!("timeout: {error}"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_the_arguments_as_they_stand() {
        let job = JobLine::parse(b" [1, \"a\", {\"b\": [ ]}] ").expect("a job");
        assert_eq!(job.args, "[1, \"a\", {\"b\": [ ]}]");
        assert_eq!(job.kwargs, "{}");
    }

    #[test]
    fn an_object_gives_each_part() {
        let line = br#"{"id": 7, "kwargs": {"x": 1}, "stdin": "in", "timeout": 1.5}"#;
        let job = JobLine::parse(line).expect("a job");
        assert_eq!(job.id.as_deref(), Some("7"));
        assert_eq!((job.args, job.kwargs), ("[]", r#"{"x": 1}"#));
        assert_eq!(job.stdin.as_deref(), Some("in"));
        assert_eq!(job.timeout, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn what_is_no_job_is_told_why() {
        for (line, words) in [
            (&b""[..], "empty"),
            (b"   ", "empty"),
            (b"42", "array"),
            (b"\"text\"", "array"),
            (b"[1", "EOF"),
            (b"[1] x", "trailing"),
            (b"{\"arg\": []}", "unknown field `arg`"),
            (b"{\"args\": {}}", "args: expected an array"),
            (b"{\"kwargs\": []}", "kwargs: expected an object"),
            (b"{\"args\": [], \"args\": []}", "duplicate field"),
            (b"{\"timeout\": 0}", "greater than zero"),
            (b"{\"timeout\": -1}", "not a duration"),
            (b"{\"timeout\": 1e19}", "longer than"),
            (b"{\"timeout\": true}", "timeout"),
            (b"{\"id\": []}", "id"),
            (b"\xff[1]", "UTF-8"),
        ] {
            let error = JobLine::parse(line).expect_err("no job");
            assert!(error.contains(words), "{line:?}: {error}");
        }
    }
}
