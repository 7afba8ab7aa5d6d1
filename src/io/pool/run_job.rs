//! One job, from its descriptors to its report.
//!
//! Runs on: the I/O thread.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::attendance::{Bounds, End, Output, OutsideEvents, Used, until_end};
use super::capture::Overflow;
use super::child::Child;
use super::child_factory::ChildFactory;
use super::clone_service::CloneService;
use super::files::WantedFiles;
use super::hidden_path_watch::HiddenPathWatch;
use super::live_output::Listener;
use super::outcome::{JobReport, Outcome, Stop};
use super::overrides::Overrides;
use super::payload::Job;
use super::spares::{Spare, Spares, Starting};
use super::streams::{self, ChildEnds, Ends};
use super::untrusted_records::{Returned, UntrustedRecords};
use crate::config::Profile;
use crate::io::cgroup::{Cgroups, OutOfMemory};
use crate::io::interrupt::Interrupt;
use crate::io::network::Networks;
use crate::sys::process::{Ending, Reaped};
use crate::wire::clone_channel::{Purpose, Refusal, WarmUp, limit_of_rehearsal};
use crate::wire::handshake::ChildReport;

/// How long a first child may take to come into its sandbox.
const LIMIT_OF_PROBE: Duration = Duration::from_secs(60);

/// Runs jobs in children.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(super) factory: Rc<ChildFactory>,
    pub(super) spares: Option<Rc<Spares>>,
    profile: Rc<Profile>,
    interrupt: Interrupt,
}

/// How whoever runs a job follows it and ends it.
#[derive(Default)]
pub(crate) struct Followed<'a> {
    /// Told the child's process id once it is the job's: its code runs, or is about to run in a
    /// child that only waited for it.
    pub started: Option<OnStart<'a>>,
    /// Ends the job.
    pub kill: Rc<Notify>,
    /// Told what the job writes while it runs.
    pub listener: Option<Rc<dyn Listener>>,
}

impl Followed<'_> {
    /// By somebody to whom its start is all the same.
    pub(crate) fn told() -> Self {
        Self {
            started: Some(Box::new(|_| ())),
            ..Self::default()
        }
    }
}

pub(crate) type OnStart<'a> = Box<dyn FnOnce(libc::pid_t) + 'a>;

/// What is held until a job's code runs: the job too, whose descriptors are the child's alone then
/// (a reader waits for their last copy), and which may have to be given to another child before.
struct Waiting<'a> {
    job: Job,
    started: Option<OnStart<'a>>,
    #[expect(dead_code, reason = "it is held")]
    starting: Option<Starting<'a>>,
}

/// A job's child.
struct Given<'a> {
    child: Child,
    ends: Ends,
    /// The files that are read after its end.
    collect: Option<Arc<WantedFiles>>,
    /// `None`: there is no other child for the job from here on.
    waiting: Option<Box<Waiting<'a>>>,
}

impl Pool {
    pub(crate) fn new(
        clones: CloneService,
        profile: Rc<Profile>,
        cgroups: Option<Rc<Cgroups>>,
        networks: Rc<Networks>,
        interrupt: Interrupt,
    ) -> anyhow::Result<Self> {
        let factory = ChildFactory::new(clones, profile.clone(), cgroups, networks)?;
        Ok(Self {
            factory: Rc::new(factory),
            spares: None,
            profile,
            interrupt,
        })
    }

    /// Keeps children ready for jobs to come, at most so many.
    pub(crate) fn keep_spares(&mut self, most: usize, hidden_names: Vec<PathBuf>) {
        if most == 0 {
            return;
        }
        let hidden = HiddenPathWatch::new(hidden_names);
        self.spares = hidden.map(|hidden| Spares::start(self.factory.clone(), hidden, most));
    }

    /// Runs a job to its end. Everything that can go wrong is a report.
    pub(crate) async fn run(&self, job: Job) -> JobReport {
        self.run_followed(job, Followed::default()).await
    }

