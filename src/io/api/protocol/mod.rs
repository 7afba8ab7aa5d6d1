//! The messages of the client protocol: JSON objects, one a message. See `docs/protocol.md`.
//!
//! Runs on: the I/O thread.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::config::Limits;
use crate::io::network::JobNetwork;
use crate::io::pool::{JobReport, Outcome};
use crate::layer::Layer;
use crate::sys::messages::LONGEST;
use crate::sys::process::Ending;
use crate::wire::fd_set::{FdSet, Role, Roles};
use crate::wire::handshake::NEVER_STARTED;
use crate::wire::payload::{ClientForm, LONGEST_INLINE, Payload};

/// What this host speaks.
pub(crate) const VERSION: u32 = 1;

/// From a client, on its connection.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Comes first.
    Hello { version: u32 },
    /// With what is in [`Handover`].
    Spawn(Box<Spawn>),
    /// The client goes, and its children stay.
    Close {},
}

/// What comes with [`Request::Spawn`].
#[derive(Debug)]
pub(crate) struct Handover {
    pub arguments: Payload,
    /// Three streams and the control socket.
    pub descriptors: FdSet<OwnedFd>,
}

impl Handover {
    const ALWAYS: [Role; 4] = [Role::Stdin, Role::Stdout, Role::Stderr, Role::Control];

    /// Of the bytes that are attached to a message, and its descriptors: the streams, the control
    /// socket, and the arguments' file unless they are attached. `None` if these are others.
    pub(crate) fn take(attached: Option<&[u8]>, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let file = attached.is_none().then_some(Role::Arguments);
        let roles: Vec<_> = Self::ALWAYS.into_iter().chain(file).collect();
        let mut descriptors = FdSet::received(Roles::of(&roles), descriptors).ok()?;
        let arguments = match attached {
            Some(bytes) => Payload::Inline(bytes.to_vec()),
            None => Payload::File(descriptors.take(Role::Arguments)?),
        };
        Some(Self {
            arguments,
            descriptors,
        })
    }

    /// One of those that are always there.
    pub(crate) fn take_one(&mut self, role: Role) -> OwnedFd {
        let descriptor = self.descriptors.take(role);
        descriptor.expect("received, and taken once")
    }
}

/// One child, please.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Spawn {
    /// For `pyspawner_host.job_id()`.
    pub id: String,
    pub process_name: Option<String>,
    /// The child's own root.
    pub chroot: Option<PathBuf>,
    /// Of the layers that a client may leave out, those that are applied; by default all. Other names
    /// are allowed, and name none of them: clients of version 1 write such a name to leave out all.
    pub skip_except: Option<Vec<String>>,
    /// The profile's limit may only be shortened.
    pub timeout: Option<Timeout>,
    /// Instead of the profile's.
    pub network: Option<JobNetwork>,
    /// Keys of `[profile.NAME.limits]`, instead of the profile's.
    pub limits: serde_json::Map<String, serde_json::Value>,
    /// How the arguments are encoded.
    pub arguments: ClientForm,
    /// Whether the last event is to have what `child_main` returned.
    pub result: bool,
}

/// A duration as clients give it.
#[derive(Debug, PartialEq, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
#[serde(
    untagged,
    expecting = "timeout: expected a number of seconds, or text such as \"30s\""
)]
pub(crate) enum Timeout {
    Seconds(f64),
    Text(String),
}

/// The layers that [`Spawn::skip_except`] is about.
pub(crate) const MAY_SKIP: [Layer; 4] = [
    Layer::DropCapabilities,
    Layer::Setuid,
    Layer::NoNewPrivs,
    Layer::Seccomp,
];

/// From a client, on a child's control socket.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ChildRequest {
    Kill {},
}

/// To a client, on its connection.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// Children can be asked for.
    Ready { version: u32, pid: u32 },
    /// The answer to [`Request::Close`]: how many children run on.
    Closing { children: usize },
    /// The host ends.
    Failed {
        kind: &'a str,
        #[serde(serialize_with = "fitting")]
        detail: &'a str,
    },
}

/// To a client, on a child's control socket.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ChildEvent {
    /// The child has its job.
    Started {
        pid: i32,
    },
    /// It never will.
    Refused(Refused),
    Ended(Ended),
}

