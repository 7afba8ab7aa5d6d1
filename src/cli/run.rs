//! `pyspawner run`: one job, connected to the terminal.

use std::ffi::OsString;
use std::os::fd::AsFd;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::lines::LineWriter;
use super::{FAILED, JobOptions, terminal};
use crate::config::Profile;
use crate::pool::interrupt::Interrupt;
use crate::pool::own::Own;
use crate::pool::payload::{Arguments as CallArguments, Job, Stdin, Streams, encode};
use crate::pool::{JobReport, Outcome, Pool};
use crate::sandbox::assignment::Assignment;
use crate::sys::process::Ending;

/// Run one job, with its standard input, output and error connected to this terminal's.
///
/// What child_main returns is printed as JSON on standard output, after what the job itself wrote there; None is not.
///
/// Exits with the child's status; with 1 if what child_main returned has no JSON form, 128+N if signal N ended the child, 124 if
/// it timed out, 125 if pyspawner itself failed.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: JobOptions,
    /// Do not print what child_main returns.
    #[arg(long)]
    no_result: bool,
    /// The job's arguments: child_main gets them as strings. Options come before the first of them; -- before one that
    /// begins with a hyphen.
    #[arg(
        trailing_var_arg = true,
        allow_negative_numbers = true,
        value_name = "ARG"
    )]
    arguments: Vec<OsString>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Command {
    arguments: Vec<String>,
    wants_result: bool,
}

impl Command {
    pub(super) fn first_argument(&self) -> Option<&str> {
        self.arguments.first().map(String::as_str)
    }
}

impl Arguments {
    pub(super) fn into_command(self) -> anyhow::Result<(JobOptions, Command)> {
        let arguments = self
            .arguments
            .into_iter()
            .map(|argument| {
                argument
                    .into_string()
                    .map_err(|argument| anyhow::anyhow!("argument {argument:?} is not UTF-8"))
            })
            .collect::<anyhow::Result<_>>()?;
        let command = Command {
            arguments,
            wants_result: !self.no_result,
        };
        Ok((self.options, command))
    }
}

pub(super) async fn run(
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
            timeout,
            own: Own::default(),
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
            super::print_error(&anyhow::anyhow!("{outcome:?}: {detail}"));
            FAILED.into()
        }
    }
}
