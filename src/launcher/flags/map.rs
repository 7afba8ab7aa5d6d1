//! The flags of `pyspawner map`.
//!
//! Runs on: the launcher.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::JobOptions;
use crate::config;
use crate::io::commands::map::{Command, Plan};
use crate::io::pool::Outcome;
use crate::launcher::settings::processors;

/// Run one job a line, each in a child of its own, and write one result a line.
///
/// A line is a JSON array of arguments ([1, "a"]) or an object with any of "id", "args",
/// "kwargs", "stdin" and "timeout". Every line yields one result, a malformed one included.
/// Exits with 0 if every job was "ok", 1 if some were not, 125 if pyspawner failed.
#[derive(Args)]
pub(in crate::launcher) struct Arguments {
    #[command(flatten)]
    options: JobOptions,
    #[command(flatten)]
    own: OwnArguments,
}

#[derive(Args)]
#[command(next_help_heading = "Options")]
pub(in crate::launcher) struct OwnArguments {
    /// Where jobs come from, as -i says too; by default, and as "-", standard input.
    #[arg(value_name = "INPUT", conflicts_with = "input")]
    from: Option<PathBuf>,
    /// Where results go, as -o says too; by default, and as "-", standard output.
    #[arg(value_name = "OUTPUT", conflicts_with = "output")]
    to: Option<PathBuf>,
    /// Where jobs come from.
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where results go.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How many jobs run at once; by default as many as there are processors.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Write results in the order of their lines, not as the jobs end.
    #[arg(long)]
    ordered: bool,
    /// Take each line of the input as text, which is the only argument of its job.
    #[arg(long)]
    lines: bool,
    /// Run a job again, up to so many times, if it comes to one of the outcomes of --retry-on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    retry: u32,
    /// For which outcomes to run a job again.
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = parse_outcome,
          default_value = "timed_out,out_of_memory,signaled,setup_failed")]
    retry_on: Vec<Outcome>,
    /// Add the results to this file of earlier results, and do not run the jobs that are "ok" there.
    ///
    /// Jobs are known again by their id: that of their line, or the line's number. The file is made if it is not there, so that
    /// one command line serves a first run and those after it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "to"])]
    resume: Option<PathBuf>,
}

fn parse_outcome(name: &str) -> Result<Outcome, String> {
    let mut all = Outcome::ALL.into_iter();
    let of_jobs = |outcome: &Outcome| !matches!(outcome, Outcome::Ok | Outcome::Cancelled);
    all.find(|outcome| of_jobs(outcome) && outcome.name() == name)
        .ok_or_else(|| {
            let names = Outcome::ALL.into_iter().filter(of_jobs).map(Outcome::name);
            format!("expected one of {}", names.collect::<Vec<_>>().join(", "))
        })
}

impl Arguments {
    pub(in crate::launcher) fn split(self) -> (JobOptions, OwnArguments) {
        (self.options, self.own)
    }
}

impl OwnArguments {
    pub(in crate::launcher) fn into_command(self, file: &config::File) -> anyhow::Result<Command> {
        let jobs = self
            .jobs
            .map(usize::from)
            .or(file.pool.concurrency)
            .map_or_else(processors, Ok)
            .context("say it with -j")?;
        let named = |path: &PathBuf| path.as_os_str() != "-";
        Ok(Command {
            input: self.input.or(self.from).filter(named),
            output: self.output.or(self.to).filter(named),
            jobs,
            ordered: self.ordered,
            plan: Plan {
                lines: self.lines,
                retry: self.retry,
                retry_on: self.retry_on,
                wall: None,
                has_folder: false, // the profile's, once it is known
            },
            resume: self.resume,
        })
    }
}