#[derive(Debug, Serialize)]
pub(crate) struct Refused {
    /// `setup_failed`, `timed_out`, `cancelled`, …; `bad_request`.
    pub outcome: &'static str,
    #[serde(serialize_with = "fitting")]
    pub detail: String,
    pub layer: Option<&'static str>,
    #[serde(serialize_with = "fitting_if_any")]
    pub step: Option<String>,
    pub errno: Option<i32>,
    pub hint: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Ended {
    /// As `wait(2)` gives it.
    pub status: i32,
    pub outcome: Outcome,
    #[serde(serialize_with = "fitting_if_any")]
    pub detail: Option<String>,
    pub wall_ms: f64,
    pub cpu_ms: f64,
    pub peak_memory_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unenforced: Vec<&'static str>,
    #[serde(flatten)]
    pub result: Option<ResultOf>,
}

/// Where what `child_main` returned is, as JSON; only for a client that asked for it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResultOf {
    /// Here. `null` too if there is none.
    Result(Option<Box<RawValue>>),
    /// In a sealed memory file that comes with the event, since it is long: the number of bytes.
    ResultBytes(usize),
}

impl Event<'_> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an event is valid JSON")
    }
}

impl Request {
    /// # Errors
    /// In words.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }
}

impl ChildRequest {
    /// # Errors
    /// In words.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    // The derived decoders would take a list, too, of the type and then the values in their order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err("not a request: a list, expected an object".to_owned());
    }
    serde_json::from_slice(bytes).map_err(|error| format!("not a request: {error}"))
}

impl Spawn {
    /// The layers that are left out.
    pub(crate) fn skipped(&self) -> Vec<Layer> {
        let Some(applied) = &self.skip_except else {
            return Vec::new();
        };
        let mut skipped = MAY_SKIP.to_vec();
        skipped.retain(|layer| !applied.iter().any(|name| name == layer.name()));
        skipped
    }

    /// A name in `skip_except` that is none of the layers it is about, most likely a mistake.
    pub(crate) fn unknown_layer(&self) -> Option<&str> {
        let mut names = self.skip_except.iter().flatten().map(String::as_str);
        names.find(|name| MAY_SKIP.iter().all(|layer| layer.name() != *name))
    }

    /// The limits in force, if they are other than the profile's.
    ///
    /// # Errors
    /// As for a configuration file.
    pub(crate) fn limits(&self, of_profile: &Limits) -> Result<Option<Limits>, String> {
        of_profile.overlaid(&self.limits)
    }

    /// # Errors
    /// For names and addresses that cannot be.
    pub(crate) fn network(&self) -> Result<Option<JobNetwork>, String> {
        if let Some(JobNetwork::Veth(config)) = &self.network {
            config
                .check()
                .map_err(|error| format!("network: {error:#}"))?;
        }
        Ok(self.network.clone())
    }

    /// # Errors
    /// If it is no duration.
    pub(crate) fn timeout(&self) -> Result<Option<Duration>, String> {
        let text = self.timeout.as_ref().map(|timeout| match timeout {
            Timeout::Seconds(seconds) => seconds.to_string(),
            Timeout::Text(text) => text.clone(),
        });
        text.map(|text| crate::config::parse_duration(&text))
            .transpose()
            .map_err(|error| format!("timeout: {error}"))
    }
}

impl ChildEvent {
    pub(crate) fn bad_request(detail: String) -> Self {
        Self::Refused(Refused {
            outcome: "bad_request",
            detail,
            layer: None,
            step: None,
            errno: None,
            hint: None,
        })
    }

    /// The last word on a job; whether its code ran decides which. `wants_result`: the client asked for the result.
    pub(crate) fn last(report: JobReport, started: bool, wants_result: bool) -> Self {
        let status = match report.ending {
            Some(Ending::Exited(status)) => status << 8,
            Some(Ending::Signaled(signal)) => signal,
            Some(Ending::Lost) => NEVER_STARTED << 8,
            None => libc::SIGKILL, // it was killed, and has not ended
        };
        if started {
            let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
            return Self::Ended(Ended {
                status,
                outcome: report.outcome,
                detail: report.detail,
                wall_ms: milliseconds(report.wall),
                cpu_ms: milliseconds(report.cpu),
                peak_memory_bytes: report.peak_memory,
                unenforced: report.unenforced,
                result: wants_result.then(|| match &report.result {
                    Some(json) if json.get().len() > LONGEST_INLINE => {
                        ResultOf::ResultBytes(json.get().len())
                    }
                    _ => ResultOf::Result(report.result),
                }),
            });
        }
        let refusal = report.refusal.as_ref();
        Self::Refused(Refused {
            outcome: report.outcome.name(),
            detail: report.detail.unwrap_or_default(),
            layer: refusal.map(|error| error.layer.name()),
            step: refusal.map(|error| error.step.clone()),
            errno: refusal
                .and_then(|error| error.errno)
                .map(|errno| errno as i32),
            hint: refusal
                .map(|error| error.hint().to_owned())
                .filter(|hint| !hint.is_empty()),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an event is valid JSON")
    }
}

/// What a text may take of an event: two of them, and what is around them, fit into a message.
const LONGEST_TEXT: usize = LONGEST / 2 - 512;

fn fitting<S: Serializer>(text: &impl AsRef<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shortened(text.as_ref()))
}

fn fitting_if_any<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().map(shortened).serialize(serializer)
}

