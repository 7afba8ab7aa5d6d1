//! A job as the host holds it: its arguments stay text, and are decoded in the child alone.
//!
//! Runs on: the I/O thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::files::{self, WantedFiles};
use super::overrides::Overrides;
use crate::sys::files::sealed_memfd;
use crate::wire::assignment::Assignment;
use crate::wire::payload::{Payload, deadline};

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
    /// The files that come back with the report.
    pub collect: Option<Arc<WantedFiles>>,
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
    /// Variables that the job has besides its environment: a JSON object.
    pub environment: Option<&'a str>,
    /// Files that it finds in its working folder: a JSON object, of which the host has looked at the names alone.
    pub files: Option<&'a str>,
}

/// A job's arguments with what `pyspawner_host` tells about the job.
pub(crate) fn encode(
    id: &str,
    timeout: Option<Duration>,
    arguments: &Arguments<'_>,
) -> std::io::Result<Payload> {
    let deadline = timeout.and_then(deadline);
    let head = serde_json::json!({ "id": id, "deadline": deadline }).to_string();
    let head = head.strip_suffix('}').expect("an object ends so");
    let mut parts: Vec<&[u8]> = vec![
        head.as_bytes(),
        b",\"args\":",
        arguments.args.as_bytes(),
        b",\"kwargs\":",
        arguments.kwargs.as_bytes(),
    ];
    if let Some(environment) = arguments.environment {
        parts.extend([b",\"environment\":", environment.as_bytes()]);
    }
    if let Some(files) = arguments.files {
        parts.extend([b",\"files\":", files.as_bytes()]);
    }
    parts.push(b"}");
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
    pub files: Option<&'a str>,
    pub collect: Option<Arc<WantedFiles>>,
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
                    files: None,
                    collect: None,
                })
            }
            Some(b'{') => {
                let object: Object = serde_json::from_str(text).map_err(json_error)?;
                object.check()
            }
            Some(_) => Err(
                "expected a JSON array of arguments, or an object; hint: --lines takes each line as text"
                    .to_owned(),
            ),
        }
    }
}

fn json_error(error: serde_json::Error) -> String {
    // It may repeat what is wrong, such as a field's name.
    const LONGEST: usize = 500;
    let mut text = format!("the line is not a job: {error}");
    text.truncate(text.floor_char_boundary(LONGEST));
    text
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
    #[serde(borrow)]
    files: Option<&'a RawValue>,
    #[serde(default)]
    collect: Vec<String>,
}

/// A line's own id. Nothing but short text or a number is kept of it: somebody else wrote the line, and it may be long.
pub(crate) struct Id(pub String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const LONGEST: usize = 4 << 10;
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Id;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "id: text of at most {LONGEST} bytes, or a whole number")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                match text.len() {
                    0..=LONGEST => Ok(Id(text.to_owned())),
                    length => Err(E::invalid_length(length, &self)),
                }
            }
            fn visit_i64<E>(self, number: i64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A line's own time limit, kept as [`Id`] is.
pub(crate) struct Timeout(pub Duration);

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Timeout;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("timeout: seconds, or text such as \"30s\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timeout, E> {
                let duration = crate::config::parse_duration(text);
                let wrong = |error| E::custom(format!("timeout: {error}"));
                duration.map(Timeout).map_err(wrong)
            }
            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Timeout, E> {
                self.visit_str(&seconds.to_string())
            }
            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Timeout, E> {
                self.visit_str(&seconds.to_string())
            }
            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Timeout, E> {
                self.visit_str(&seconds.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
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
        if let Some(files) = self.files {
            files::check_brought(files)?;
        }
        Ok(JobLine {
            id: self.id.map(|id| id.0),
            args,
            kwargs,
            stdin: self.stdin,
            timeout: self.timeout.map(|timeout| timeout.0),
            files: self.files.map(RawValue::get),
            collect: WantedFiles::if_any(&self.collect)?,
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
            (b"{\"timeout\": -1}", "greater than zero"),
            (b"{\"timeout\": 1e19}", "longer than"),
            (b"{\"timeout\": true}", "timeout"),
            (b"{\"id\": []}", "id"),
            (b"{\"id\": 1.5}", "id: text"),
            (b"{\"timeout\": []}", "timeout: seconds"),
            (
                b"{\"timeout\": \"never\"}",
                "timeout: \"never\" is not a duration",
            ),
            (b"\xff[1]", "UTF-8"),
        ] {
            let error = JobLine::parse(line).expect_err("no job");
            assert!(error.contains(words), "{line:?}: {error}");
        }
    }

    #[test]
    fn what_is_long_is_refused_in_few_words() {
        // Text that takes six characters for one, if it is shown as a program would write it.
        let long = "\u{202e}".repeat(5 << 20);
        let name = "x".repeat(5 << 20);
        for line in [
            format!("{{\"id\": \"{long}\"}}"),
            format!("{{\"timeout\": \"{long}\"}}"),
            format!("{{\"id\": [{}1]}}", "0,".repeat(5 << 20)),
            format!("{{\"{name}\": 1}}"),
        ] {
            let start = std::time::Instant::now();
            let error = JobLine::parse(line.as_bytes()).expect_err("no job");
            assert!(error.len() <= 500, "{} bytes", error.len());
            // Such a line took seconds; the bound is for a busy machine.
            assert!(start.elapsed() < Duration::from_secs(2), "{error}");
        }
    }
}
