//! How a job ended, as the host measured it.
//!
//! Runs on: the I/O thread.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::files::{Collected, Content};
use super::json_line::to_json_line;
use crate::io::cgroup::OutOfMemory;
use crate::layer::SetupError;
use crate::sys::process::Ending;

/// One word for a job's end. It rests on what the kernel told the host, not on what the job said:
/// by its word a job can only make `ok` into `invalid_result`, and say what is in `detail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Exit status 0.
    Ok,
    /// Another exit status; 1 after an exception.
    Exited,
    /// Exit status 0, and a result was wanted, but what `child_main` returned cannot be passed on.
    InvalidResult,
    /// Ended by a signal.
    Signaled,
    /// Ended by the system call filter.
    BlockedSyscall,
    /// Ended by the host, at its time limit.
    TimedOut,
    /// Ended by the kernel for want of memory: at the job's limit, or the machine's.
    OutOfMemory,
    /// Ended by the host, for writing more than its limit.
    OutputLimit,
    /// Not run: the input line or the arguments are no job.
    InvalidJob,
    /// Not run: a layer of the sandbox could not be applied.
    SetupFailed,
    /// Ended by the host, because the host was told to stop.
    Cancelled,
}

const LOST: &str = "how it ended is not known: it executed a program, and a preloaded module ignores SIGCHLD or waits for all";