    pub(crate) async fn run_followed(&self, job: Job, mut followed: Followed<'_>) -> JobReport {
        let limits = job.overrides.limits.as_ref();
        let limits = limits.unwrap_or(&self.profile.limits);
        let bounds = Bounds {
            start: Instant::now(),
            wall: job.timeout,
            name: match job.timeout == limits.wall {
                true => "limits.wall, --timeout",
                false => "the job's timeout",
            },
            output: limits.output,
            collect: limits.collect,
        };
        let mut waiting = Box::new(Waiting {
            started: followed.started.take(),
            starting: self.spares.as_ref().map(|spares| spares.job_comes()),
            job,
        });
        match self.give_to_spare(waiting) {
            Ok(given) => match self.attend(given, bounds, &followed).await {
                // The spare was killed at the very moment.
                (report, Some(not_run)) if report.is_no_fault_of_the_job() => waiting = not_run,
                (report, _) => return report,
            },
            Err(not_given) => waiting = not_given,
        }
        match self.give_to_new_child(waiting).await {
            Ok(given) => self.attend(given, bounds, &followed).await.0,
            Err(refusal) => refusal.into(),
        }
    }

    /// Goes once through everything that a job goes through, short of a job, in a child that
    /// checks that it can reach what its interpreter needs.
    pub(crate) async fn probe(&self) -> Result<(), String> {
        let report = self.run_own(Purpose::Probe, LIMIT_OF_PROBE).await;
        match (report.ending, report.detail) {
            (Some(Ending::Exited(0)), _) => Ok(()),
            (ending, detail) => Err(detail.unwrap_or_else(|| format!("{ending:?}"))),
        }
    }

    /// Has a child call the warm-up. What hangs or fails there would do so in jobs.
    ///
    /// # Errors
    /// In words for the operator.
    pub(crate) async fn rehearse(&self, warm_up: &WarmUp) -> Result<(), String> {
        let limit = limit_of_rehearsal(warm_up.took);
        let report = self.run_own(Purpose::Rehearsal, limit).await;
        let what = match (report.ending, report.detail) {
            (Some(Ending::Exited(0)), _) => return Ok(()),
            _ if report.outcome == Outcome::TimedOut => format!(
                "did not end within {limit:.0?}, as if it waited for threads that a clone does not have"
            ),
            (_, Some(detail)) => format!("failed: {detail}"),
            (ending, None) => format!("failed: {ending:?}"),
        };
        let threads = match warm_up.threads.is_empty() {
            true => "No threads are left in the host.".to_owned(),
            false => format!("What is left in the host: {}.", warm_up.threads.join(", ")),
        };
        Err(format!(
            "the warm-up took {:.1?} in the host; called once more in a clone, as a job would, it {what}\n{threads}\n\
             hint: import a library that has threads of its own before the clone, but use it only in jobs, or let it \
             use one thread (docs/preloading.md); --no-rehearsal starts all the same",
            warm_up.took
        ))
    }

    /// Makes a child with no job for it, and waits for its end.
    async fn run_own(&self, purpose: Purpose, limit: Duration) -> JobReport {
        let bounds = Bounds {
            start: Instant::now(),
            wall: Some(limit),
            name: "a fixed limit",
            output: self.profile.limits.output,
            collect: self.profile.limits.collect,
        };
        match self.factory.make(&Overrides::default(), purpose).await {
            Ok(child) => {
                let given = Given {
                    child,
                    ends: Ends::default(),
                    collect: None,
                    waiting: None,
                };
                self.attend(given, bounds, &Followed::default()).await.0
            }
            Err(refusal) => refusal.into(),
        }
    }

