//! `pyspawner run`: one job, connected to the terminal.
//!
//! Runs on: the I/O thread.

use std::os::fd::AsFd;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::lines::LineWriter;
use super::terminal;
use crate::config::Profile;
use crate::failure::FAILED;
use crate::io::interrupt::Interrupt;
use crate::io::pool::overrides::Overrides;
use crate::io::pool::payload::{Arguments as CallArguments, Job, Stdin, Streams, encode};
use crate::io::pool::{JobReport, Outcome, Pool};
use crate::sys::process::Ending;
use crate::wire::assignment::Assignment;

#[derive(Serialize, Deserialize)]
pub(crate) struct Command {
    pub arguments: Vec<String>,
    pub wants_result: bool,
}

impl Command {
    pub(crate) fn first_argument(&self) -> Option<&str> {
        self.arguments.first().map(String::as_str)
    }
}

pub(crate) async fn run(
    pool: &Pool,
    interrupt: &Interrupt,
    profile: &Profile,
    command: Command,
) -> anyhow::Result<i32> {
    let timeout = profile.limits.wall;
    let args = serde_json::to_string(&command.arguments)?;
    let arguments = CallArguments {
        args: &args,
        kwargs: "{}",
        environment: None,
        files: None,
    };
    let streams = terminal::Streams::save().context("looking at the standard streams")?;
    let report = pool
        .run(Job {
            id: "1".to_owned(),
            assignment: Assignment::default(),
            payload: encode("1", timeout, &arguments).context("memory file for the arguments")?,
            stdin: Stdin::Inherit,
            streams: Streams::Inherit,
            wants_result: command.wants_result,
            collect: None,
            timeout,
            overrides: Overrides::default(),
        })
        .await;
    streams.restore();
    if let Some(result) = report.result.as_deref().map(RawValue::get)
        && result != "null"
    {
        let printed = tokio::select! {
            printed = print_line(result) => printed,
            // Whoever does not read it must not keep an interrupt waiting.
            signal = interrupt.received() => return Ok(128 + signal),
        };
        printed?;
    }
    if report.outcome == Outcome::Cancelled {
        return Ok(128 + interrupt.received().await);
    }
    Ok(exit_status(&report))
}

/// Prints a line, unless nobody reads it any more.
async fn print_line(text: &str) -> anyhow::Result<()> {
    let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
    let mut output = LineWriter::new(stdout).context("standard output")?;
    output.add(text.as_bytes());
    output.add(b"\n");
    match output.flush().await {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing the result"),
    }
}

fn exit_status(report: &JobReport) -> i32 {
    match (report.outcome, report.ending) {
        (Outcome::Ok | Outcome::Exited, Some(Ending::Exited(status))) => status,
        (Outcome::Signaled, Some(Ending::Signaled(signal))) => 128 + signal,
        (Outcome::BlockedSyscall, Some(Ending::Signaled(signal))) => {
            // Without a result channel the child has said it itself.
            if let Some(call) = &report.detail {
                log::error!("blocked system call: {call}");
            }
            128 + signal
        }
        (Outcome::OutOfMemory, _) => {
            let detail = report.detail.as_deref().unwrap_or_default();
            log::error!("the job was ended: {detail}");
            128 + libc::SIGKILL
        }
        (Outcome::InvalidResult, _) => {
            let detail = report.detail.as_deref().unwrap_or_default();
            log::error!("what child_main returned cannot be printed: {detail}; hint: --no-result");
            1
        }
        (Outcome::TimedOut, _) => {
            log::error!(
                "the job {}",
                report.detail.as_deref().unwrap_or("timed out")
            );
            124
        }
        (outcome, _) => {
            let detail = report.detail.as_deref().unwrap_or_default();
            crate::failure::print_error(&anyhow::anyhow!("{outcome:?}: {detail}"));
            FAILED.into()
        }
    }
}
