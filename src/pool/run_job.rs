//! One job, from its descriptors to its report.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::unistd::{Whence, lseek};
use tokio::sync::Notify;

use super::capture::Capture;
use super::child::Child;
use super::clone_service::{CloneService, Purpose};
use super::hidden_names::HiddenNames;
use super::interrupt::Interrupt;
use super::nursery::{Nursery, PATIENCE_AFTER_KILL, Refusal};
use super::outcome::{JobReport, Outcome, Stop};
use super::payload::{Job, Own, Stdin, Streams};
use super::spares::{Spare, Spares, Starting};
use super::spoken::Spoken;
use super::streams::{self, ChildEnds, Ends};
use crate::config::Profile;
use crate::network::Networks;
use crate::sandbox::assignment::Handed;
use crate::sandbox::cgroup::{Cgroups, Usage};
use crate::sandbox::handshake::ChildReport;
use crate::sys::process::{Ending, Reaped};

/// How long output is waited for after a child's end. It is over at once where the PID
/// namespace ended with the child; without that layer, others may hold the pipes.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Runs jobs in children.
#[derive(Clone)]
pub struct Pool {
    pub(super) nursery: Rc<Nursery>,
    pub(super) spares: Option<Rc<Spares>>,
    profile: Rc<Profile>,
    interrupt: Interrupt,
}

/// How whoever runs a job follows it and ends it.
#[derive(Default)]
pub struct Followed<'a> {
    /// Told the child's process id once it is the job's: its code runs, or is about to run in a
    /// child that only waited for it.
    pub started: Option<OnStart<'a>>,
    /// Ends the job.
    pub kill: Rc<Notify>,
}

pub type OnStart<'a> = Box<dyn FnOnce(libc::pid_t) + 'a>;

/// When a job came, and how long it may take.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    limit: Option<Duration>,
}

/// What is held until a job's code runs: the job too, whose descriptors are the child's alone then
/// (a reader waits for their last copy), and which may have to be given to another child before.
struct Waiting<'a> {
    job: Job,
    started: Option<OnStart<'a>>,
    /// Whether somebody was told already. There is no other child for the job from then on.
    was_told: bool,
    #[expect(dead_code, reason = "it is held")]
    starting: Option<Starting<'a>>,
}

impl Waiting<'_> {
    fn tell_start(&mut self, child: &Child) {
        if let Some(started) = self.started.take() {
            self.was_told = true;
            started(child.pid);
        }
    }
}

impl Pool {
    pub fn new(
        clones: CloneService,
        profile: Rc<Profile>,
        cgroups: Option<Rc<Cgroups>>,
        networks: Rc<Networks>,
        interrupt: Interrupt,
    ) -> anyhow::Result<Self> {
        let nursery = Nursery::new(clones, profile.clone(), cgroups, networks)?;
        Ok(Self {
            nursery: Rc::new(nursery),
            spares: None,
            profile,
            interrupt,
        })
    }

    /// Keeps children ready for jobs to come, at most so many.
    pub fn keep_spares(&mut self, most: usize, hidden_names: Vec<PathBuf>) {
        if most == 0 {
            return;
        }
        let hidden = HiddenNames::new(hidden_names);
        self.spares = hidden.map(|hidden| Spares::start(self.nursery.clone(), hidden, most));
    }

    /// Runs a job to its end. Everything that can go wrong is a report.
    pub async fn run(&self, job: Job) -> JobReport {
        self.run_followed(job, Followed::default()).await
    }

    pub async fn run_followed(&self, job: Job, followed: Followed<'_>) -> JobReport {
        let clock = Clock {
            start: Instant::now(),
            limit: job.timeout,
        };
        let mut waiting = Waiting {
            started: followed.started,
            was_told: false,
            starting: self.spares.as_ref().map(|spares| spares.job_comes()),
            job,
        };
        if let Some((child, ends)) = self.give_to_spare(&mut waiting) {
            let attended = self.attend(child, ends, clock, &followed.kill, Some(waiting));
            match attended.await {
                // The spare was killed at the very moment.
                (report, Some(not_run)) if report.is_no_fault_of_the_job() && !not_run.was_told => {
                    waiting = not_run;
                }
                (report, _) => return report,
            }
        }
        match self.give_to_new_child(&waiting.job).await {
            Ok((child, ends)) => {
                let attended = self.attend(child, ends, clock, &followed.kill, Some(waiting));
                attended.await.0
            }
            Err(refusal) => refusal.into(),
        }
    }

    /// Goes once through everything that a job goes through, short of a job, in a child that
    /// checks that it can reach what its interpreter needs.
    pub async fn probe(&self) -> Result<(), String> {
        let clock = Clock {
            start: Instant::now(),
            limit: Some(Duration::from_secs(60)),
        };
        let report = match self.nursery.make(&Own::default(), Purpose::Probe).await {
            Ok(child) => {
                let nobody = Notify::new();
                let attended = self.attend(child, Ends::default(), clock, &nobody, None);
                attended.await.0
            }
            Err(refusal) => refusal.into(),
        };
        match (report.ending, report.detail) {
            (Some(Ending::Exited(0)), _) => Ok(()),
            (ending, detail) => Err(detail.unwrap_or_else(|| format!("{ending:?}"))),
        }
    }