    /// Gives a job to a child that waits for one, if there is such a child.
    fn give_to_spare<'a>(
        &self,
        mut waiting: Box<Waiting<'a>>,
    ) -> Result<Given<'a>, Box<Waiting<'a>>> {
        let Some(spares) = &self.spares else {
            return Err(waiting);
        };
        let collect = waiting.job.collect.clone();
        while let Some(mut spare) = spares.take(&waiting.job.overrides) {
            match hand_over(waiting, &mut spare) {
                Ok((ends, waiting)) => {
                    let child = spare.child;
                    return Ok(Given {
                        child,
                        ends,
                        collect,
                        waiting,
                    });
                }
                // It has ended meanwhile, or there is no descriptor left.
                Err((error, not_given)) => {
                    log::debug!("a spare child does not get its job: {error}");
                    tokio::task::spawn_local(self.factory.clone().discard(spare.child));
                    waiting = not_given;
                }
            }
        }
        Err(waiting)
    }

    async fn give_to_new_child<'a>(&self, waiting: Box<Waiting<'a>>) -> Result<Given<'a>, Refusal> {
        let job = &waiting.job;
        let (ends, child_ends) = streams::open(job).map_err(|e| format!("pipes: {e}"))?;
        let child = self.factory.make(&job.overrides, Purpose::Job).await?;
        // A spare that was killed may have read some.
        let rewound = job.payload.rewind();
        rewound.map_err(|errno| format!("lseek(arguments): {errno}"))?;
        // One that has already ended cannot take it; its end says why.
        assign(&child, job, &child_ends).ok();
        Ok(Given {
            child,
            ends,
            collect: waiting.job.collect.clone(),
            waiting: Some(waiting),
        })
    }

    /// Sees a child through to its end, and reports. What waits for the start of the job is given back if that never came.
    async fn attend<'a>(
        &self,
        given: Given<'a>,
        bounds: Bounds,
        followed: &Followed<'_>,
    ) -> (JobReport, Option<Box<Waiting<'a>>>) {
        let Given {
            child,
            mut ends,
            collect,
            mut waiting,
        } = given;
        let wants_result = ends.result.is_some();
        let listener = followed.listener.as_ref();
        let mut said = None;
        let mut folder = None;
        let mut output = Output::default();
        let outside = OutsideEvents {
            bounds,
            kill: &followed.kill,
            interrupt: &self.interrupt,
            overflow: Overflow::default(),
        };
        let End { reaped, mut stop } = {
            let hearing = async {
                if child.is_listened_to()
                    && let Err(error) = hear(&child, &mut said, &mut folder, &mut waiting).await
                {
                    // A child that ends without reading what it was sent resets its socket.
                    log::debug!("reading from a child: {error}");
                }
            };
            let collecting = output.collect(&mut ends, bounds.output, &outside.overflow, listener);
            let collected = async {
                tokio::join!(collecting, hearing);
            };
            until_end(&child, collected, &outside).await
        };
        if !child.is_listened_to() {
            let heard = hear(&child, &mut said, &mut folder, &mut waiting).await;
            heard.unwrap_or_else(|error| log::debug!("a child's last word: {error}"));
        }
        // What was written may have been cut only because nobody stopped it in time.
        let overflowed = outside.overflow.stream();
        if let (None, Some(stream)) = (stop, overflowed) {
            stop = Some(Stop::OutputLimit(stream, bounds.output));
        }
        let used = Used::by(&child, reaped.as_ref());
        let mut report = match (&reaped, stop) {
            (Some(reaped), _) => {
                self.factory.forget(child).await;
                let records = wants_result.then_some(&*output.result.bytes);
                let mut report = classify(said, reaped, stop, used.out_of_memory, records);
                if let (Some(wanted), Some(folder)) = (collect, folder) {
                    report.files = Some(wanted.collect(folder, bounds.collect).await);
                }
                report
            }
            (None, stop) => {
                tokio::task::spawn_local(self.factory.clone().reap_in_the_end(child));
                still_there(stop.expect("a child is overdue only after a stop"))
            }
        };
        report.stdout = output.stdout.bytes;
        report.stderr = output.stderr.bytes;
        report.truncated = overflowed.is_some();
        report.wall = bounds.start.elapsed();
        used.tell(&mut report);
        (report, waiting)
    }
}