/// A text with as much of its middle left out as does not fit: a traceback's end says what happened,
/// and its beginning where.
fn shortened(text: &str) -> Cow<'_, str> {
    const CUT: &str = "\n[...]\n";
    if text.chars().map(length_in_json).sum::<usize>() <= LONGEST_TEXT {
        return text.into();
    }
    let half = |chars: &mut dyn Iterator<Item = char>| -> usize {
        let mut room = LONGEST_TEXT / 2 - CUT.len();
        chars
            .map_while(|c| {
                room = room.checked_sub(length_in_json(c))?;
                Some(c.len_utf8())
            })
            .sum()
    };
    let (head, tail) = (half(&mut text.chars()), half(&mut text.chars().rev()));
    [&text[..head], CUT, &text[text.len() - tail..]]
        .concat()
        .into()
}

fn length_in_json(c: char) -> usize {
    match c {
        '"' | '\\' | '\u{8}' | '\u{c}' | '\n' | '\r' | '\t' => 2,
        '\0'..='\u{1f}' => "\\u0000".len(),
        _ => c.len_utf8(),
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_decoded_or_refused_in_words() {
        let spawn = br#"{"type": "spawn", "chroot": "/x", "skip_except": ["seccomp"]}"#;
        let Ok(Request::Spawn(spawn)) = Request::decode(spawn) else {
            panic!("a request");
        };
        assert_eq!(spawn.chroot.as_deref(), Some("/x".as_ref()));
        assert_eq!(spawn.skipped().len(), 3);
        for (text, words) in [
            (&b""[..], "EOF"),
            (b"{}", "type"),
            (b"{\"type\": \"spwan\"}", "unknown variant"),
            (b"{\"type\": \"spawn\", \"chrot\": \"/\"}", "unknown field"),
            (b"{\"type\": \"hello\", \"version\": -1}", "expected u32"),
            (b"\xff", "request"),
            (b" [\"hello\", 1]", "a list"),
        ] {
            let error = Request::decode(text).expect_err("no request");
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn limits_are_laid_over_the_profiles() {
        let spawn = |limits: &str| -> Spawn {
            serde_json::from_str(&format!("{{\"limits\": {limits}}}")).expect("a request")
        };
        let profile = Limits {
            memory: Some(1 << 30),
            wall: Some(Duration::from_secs(5)),
            ..Limits::default()
        };
        assert!(spawn("{}").limits(&profile).expect("limits").is_none());
        let limits = spawn(r#"{"pids": 7, "memory": "64M"}"#).limits(&profile);
        let limits = limits.expect("valid").expect("some");
        assert_eq!((limits.pids, limits.memory), (7, Some(64 << 20)));
        assert_eq!(limits.wall, profile.wall);
        for wrong in [
            r#"{"pids": 0}"#,
            r#"{"pisd": 1}"#,
            r#"{"memory": "much"}"#,
            r#"{"wall": {"secs": 18446744073709551615, "nanos": 0}}"#,
        ] {
            assert!(spawn(wrong).limits(&profile).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_some_layers_may_be_left_out_and_other_names_name_none() {
        let spawn = |names: &[&str]| Spawn {
            skip_except: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..Spawn::default()
        };
        for names in [&[][..], &["root"], &["none", ""]] {
            assert_eq!(spawn(names).skipped(), MAY_SKIP, "{names:?}");
        }
        let mixed = spawn(&["seccomp", "typo", "setuid"]);
        assert_eq!(
            mixed.skipped(),
            [Layer::DropCapabilities, Layer::NoNewPrivs]
        );
        assert_eq!(mixed.unknown_layer(), Some("typo"));
        assert_eq!(spawn(&["seccomp"]).unknown_layer(), None);
        assert_eq!(Spawn::default().skipped(), []);
    }
}