    /// Gives a job to a child that waits for one, if there is such a child.
    fn give_to_spare(&self, waiting: &mut Waiting<'_>) -> Option<(Child, Ends)> {
        let spares = self.spares.as_ref();
        let spares = spares.filter(|_| waiting.job.own.is_profiles())?;
        loop {
            let spare = spares.take()?;
            match hand_over(waiting, &spare) {
                Ok(ends) => return Some((spare.child, ends)),
                // It has ended meanwhile, or there is no descriptor left.
                Err(error) => {
                    log::debug!("a spare child does not get its job: {error}");
                    tokio::task::spawn_local(self.nursery.clone().discard(spare.child));
                }
            }
        }
    }

    async fn give_to_new_child(&self, job: &Job) -> Result<(Child, Ends), Refusal> {
        let (ends, child_ends) = streams::open(&job.streams).map_err(|e| format!("pipes: {e}"))?;
        let child = self.nursery.make(&job.own, Purpose::Job).await?;
        // A spare that was killed may have read some.
        lseek(&job.payload, 0, Whence::SeekSet).map_err(|e| format!("lseek(arguments): {e}"))?;
        // One that has already ended cannot take it; its end says why.
        let handed = handed(job, &child_ends);
        child.assign(&job.assignment, &handed).ok();
        Ok((child, ends))
    }

