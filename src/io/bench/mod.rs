//! What a job costs: the figures of `pyspawner bench`.
//!
//! Runs on: the I/O thread.
//!
//! Everything goes through the pool that jobs go through, on the I/O thread. What is compared is
//! taken in turn, so that what the machine does meanwhile meets all of it alike.

mod idle;
mod memory;
pub(crate) mod plot;
mod samples;
mod summary;
pub(crate) mod table;
mod throughput;

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::pool::Pool;
pub(crate) use samples::{Kind, Samples};
pub(crate) use summary::Figures;
use summary::{Latencies, Ratios};

/// What to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The modules that are imported, for the report.
    pub preload: Vec<String>,
    /// How many of each kind, and how many jobs for each throughput.
    pub samples: usize,
    /// How many jobs run at once when throughput is measured.
    pub concurrencies: Vec<usize>,
}

impl Plan {
    /// How many samples and jobs there are to wait for.
    pub(crate) fn steps(&self) -> u64 {
        (self.samples * (Kind::ALL.len() + self.concurrencies.len())) as u64
    }
}

/// Measures all of it.
pub(crate) async fn measure(
    pool: &Pool,
    plan: &Plan,
    bar: &ProgressBar,
) -> anyhow::Result<(Figures, Samples)> {
    bar.set_message("latency");
    let samples = samples::take(pool, plan.samples, bar).await?;
    let memory = memory::of_idle_child(pool).await?;
    bar.set_message("throughput");
    let mut throughput = Vec::new();
    for &concurrency in &plan.concurrencies {
        throughput.push(throughput::measure(pool, concurrency, plan.samples, bar).await?);
    }
    let latency = Latencies::of(&samples);
    let figures = Figures {
        python: env!("PYSPAWNER_PYTHON_VERSION"),
        preload: plan.preload.clone(),
        samples: plan.samples,
        samples_on_busy_machine: samples.on_busy_machine,
        ratios: Ratios::of(&latency),
        latency_ms: latency,
        throughput,
        memory_bytes: memory,
    };
    Ok((figures, samples))
}