type Handing<'a> = Result<(Ends, Option<Box<Waiting<'a>>>), (std::io::Error, Box<Waiting<'a>>)>;

/// Gives a job to a spare. To one that is ready nothing can happen any more but to be killed, so whoever
/// waits for the start is told of it, and what was held for another child is let go. What such a child says
/// is left until its end, since to be woken for it takes the processor from whoever reads its output.
fn hand_over<'a>(mut waiting: Box<Waiting<'a>>, spare: &mut Spare) -> Handing<'a> {
    let (ends, child_ends) = match streams::open(&waiting.job) {
        Ok(opened) => opened,
        Err(error) => return Err((error, waiting)),
    };
    let child = &mut spare.child;
    let is_ready = spare.is_ready && child.lives();
    let told = waiting.started.take_if(|_| is_ready);
    let was_told = told.is_some();
    // First: the child may take this processor as soon as it has its job.
    if let Some(started) = told {
        started(child.pid);
    }
    match assign(child, &waiting.job, &child_ends) {
        Err(errno) if !was_told => return Err((errno.into(), waiting)),
        Err(errno) => {
            log::warn!("a spare child does not get its job: {errno}");
            child.kill(); // its end is told
        }
        Ok(()) => {}
    }
    if was_told {
        child.stop_listening();
    }
    Ok((ends, (!was_told).then_some(waiting)))
}

fn assign(child: &Child, job: &Job, child_ends: &ChildEnds) -> nix::Result<()> {
    let descriptors = streams::of_child(job, child_ends);
    let message = job.assignment.encode(&job.payload, descriptors.roles());
    child.assign(&message, &descriptors.numbers())
}

/// The report on a job whose child was killed and has not ended.
fn still_there(stop: Stop) -> JobReport {
    let (outcome, detail) = Outcome::of(Ending::Signaled(libc::SIGKILL), Some(stop), None, None);
    let detail = detail.map_or_else(String::new, |detail| detail + "; ");
    JobReport::not_run(
        outcome,
        format!("{detail}its process was killed and has not ended"),
    )
}

/// The report's verdict: first whether the job ran at all, then how it ended.
pub(super) fn classify(
    said: Option<ChildReport>,
    reaped: &Reaped,
    stop: Option<Stop>,
    out_of_memory: Option<OutOfMemory>,
    records: Option<&[u8]>,
) -> JobReport {
    let mut report = match (said, stop) {
        (Some(ChildReport::Started), _) => {
            let spoken = UntrustedRecords::from(records.unwrap_or_default());
            let (outcome, detail) = Outcome::of(
                reaped.ending,
                stop,
                out_of_memory,
                spoken.blocked.as_deref(),
            );
            let mut report = JobReport::not_run(outcome, "");
            report.detail = detail;
            if outcome == Outcome::Ok && records.is_some() {
                match spoken.returned {
                    Returned::Result(result) => {
                        report.result = Some(result);
                        report.add_detail(spoken.note);
                    }
                    Returned::Nothing => {
                        report.add_detail(Some("it ended before child_main returned".to_owned()));
                    }
                    Returned::Invalid(reason) => {
                        report.outcome = Outcome::InvalidResult;
                        report.detail = Some(reason);
                    }
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
            let (outcome, detail) = Outcome::of(reaped.ending, Some(stop), None, None);
            let detail = detail.map_or_else(String::new, |detail| detail + ", ");
            JobReport::not_run(outcome, detail + "before its code ran")
        }
        (None | Some(ChildReport::Ready), _) => {
            let detail = match reaped.ending {
                Ending::Exited(status) => format!("exited with status {status}"),
                Ending::Signaled(signal) => format!("was ended by signal {signal}"),
                Ending::Lost => "ended, nobody knows how,".to_owned(),
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
    folder: &mut Option<OwnedFd>,
    waiting: &mut Option<Box<Waiting<'_>>>,
) -> std::io::Result<()> {
    loop {
        let heard = child.hear_with_descriptor().await?;
        (*said, *folder) = heard.map_or((None, None), |(report, passed)| (Some(report), passed));
        match said {
            Some(ChildReport::Ready) => {}
            Some(ChildReport::Started) => {
                if let Some(started) = waiting.take().and_then(|waiting| waiting.started) {
                    started(child.pid);
                }
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}