    /// Collects a child's output and waits for its end, or brings it about. What waits for the start
    /// of the job is given back if that never came.
    async fn attend<'a>(
        &self,
        child: Child,
        mut ends: Ends,
        clock: Clock,
        kill: &Notify,
        mut waiting: Option<Waiting<'a>>,
    ) -> (JobReport, Option<Waiting<'a>>) {
        let limit = self.profile.limits.output;
        let overflow = Notify::new();
        let (mut stdout, mut stderr, mut result) = <(Capture, Capture, Capture)>::default();
        let wants_result = ends.result.is_some();
        let mut said = None;
        let mut stop = None;
        let reaped = {
            let collect = async {
                let control = hear(&child, &mut said, &mut waiting);
                let (out, err, res, control) = tokio::join!(
                    stdout.collect(ends.stdout.take(), limit, &overflow),
                    stderr.collect(ends.stderr.take(), limit, &overflow),
                    result.collect(ends.result.take(), limit, &overflow),
                    control,
                );
                for error in [out.err(), err.err(), res.err(), control.err()]
                    .into_iter()
                    .flatten()
                {
                    // A child that ends without reading what it was sent resets its socket.
                    log::debug!("reading from a child: {error}");
                }
            };
            tokio::pin!(collect);
            let mut collected = false;
            let deadline = async {
                match clock.limit {
                    Some(limit) => {
                        tokio::time::sleep_until((clock.start + limit).into()).await;
                        Stop::Timeout(limit)
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(deadline);
            let overdue = tokio::time::sleep(Duration::MAX);
            tokio::pin!(overdue);
            let reaped = loop {
                let reason = tokio::select! {
                    reaped = child.reap() => break Some(reaped),
                    () = &mut collect, if !collected => {
                        collected = true;
                        continue;
                    }
                    reason = &mut deadline, if stop.is_none() => reason,
                    () = overflow.notified(), if stop.is_none() => Stop::OutputLimit(limit),
                    _ = self.interrupt.received(), if stop.is_none() => Stop::Cancelled,
                    () = kill.notified(), if stop.is_none() => Stop::Killed,
                    () = &mut overdue => break None,
                };
                stop = Some(reason);
                child.kill();
                overdue
                    .as_mut()
                    .reset(tokio::time::Instant::now() + PATIENCE_AFTER_KILL);
            };
            if !collected && reaped.is_some() {
                tokio::time::timeout(LAST_OUTPUT, collect).await.ok();
            }
            reaped
        };
        let usage = match &child.cgroup {
            Some(cgroup) => cgroup.usage(),
            None => Usage::default(),
        };
        let resident_at_start = child.resident_at_start;
        // What was written may have been cut only because nobody stopped it in time.
        let overflowed = stdout.truncated || stderr.truncated || result.truncated;
        if stop.is_none() && overflowed {
            stop = Some(Stop::OutputLimit(limit));
        }
        let mut report = match (&reaped, stop) {
            (Some(reaped), _) => {
                self.nursery.forget(child).await;
                let records = wants_result.then_some(&*result.bytes);
                classify(said, reaped, stop, usage.out_of_memory, records)
            }
            (None, stop) => {
                tokio::task::spawn_local(self.nursery.clone().reap_in_the_end(child));
                still_there(stop.expect("a child is overdue only after a stop"))
            }
        };
        report.stdout = stdout.bytes;
        report.stderr = stderr.bytes;
        report.truncated = overflowed;
        report.wall = clock.start.elapsed();
        let (cpu, max_rss) = reaped.map_or_else(Default::default, |r| (r.cpu, r.max_rss));
        report.cpu = usage.cpu.unwrap_or(cpu);
        let grown = max_rss.saturating_sub(resident_at_start);
        report.peak_memory = usage.peak_memory.unwrap_or(grown);
        (report, waiting)
    }
}

fn hand_over(waiting: &mut Waiting<'_>, spare: &Spare) -> std::io::Result<Ends> {
    let (ends, child_ends) = streams::open(&waiting.job.streams)?;
    // First: the child may take this processor as soon as it has its job.
    if spare.is_ready && spare.child.lives() {
        waiting.tell_start(&spare.child);
    }
    let job = &waiting.job;
    let assigned = spare
        .child
        .assign(&job.assignment, &handed(job, &child_ends));
    match assigned {
        Err(errno) if !waiting.was_told => Err(errno.into()),
        // If it has ended at this very moment, its end says why.
        _ => Ok(ends),
    }
}

fn handed(job: &Job, child: &ChildEnds) -> Handed {
    let or = |end: &Option<OwnedFd>, own| end.as_ref().map_or(own, AsRawFd::as_raw_fd);
    let (stdout, stderr) = match &job.streams {
        Streams::Given { stdout, stderr } => (stdout.as_raw_fd(), stderr.as_raw_fd()),
        _ => (
            or(&child.stdout, libc::STDOUT_FILENO),
            or(&child.stderr, libc::STDERR_FILENO),
        ),
    };
    Handed {
        stdin: match &job.stdin {
            Stdin::Inherit => libc::STDIN_FILENO,
            Stdin::Private(own) => own.as_raw_fd(),
        },
        stdout,
        stderr,
        payload: job.payload.as_raw_fd(),
        result: child.result.as_ref().map(AsRawFd::as_raw_fd),
    }
}

/// The report on a job whose child was killed and has not ended.
fn still_there(stop: Stop) -> JobReport {
    let (outcome, detail) = Outcome::of(Ending::Signaled(libc::SIGKILL), Some(stop), false, None);
    let detail = detail.map_or_else(String::new, |detail| detail + "; ");
    JobReport::not_run(
        outcome,
        format!("{detail}its process was killed and has not ended"),
    )
}

/// The report's verdict: first whether the job ran at all, then how it ended.
fn classify(
    said: Option<ChildReport>,
    reaped: &Reaped,
    stop: Option<Stop>,
    out_of_memory: bool,
    records: Option<&[u8]>,
) -> JobReport {
    let mut report = match (said, stop) {
        (Some(ChildReport::Started), _) => {
            let spoken = Spoken::from(records.unwrap_or_default());
            let (outcome, detail) = Outcome::of(
                reaped.ending,
                stop,
                out_of_memory,
                spoken.blocked.as_deref(),
            );
            let mut report = JobReport::not_run(outcome, "");
            report.detail = detail;
            if outcome == Outcome::Ok && records.is_some() {
                match spoken.result {
                    Ok(result) => report.result = Some(result),
                    Err(detail) => report.detail = Some(detail),
                }
            }
            report
        }
        (Some(ChildReport::SetupFailed(error)), _) => JobReport::refused(error),
        (Some(ChildReport::HookFailed(text)), _) => JobReport::not_run(Outcome::SetupFailed, text),
        (Some(ChildReport::InvalidJob(text)), _) => JobReport::not_run(Outcome::InvalidJob, text),
        // Ended by the host on its way in.
        (None | Some(ChildReport::Ready), Some(stop))
            if reaped.ending == Ending::Signaled(libc::SIGKILL) =>
        {
            let (outcome, detail) = Outcome::of(reaped.ending, Some(stop), false, None);
            let detail = detail.map_or_else(String::new, |detail| detail + ", ");
            JobReport::not_run(outcome, detail + "before its code ran")
        }
        (None | Some(ChildReport::Ready), _) => {
            let detail = match reaped.ending {
                Ending::Exited(status) => format!("exited with status {status}"),
                Ending::Signaled(signal) => format!("was ended by signal {signal}"),
            };
            let detail = format!("the child {detail} on its way into the sandbox");
            JobReport::not_run(Outcome::SetupFailed, detail)
        }
    };
    report.ending = Some(reaped.ending);
    report
}

/// Hears a child until its job's code runs, or never will. What waits for that is let go then.
async fn hear(
    child: &Child,
    said: &mut Option<ChildReport>,
    waiting: &mut Option<Waiting<'_>>,
) -> std::io::Result<()> {
    loop {
        *said = child.hear().await?;
        match said {
            Some(ChildReport::Ready) => {}
            Some(ChildReport::Started) => {
                if let Some(mut waiting) = waiting.take() {
                    waiting.tell_start(child);
                }
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}
