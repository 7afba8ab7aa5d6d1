//! `pyspawner bench`: what jobs cost with the user's own modules and profile.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::lines::LineWriter;
use super::{HostOptions, JobOptions, progress};
use crate::bench::{self, Figures, plot, table};
use crate::config::Callable;
use crate::pool::Pool;
use crate::pool::interrupt::Interrupt;

/// Measure what jobs cost with these modules and this profile.
///
/// The job is built in and writes one byte. It is measured in a child that waited for it (ready
/// spare) and in one cloned once it had come (cold), beside the least that is possible on this
/// machine: a clone that goes the whole way into the same sandbox without Python (floor), and one
/// that ends at once (bare clone). Samples are taken in turn, each once spares are ready and the
/// machine is idle. A run without --preload shows what the modules add.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: HostOptions,
    #[command(flatten)]
    own: OwnArguments,
}

#[derive(Args)]
#[command(next_help_heading = "Options")]
pub(super) struct OwnArguments {
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

#[derive(Serialize, Deserialize)]
pub(super) struct Command {
    plan: bench::Plan,
    json: bool,
    plot: Option<PathBuf>,
}

impl Arguments {
    /// The options as those of a command whose jobs are the built-in one.
    pub(super) fn split(self) -> (JobOptions, OwnArguments) {
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
    pub(super) fn into_command(self, preload: Vec<String>) -> Command {
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

pub(super) async fn bench(
    pool: &Pool,
    interrupt: &Interrupt,
    command: Command,
    shows_progress: bool,
) -> anyhow::Result<i32> {
    // Before minutes of measuring.
    let plot = command.plot.as_deref().map(create).transpose()?;
    let bar = progress_bar(&command.plan, shows_progress);
    let measured = tokio::select! {
        measured = bench::measure(pool, &command.plan, &bar) => measured,
        signal = interrupt.received() => return Ok(128 + signal),
    };
    progress::remove(&bar);
    let (figures, samples) = measured.map_err(anyhow::Error::msg)?;
    if let Some((mut file, path)) = plot {
        let drawn = plot::draw(&samples).context("drawing the plot")?;
        file.write_all(drawn.as_bytes())
            .with_context(|| format!("writing the plot {}", path.display()))?;
    }
    print(&figures, command.json).await?;
    Ok(0)
}

fn create(path: &Path) -> anyhow::Result<(File, &Path)> {
    let file =
        File::create(path).with_context(|| format!("opening the plot {}", path.display()))?;
    Ok((file, path))
}

async fn print(figures: &Figures, as_json: bool) -> anyhow::Result<()> {
    let mut text = match as_json {
        true => serde_json::to_string(figures)?,
        false => table::of(figures),
    };
    text.push('\n');
    // Not the standard library's: its lock is one that spares inherit.
    let mut output = LineWriter::new(std::io::stdout().as_fd().try_clone_to_owned()?)?;
    output.add(text.as_bytes());
    output.flush().await.context("writing the figures")
}

fn progress_bar(plan: &bench::Plan, is_wanted: bool) -> ProgressBar {
    match is_wanted {
        true => progress::bar(
            Some(plan.steps()),
            "{bar:30} {percent:>3}%  {msg}  {elapsed_precise}",
        ),
        false => ProgressBar::hidden(),
    }
}
