//! Jobs per second, as `pyspawner map` runs them.
//!
//! Runs on: the I/O thread.

use std::time::Instant;

use anyhow::Context;
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use super::samples::{check, job};
use super::summary::Throughput;
use crate::io::pool::payload::Streams;
use crate::io::pool::{JobReport, Pool};

/// Runs so many jobs, `concurrency` at once.
pub(super) async fn measure(
    pool: &Pool,
    concurrency: usize,
    count: usize,
    bar: &ProgressBar,
) -> anyhow::Result<Throughput> {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..count {
        if running.len() == concurrency {
            finish_one(&mut running, bar).await?;
        }
        let job = job(Streams::Capture).context("preparing a job")?;
        let pool = pool.clone();
        running.spawn_local(async move { pool.run(job).await });
    }
    while !running.is_empty() {
        finish_one(&mut running, bar).await?;
    }
    Ok(Throughput {
        concurrency,
        jobs: count,
        jobs_per_second: count as f64 / start.elapsed().as_secs_f64(),
    })
}

async fn finish_one(running: &mut JoinSet<JobReport>, bar: &ProgressBar) -> anyhow::Result<()> {
    let report = running.join_next().await.expect("one is running");
    bar.inc(1);
    check(&report.context("internal error in a job")?)
}
