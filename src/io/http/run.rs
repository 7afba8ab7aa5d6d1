//! From a request's job to its record: its turn, its run, and what it writes meanwhile.
//!
//! Runs on: the I/O thread.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::jobs::Entry;
use super::service::{Service, Submitted};
use crate::config::Profile;
use crate::io::interrupt::Interrupt;
use crate::io::pool::live_output::{Listener, Progress, Stream};
use crate::io::pool::queue::{Place, Turn};
use crate::io::pool::{Followed, JobReport, Outcome, Pool};
use crate::sys::process::Ending;

/// What jobs are run with.
pub(super) struct Runner {
    pub service: Arc<Service>,
    pub pool: Pool,
    pub profile: Rc<Profile>,
    pub interrupt: Interrupt,
    /// The longest that a job may wait for its turn.
    pub queue_timeout: Option<Duration>,
}

/// Runs every job that is submitted, each in a task of its own.
pub(super) async fn run_all(runner: Rc<Runner>, mut submitted: mpsc::UnboundedReceiver<Submitted>) {
    while let Some(job) = submitted.recv().await {
        let runner = runner.clone();
        tokio::task::spawn_local(async move {
            let _answered = Answered {
                service: runner.service.clone(),
                entry: job.entry.clone(),
                line: job.line,
            };
            runner.run(job).await;
        });
    }
}

/// Has a job whose task panics end all the same, so that nobody waits for it for ever.
struct Answered {
    service: Arc<Service>,
    entry: Arc<Entry>,
    line: Option<u64>,
}

impl Drop for Answered {
    fn drop(&mut self) {
        if self.entry.live().record.is_none() {
            let detail = "internal error of pyspawner, see its log; the job may have run";
            let report = JobReport::not_run(Outcome::SetupFailed, detail);
            let record = report.to_queued_line(self.line, &self.entry.id, Duration::ZERO);
            self.service.jobs.end(&self.entry, record, false);
        }
    }
}

/// Why a job did not get its turn.
enum NoTurn {
    Cancelled,
    Interrupted,
    Overdue(Duration),
}

impl Runner {
    async fn run(&self, submitted: Submitted) {
        let Submitted {
            entry,
            turn,
            job,
            line,
            since,
        } = submitted;
        let turn = self.turn(&entry, turn).await;
        let queued = since.elapsed();
        let is_overdue = matches!(turn, Err(NoTurn::Overdue(_)));
        let report = match turn {
            Ok(_place) => match job.into_job(&entry.id, &self.profile) {
                Ok(job) => self.follow(&entry, job).await,
                Err(error) => {
                    JobReport::not_run(Outcome::SetupFailed, format!("memory file: {error}"))
                }
            },
            Err(reason) => JobReport::not_run(Outcome::Cancelled, reason.to_string()),
        };
        log::info!(
            job = entry.name, id = entry.id, tenant = self.service.tenant_name(entry.tenant),
            outcome = report.outcome.name(), queued_ms = milliseconds(queued),
            wall_ms = milliseconds(report.wall), cpu_ms = milliseconds(report.cpu);
            "a job has ended"
        );
        self.service.metrics.count_job(&report, queued);
        let record = report.to_queued_line(line, &entry.id, queued);
        self.service.jobs.end(&entry, record, is_overdue);
    }

    async fn turn(&self, entry: &Entry, turn: Turn) -> Result<Place, NoTurn> {
        let overdue = async {
            match self.queue_timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.interrupt.received() => Err(NoTurn::Interrupted),
            () = entry.cancel.notified() => Err(NoTurn::Cancelled),
            place = turn.wait() => Ok(place),
            () = overdue => Err(NoTurn::Overdue(self.queue_timeout.unwrap_or_default())),
        }
    }

    /// Runs a job whose turn has come, and ends it if it is cancelled.
    async fn follow(&self, entry: &Arc<Entry>, job: crate::io::pool::payload::Job) -> JobReport {
        let started = |_pid| entry.start();
        let followed = Followed {
            started: Some(Box::new(started)),
            listener: Some(Rc::new(Told(entry.clone()))),
            ..Followed::default()
        };
        let kill = followed.kill.clone();
        let run = self.pool.run_followed(job, followed);
        tokio::pin!(run);
        let mut is_cancelled = false;
        let mut report = loop {
            tokio::select! {
                report = &mut run => break report,
                () = entry.cancel.notified(), if !is_cancelled => {
                    is_cancelled = true;
                    kill.notify_one();
                }
            }
        };
        let was_killed = report.ending == Some(Ending::Signaled(libc::SIGKILL));
        if is_cancelled && was_killed && report.outcome == Outcome::Signaled {
            report.outcome = Outcome::Cancelled;
        }
        report
    }
}

impl std::fmt::Display for NoTurn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cancelled => f.write_str("it was cancelled while it waited for its turn"),
            Self::Interrupted => f.write_str("the service ended while it waited for its turn"),
            Self::Overdue(limit) => {
                write!(
                    f,
                    "its turn did not come within {limit:?} (pool.queue_timeout)"
                )
            }
        }
    }
}

/// With two digits behind the point.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 1e2
}

/// Whoever follows the job by its entry.
struct Told(Arc<Entry>);

impl Listener for Told {
    fn output(&self, stream: Stream, bytes: &[u8]) {
        self.0.add_output(stream, bytes);
    }

    fn progress(&self, progress: Progress) {
        self.0.set_progress(progress);
    }
}
