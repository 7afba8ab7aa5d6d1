//! The flags of `pyspawner bench`.
//!
//! Runs on: the launcher.

use std::path::PathBuf;

use clap::Args;

use super::{HostOptions, JobOptions};
use crate::config::Callable;
use crate::io::bench;
use crate::io::commands::bench::Command;

/// Measure what jobs cost with these modules and this profile.
///
/// The job is built in and writes one byte. It is measured in a child that waited for it (ready
/// spare) and in one cloned once it had come (cold), beside the least that is possible on this
/// machine: a clone that goes the whole way into the same sandbox without Python (floor), and one
/// that ends at once (bare clone). Samples are taken in turn, each once spares are ready and the
/// machine is idle. A run without --preload shows what the modules add.
#[derive(Args)]
pub(in crate::launcher) struct Arguments {
    #[command(flatten)]
    options: HostOptions,
    #[command(flatten)]
    own: OwnArguments,
}

#[derive(Args)]
#[command(next_help_heading = "Options")]
pub(in crate::launcher) struct OwnArguments {
    /// How many samples of each kind to take, and how many jobs to run for each throughput.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    samples: u32,
    /// How many jobs run at once when throughput is measured, separated by commas.
    #[arg(short, long, value_name = "N,M", value_delimiter = ',', default_values_t = [1, 2, 4],
          value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Vec<u16>,
    /// Print one JSON object: times in milliseconds, memory in bytes.
    #[arg(long)]
    json: bool,
    /// Draw the distributions into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

impl Arguments {
    /// The options as those of a command whose jobs are the built-in one.
    pub(in crate::launcher) fn split(self) -> (JobOptions, OwnArguments) {
        let child_main = Callable {
            module: "_pyspawner_job".to_owned(),
            name: "first_byte".to_owned(),
        };
        let options = JobOptions {
            child_main: Some(child_main),
            host: self.options,
        };
        (options, self.own)
    }
}

impl OwnArguments {
    pub(in crate::launcher) fn into_command(self, preload: Vec<String>) -> Command {
        Command {
            plan: bench::Plan {
                preload,
                samples: self.samples as usize,
                concurrencies: self.jobs.into_iter().map(usize::from).collect(),
            },
            json: self.json,
            plot: self.plot,
        }
    }
}
