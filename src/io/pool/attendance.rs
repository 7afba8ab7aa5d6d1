//! One job's child from outside: what it writes, what may end it, how it ended, and what it used.
//!
//! Runs on: the I/O thread.
//!
//! [`until_end`] is the one loop; [`OutsideEvents::stop`] is all that can end a job but the job itself.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::capture::{Capture, Overflow};
use super::child::Child;
use super::live_output::{Listener, Stream, Teller};
use super::outcome::{JobReport, Stop};
use super::overdue::PATIENCE_AFTER_KILL;
use super::streams::Ends;
use crate::io::cgroup::{OutOfMemory, Usage};
use crate::io::interrupt::Interrupt;
use crate::sys::process::Reaped;

/// How long output is waited for after a child's end. It is over at once where the PID
/// namespace ended with the child; without that layer, others may hold the pipes.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// When a job came, and what it is ended for from outside.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) start: Instant,
    pub(super) wall: Option<Duration>,
    /// The setting that the time limit comes from.
    pub(super) name: &'static str,
    /// Bytes of each stream, and of the result.
    pub(super) output: u64,
    /// Bytes of all files that come back.
    pub(super) collect: u64,
}

impl Bounds {
    /// Waits until the time is over; for ever if there is no limit.
    async fn out_of_time(&self) -> Stop {
        let Some(limit) = self.wall else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until((self.start + limit).into()).await;
        Stop::Timeout(limit, self.name)
    }
}

/// What a job writes.
#[derive(Default)]
pub(super) struct Output {
    pub(super) stdout: Capture,
    pub(super) stderr: Capture,
    pub(super) result: Capture,
}

impl Output {
    /// Reads all of it, to its end.
    pub(super) async fn collect(
        &mut self,
        ends: &mut Ends,
        limit: u64,
        overflow: &Overflow,
        listener: Option<&Rc<dyn Listener>>,
    ) {
        let Self {
            stdout,
            stderr,
            result,
        } = self;
        let [mut of_stdout, mut of_stderr, mut of_result] =
            std::array::from_fn(|_| Teller::new(listener));
        let (out, err, res) = tokio::join!(
            stdout.collect(
                ends.stdout.take(),
                "standard output",
                limit,
                overflow,
                |bytes| of_stdout.tell_output(Stream::Stdout, bytes)
            ),
            stderr.collect(
                ends.stderr.take(),
                "standard error",
                limit,
                overflow,
                |bytes| of_stderr.tell_output(Stream::Stderr, bytes)
            ),
            result.collect(ends.result.take(), "its result", limit, overflow, |bytes| {
                of_result.tell_progress(bytes);
            }),
        );
        for error in [out.err(), err.err(), res.err()].into_iter().flatten() {
            log::debug!("reading from a child: {error}");
        }
    }
}

/// What ends a job from outside.
pub(super) struct OutsideEvents<'a> {
    pub(super) bounds: Bounds,
    pub(super) kill: &'a Notify,
    pub(super) interrupt: &'a Interrupt,
    pub(super) overflow: Overflow,
}

impl OutsideEvents<'_> {
    /// Waits for the first of them.
    async fn stop(&self) -> Stop {
        tokio::select! {
            stop = self.bounds.out_of_time() => stop,
            stream = self.overflow.of_any() => Stop::OutputLimit(stream, self.bounds.output),
            _ = self.interrupt.received() => Stop::Cancelled,
            () = self.kill.notified() => Stop::Killed,
        }
    }
}

/// How a child came to its end.
pub(super) struct End {
    /// `None`: it was killed, and has not ended in time.
    pub(super) reaped: Option<Reaped>,
    pub(super) stop: Option<Stop>,
}

/// Waits for a child's end, or brings it about. `collected` comes to its end with what the child writes and says.
pub(super) async fn until_end(
    child: &Child,
    collected: impl Future<Output = ()>,
    outside: &OutsideEvents<'_>,
) -> End {
    let stopped = outside.stop();
    let overdue = tokio::time::sleep(Duration::MAX);
    tokio::pin!(collected, stopped, overdue);
    let (mut stop, mut is_collected) = (None, false);
    let reaped = loop {
        tokio::select! {
            reaped = child.reap() => break Some(reaped),
            () = &mut collected, if !is_collected => is_collected = true,
            reason = &mut stopped, if stop.is_none() => {
                stop = Some(reason);
                child.kill();
                let end = tokio::time::Instant::now() + PATIENCE_AFTER_KILL;
                overdue.as_mut().reset(end);
            }
            () = &mut overdue => break None,
        }
    };
    if !is_collected && reaped.is_some() {
        tokio::time::timeout(LAST_OUTPUT, collected).await.ok();
    }
    End { reaped, stop }
}

/// What a job used.
pub(super) struct Used {
    pub(super) cpu: Duration,
    pub(super) peak_memory: u64,
    pub(super) out_of_memory: Option<OutOfMemory>,
    pub(super) unenforced: Vec<&'static str>,
}

impl Used {
    /// By its control group if it has one, else by what the kernel says of the reaped process.
    pub(super) fn by(child: &Child, reaped: Option<&Reaped>) -> Self {
        let usage = match &child.cgroup {
            Some(cgroup) => cgroup.usage(),
            None => Usage::default(),
        };
        let (cpu, max_rss) = reaped.map_or_else(Default::default, |r| (r.cpu, r.max_rss));
        let grown = max_rss.saturating_sub(child.resident_at_start);
        Self {
            cpu: usage.cpu.unwrap_or(cpu),
            peak_memory: usage.peak_memory.unwrap_or(grown),
            out_of_memory: usage.out_of_memory,
            unenforced: child.unenforced.clone(),
        }
    }

    pub(super) fn tell(self, report: &mut JobReport) {
        report.cpu = self.cpu;
        report.peak_memory = self.peak_memory;
        report.unenforced = self.unenforced;
    }
}