/// What the host did to end a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At this limit, which has this name.
    Timeout(Duration, &'static str),
    /// To the stream of this name, in bytes.
    OutputLimit(&'static str, u64),
    Cancelled,
    /// By the client whose job it is.
    Killed,
}

impl Outcome {
    /// All of them.
    pub(crate) const ALL: [Self; 11] = [
        Self::Ok,
        Self::Exited,
        Self::InvalidResult,
        Self::Signaled,
        Self::BlockedSyscall,
        Self::TimedOut,
        Self::OutOfMemory,
        Self::OutputLimit,
        Self::InvalidJob,
        Self::SetupFailed,
        Self::Cancelled,
    ];

    /// As it is written in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Exited => "exited",
            Self::InvalidResult => "invalid_result",
            Self::Signaled => "signaled",
            Self::BlockedSyscall => "blocked_syscall",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
            Self::OutputLimit => "output_limit",
            Self::InvalidJob => "invalid_job",
            Self::SetupFailed => "setup_failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The outcome of a job that ran, with its detail. A stop by the host outranks the SIGKILL
    /// that it sent; a job that ended by itself before that arrived has its own outcome.
    pub(crate) fn of(
        ending: Ending,
        stop: Option<Stop>,
        out_of_memory: Option<OutOfMemory>,
        blocked_call: Option<&str>,
    ) -> (Self, Option<String>) {
        let killed = ending == Ending::Signaled(libc::SIGKILL);
        let stop = stop.filter(|stop| killed || matches!(stop, Stop::OutputLimit(..)));
        match (stop, ending) {
            (Some(Stop::Timeout(limit, name)), _) => (
                Self::TimedOut,
                Some(format!("ran for its limit of {limit:?} ({name})")),
            ),
            (Some(Stop::OutputLimit(stream, limit)), _) => (
                Self::OutputLimit,
                Some(format!("{stream}: more than {limit} bytes (limits.output)")),
            ),
            (Some(Stop::Cancelled), _) => (Self::Cancelled, None),
            (Some(Stop::Killed), _) => (Self::Signaled, None),
            (None, Ending::Signaled(libc::SIGKILL)) if out_of_memory.is_some() => {
                let detail = match out_of_memory {
                    Some(OutOfMemory::Job) => "reached its limit of memory (limits.memory)",
                    _ => "the machine, or a control group above the job's, was out of memory",
                };
                (Self::OutOfMemory, Some(detail.to_owned()))
            }
            (None, Ending::Exited(status)) => {
                let outcome = if status == 0 { Self::Ok } else { Self::Exited };
                (outcome, blocked_call.map(blocked_in_descendant))
            }
            (None, Ending::Signaled(libc::SIGSYS)) => {
                (Self::BlockedSyscall, blocked_call.map(str::to_owned))
            }
            (None, Ending::Signaled(_)) => (Self::Signaled, None),
            (None, Ending::Lost) => (Self::SetupFailed, Some(LOST.to_owned())),
        }
    }
}

/// By the word of a process of the job's, as all that is known of it.
fn blocked_in_descendant(call: &str) -> String {
    format!("one of its processes was ended by the blocked system call {call}")
}

/// Everything that is known about a job's end.
#[derive(Debug)]
pub(crate) struct JobReport {
    pub outcome: Outcome,
    pub ending: Option<Ending>,
    /// JSON, as the child encoded it.
    pub result: Option<Box<RawValue>>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Whether output was thrown away.
    pub truncated: bool,
    pub wall: Duration,
    pub cpu: Duration,
    /// Resident memory at its highest, less what the clone began with.
    pub peak_memory: u64,
    pub detail: Option<String>,
    /// The limits that were not in force, or not as they are meant: `cpu` not at all, `memory` for each process alone.
    pub unenforced: Vec<&'static str>,
    /// What was collected, if something was to be.
    pub files: Option<Collected>,
    /// How often the job was run, this time included.
    pub attempts: u32,
    /// The layer that could not be applied, if that is what `detail` tells.
    pub refusal: Option<SetupError>,
}

impl JobReport {
    /// A report of a job that did not run.
    pub(crate) fn not_run(outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            outcome,
            ending: None,
            result: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            truncated: false,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
            peak_memory: 0,
            detail: Some(detail.into()),
            unenforced: Vec::new(),
            files: None,
            attempts: 1,
            refusal: None,
        }
    }

    /// A report of a job for which a layer of the sandbox could not be applied.
    pub(crate) fn refused(error: SetupError) -> Self {
        Self {
            refusal: Some(error.clone()),
            ..Self::not_run(Outcome::SetupFailed, error.to_string())
        }
    }

    /// Says more.
    pub(crate) fn add_detail(&mut self, more: Option<String>) {
        let parts = [self.detail.take(), more];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        self.detail = (!parts.is_empty()).then(|| parts.join("; "));
    }

    /// Why it is not `ok`, in a line: what is known of it, or what the job said last.
    pub(crate) fn reason(&self) -> Option<String> {
        if self.outcome == Outcome::Ok {
            return None;
        }
        let said = String::from_utf8_lossy(&self.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let detail = self.detail.as_deref().and_then(|text| text.lines().next());
        let (first, other) = match self.outcome {
            Outcome::Exited => (last, detail),
            _ => (detail, last),
        };
        let ending = match self.ending {
            Some(Ending::Exited(status)) => format!("status {status}"),
            Some(Ending::Signaled(signal)) => format!("signal {signal}"),
            _ => String::new(),
        };
        Some(first.or(other).map_or(ending, str::to_owned))
    }

    /// Whether its child ended by itself before there was anything of the job in it.
    pub(crate) fn is_no_fault_of_the_job(&self) -> bool {
        self.outcome == Outcome::SetupFailed && self.refusal.is_none() && self.ending.is_some()
    }

    /// One line of `pyspawner map`'s output, with its line feed; `number` is that of the job's line, from 1.
    pub(crate) fn to_line(&self, number: u64, id: &str) -> Vec<u8> {
        self.to_record(Some(number), id, None)
    }

    /// The same for a job of a service, which may have come alone, and has waited for its turn.
    pub(crate) fn to_queued_line(&self, line: Option<u64>, id: &str, queued: Duration) -> Vec<u8> {
        self.to_record(line, id, Some(queued))
    }

    fn to_record(&self, line: Option<u64>, id: &str, queued: Option<Duration>) -> Vec<u8> {
        let milliseconds = |d: Duration| (d.as_secs_f64() * 1e5).round() / 1e2;
        let (stdout, stdout_base64) = text_or_base64(&self.stdout);
        let (stderr, stderr_base64) = text_or_base64(&self.stderr);
        let line = Line {
            line,
            id,
            outcome: self.outcome,
            exit_code: match self.ending {
                Some(Ending::Exited(status)) => Some(status),
                _ => None,
            },
            signal: match self.ending {
                Some(Ending::Signaled(signal)) => Some(signal),
                _ => None,
            },
            result: self.result.as_deref(),
            stdout,
            stdout_base64,
            stderr,
            stderr_base64,
            truncated: self.truncated,
            queued_ms: queued.map(milliseconds),
            wall_ms: milliseconds(self.wall),
            cpu_ms: milliseconds(self.cpu),
            peak_memory_bytes: self.peak_memory,
            detail: self.detail.as_deref(),
            unenforced: &self.unenforced,
            files: self.files.as_ref().map(|files| &files.content),
            files_left: self
                .files
                .as_ref()
                .map(|files| &files.left)
                .filter(|left| !left.is_empty()),
            attempts: (self.attempts > 1).then_some(self.attempts),
        };
        to_json_line(&line)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    id: &'a str,
    outcome: Outcome,
    exit_code: Option<i32>,
    signal: Option<i32>,
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_base64: Option<String>,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    queued_ms: Option<f64>,
    wall_ms: f64,
    cpu_ms: f64,
    peak_memory_bytes: u64,
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    unenforced: &'a [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<&'a BTreeMap<String, Content>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files_left: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
}

fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => {
            let base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
            (None, Some(base64))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_stop_outranks_the_status() {
        let killed = Ending::Signaled(libc::SIGKILL);
        let stop = Some(Stop::Timeout(Duration::from_secs(1), "limits.wall"));
        assert_eq!(Outcome::of(killed, stop, None, None).0, Outcome::TimedOut);
        assert_eq!(
            Outcome::of(Ending::Exited(0), stop, None, None).0,
            Outcome::Ok
        );
        let stop = Some(Stop::OutputLimit("its result", 1));
        assert_eq!(
            Outcome::of(Ending::Exited(0), stop, None, None).0,
            Outcome::OutputLimit
        );
        assert_eq!(Outcome::of(killed, None, None, None).0, Outcome::Signaled);
        assert_eq!(
            Outcome::of(killed, None, Some(OutOfMemory::Job), None).0,
            Outcome::OutOfMemory
        );
        // One of its children, long before.
        assert_eq!(
            Outcome::of(Ending::Exited(0), None, Some(OutOfMemory::Job), None).0,
            Outcome::Ok
        );
    }

    #[test]
    fn a_blocked_call_is_told_by_the_status_and_named_by_the_child() {
        let sigsys = Ending::Signaled(libc::SIGSYS);
        let (outcome, detail) = Outcome::of(sigsys, None, None, Some("mount"));
        assert_eq!(
            (outcome, detail.as_deref()),
            (Outcome::BlockedSyscall, Some("mount"))
        );
        // One that has ended otherwise may have had a process that did not.
        let (outcome, detail) = Outcome::of(Ending::Exited(0), None, None, Some("mount"));
        assert_eq!(outcome, Outcome::Ok);
        assert!(detail.is_some_and(|detail| detail.starts_with("one of its processes")));
    }

    #[test]
    fn output_that_is_not_utf8_comes_as_base64() {
        let mut report = JobReport::not_run(Outcome::Ok, "");
        report.stdout = vec![0xff, b'a'];
        report.stderr = b"plain".to_vec();
        let line: serde_json::Value =
            serde_json::from_slice(&report.to_line(7, "7")).expect("JSON");
        assert_eq!(line["stdout_base64"], "/2E=");
        assert!(line.get("stdout").is_none());
        assert_eq!(line["stderr"], "plain");
    }
}
