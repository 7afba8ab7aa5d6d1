//! The samples: one child at a time, of each kind in turn.
//!
//! Runs on: the I/O thread.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use nix::fcntl::OFlag;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::idle;
use crate::io::pool::overrides::Overrides;
use crate::io::pool::payload::{Arguments, Job, Stdin, Streams, encode};
use crate::io::pool::{Followed, JobReport, Lap, Outcome, Pool};
use crate::wire::assignment::Assignment;

/// How long a spare may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A job that finds a spare ready.
    ReadySpare,
    /// A job for which a child is cloned once it has come.
    Cold,
    /// The way into the sandbox alone, without Python.
    Floor,
    /// The system call alone.
    BareClone,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::ReadySpare, Self::Cold, Self::Floor, Self::BareClone];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReadySpare => "ready spare",
            Self::Cold => "cold",
            Self::Floor => "floor",
            Self::BareClone => "bare clone",
        }
    }
}

/// All samples of a run, by kind.
#[derive(Default)]
pub(crate) struct Samples {
    laps: [Vec<Lap>; Kind::ALL.len()],
    /// How many were taken though something else ran.
    pub on_busy_machine: usize,
}

impl Samples {
    pub(crate) fn of(&self, kind: Kind) -> &[Lap] {
        &self.laps[kind as usize]
    }
}

/// Takes so many of each kind that there is. The first round does not count: it touches what no
/// later one touches first.
pub(super) async fn take(pool: &Pool, count: usize, bar: &ProgressBar) -> anyhow::Result<Samples> {
    let kinds =
        Kind::ALL.map(|kind| (kind != Kind::ReadySpare || pool.has_spares()).then_some(kind));
    let mut samples = Samples::default();
    for round in 0..=count {
        for kind in kinds.into_iter().flatten() {
            if pool.has_spares() {
                wait_for_spares(pool).await?;
            }
            let is_idle = idle::wait().await.context("/proc/loadavg")?;
            let lap = take_one(pool, kind).await;
            let lap = lap.with_context(|| format!("sample {round} of {}", kind.name()))?;
            if round > 0 {
                samples.on_busy_machine += usize::from(!is_idle);
                samples.laps[kind as usize].push(lap);
                bar.inc(1);
            }
        }
    }
    Ok(samples)
}

async fn wait_for_spares(pool: &Pool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !pool.spares_are_ready() {
        if start.elapsed() > PATIENCE {
            bail!(
                "no spare child became ready in {PATIENCE:?}; hint: -vv says why, and with \
                 pool.spares = 0 in the configuration none is made"
            );
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn take_one(pool: &Pool, kind: Kind) -> anyhow::Result<Lap> {
    match kind {
        Kind::ReadySpare => run_timed(pool).await,
        Kind::Cold => run_timed(&pool.without_spares()).await,
        Kind::Floor => pool.floor().await,
        Kind::BareClone => pool.bare_clone().await,
    }
}

/// Runs one job whose output goes into a pipe, as a client's does.
async fn run_timed(pool: &Pool) -> anyhow::Result<Lap> {
    const STEP: &str = "preparing a job";
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context(STEP)?;
    let stderr = std::io::stderr().as_fd().try_clone_to_owned();
    let stderr = stderr.context(STEP)?;
    let mut output = pipe::Receiver::from_owned_fd(read).context(STEP)?;
    let streams = Streams::Given {
        stdout: write,
        stderr,
    };
    let job = job(streams).context(STEP)?;

    let start = Instant::now();
    let (report, first_byte) = tokio::join!(
        async {
            let report = pool.run_followed(job, Followed::told()).await; // as a client
            (report, start.elapsed())
        },
        async {
            let read = output.read_u8().await;
            (read, start.elapsed())
        },
    );
    let (report, reaped) = report;
    check(&report)?;
    let (read, first_byte) = first_byte;
    read.context("read(stdout of the job)")?;
    Ok(Lap {
        first_byte: Some(first_byte),
        reaped,
    })
}

/// The built-in job, which takes no arguments.
pub(super) fn job(streams: Streams) -> std::io::Result<Job> {
    let none = Arguments {
        args: "[]",
        kwargs: "{}",
        environment: None,
        files: None,
    };
    Ok(Job {
        id: "bench".to_owned(),
        assignment: Assignment::default(),
        payload: encode("bench", None, &none)?,
        stdin: Stdin::null()?,
        wants_result: matches!(streams, Streams::Capture),
        collect: None,
        streams,
        timeout: None,
        overrides: Overrides::default(),
    })
}

pub(super) fn check(report: &JobReport) -> anyhow::Result<()> {
    if report.outcome == Outcome::Ok {
        return Ok(());
    }
    let detail = report.detail.as_deref().unwrap_or("no detail");
    let stderr = String::from_utf8_lossy(&report.stderr);
    bail!("the job ended {}: {detail} {stderr}", report.outcome.name())
}
