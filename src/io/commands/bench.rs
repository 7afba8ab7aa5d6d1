//! `pyspawner bench`: what jobs cost with the user's own modules and profile.
//!
//! Runs on: the I/O thread.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::lines::LineWriter;
use super::progress;
use crate::io::bench::{self, Figures, plot, table};
use crate::io::interrupt::Interrupt;
use crate::io::pool::Pool;

#[derive(Serialize, Deserialize)]
pub(crate) struct Command {
    pub plan: bench::Plan,
    pub json: bool,
    pub plot: Option<PathBuf>,
}

pub(crate) async fn bench(
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
    let (figures, samples) = measured?;
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
