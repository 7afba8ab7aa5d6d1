//! One job, from its descriptors to its report.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};

use super::capture::Capture;
use super::clone_service::{CloneService, ClonedChild};
use super::interrupt::Interrupt;
use super::outcome::{JobReport, Outcome, Stop};
use super::payload::{Job, Own, Stdin, Streams, seal};
use super::spoken::Spoken;
use super::streams::{self, ChildEnds, Ends};
use crate::config::{Limits, Profile};
use crate::network::{Connection, JobNetwork, Networks};
use crate::sandbox::cgroup::{Cgroups, JobCgroup, Usage, prefer_as_victim};
use crate::sandbox::enter::ChildDescriptors;
use crate::sandbox::from_host::{HostIds, write_id_maps};
use crate::sandbox::handshake::{ChildReport, GO};
use crate::sandbox::{Layers, SetupError};
use crate::sys::files::watch;
use crate::sys::memory;
use crate::sys::process::{self, Ending, Reaped};

/// How long output is waited for after a child's end. It is over at once where the PID
/// namespace ended with the child; without that layer, others may hold the pipes.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How long a child may take to end after SIGKILL. In a system call that waits for a file server
/// or a device it may take for ever; the job's report does not wait for that.
const PATIENCE_AFTER_KILL: Duration = Duration::from_secs(10);
/// With so many of them no job is begun any more: they hold memory, and nothing ends them.
const MOST_OVERDUE: usize = 16;

/// Runs jobs in children.
#[derive(Clone)]
pub struct Pool {
    clones: CloneService,
    profile: Rc<Profile>,
    layers: Rc<Layers>,
    cgroups: Option<Rc<Cgroups>>,
    networks: Rc<Networks>,
    ids: Rc<RefCell<HostIds>>,
    /// Children that have not ended though they were killed.
    overdue: Rc<Cell<usize>>,
    interrupt: Interrupt,
}

/// Why a job was not begun.
enum Refusal {
    Layer(SetupError),
    Other(String),
}

impl From<SetupError> for Refusal {
    fn from(error: SetupError) -> Self {
        Self::Layer(error)
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

impl From<Refusal> for JobReport {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Layer(error) => Self::refused(error),
            Refusal::Other(text) => Self::not_run(Outcome::SetupFailed, text),
        }
    }
}

/// How whoever runs a job follows it and ends it.
#[derive(Default)]
pub struct Followed {
    /// Told the child's process id once the job's code runs.
    pub started: Option<oneshot::Sender<libc::pid_t>>,
    /// Ends the job.
    pub kill: Rc<Notify>,
}

/// A child on its way, or at work.
struct Child {
    pid: libc::pid_t,
    pidfd: AsyncFd<OwnedFd>,
    cgroup: Option<JobCgroup>,
    connection: Option<Connection>,
    host_id: u32,
    ends: Ends,
    /// Resident memory at the clone: the part of the warm image that the child began with.
    resident_at_start: u64,
}

/// A child whose job is given up ends at once. For one that was reaped this does nothing.
impl Drop for Child {
    fn drop(&mut self) {
        kill(&self.pidfd);
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
        Ok(Self {
            clones,
            layers: Rc::new(profile.layers()),
            profile,
            cgroups,
            networks,
            ids: Rc::new(RefCell::new(HostIds::choose()?)),
            overdue: Rc::default(),
            interrupt,
        })
    }

    /// Runs a job to its end. Everything that can go wrong is a report.
    pub async fn run(&self, job: Job) -> JobReport {
        self.run_followed(job, Followed::default()).await
    }

    pub async fn run_followed(&self, job: Job, followed: Followed) -> JobReport {
        let start = Instant::now();
        match self.start(&job, false).await {
            Ok(child) => {
                let timeout = job.timeout;
                // Its descriptors are the child's now; a reader waits for their last copy.
                drop(job);
                self.attend(child, timeout, start, followed).await
            }
            Err(refusal) => refusal.into(),
        }
    }

    /// Goes once through everything that a job goes through, short of a job, in a child that
    /// checks that it can reach what its interpreter needs.
    pub async fn probe(&self) -> Result<(), String> {
        let arguments = super::payload::Arguments {
            args: "[]",
            kwargs: "{}",
        };
        let job = Job {
            id: "probe".to_owned(),
            payload: seal("probe", None, &arguments).map_err(|error| error.to_string())?,
            stdin: Stdin::null().map_err(|error| format!("/dev/null: {error}"))?,
            streams: Streams::Inherit,
            timeout: None,
            own: Own::default(),
        };
        let limit = Some(Duration::from_secs(60));
        let report = match self.start(&job, true).await {
            Ok(child) => {
                let followed = Followed::default();
                self.attend(child, limit, Instant::now(), followed).await
            }
            Err(refusal) => refusal.into(),
        };
        match report.outcome {
            Outcome::Ok => Ok(()),
            _ => Err(report
                .detail
                .unwrap_or_else(|| format!("{:?}", report.ending))),
        }
    }

    async fn start(&self, job: &Job, probe: bool) -> Result<Child, Refusal> {
        if self.overdue.get() >= MOST_OVERDUE {
            return Err(Refusal::Other(format!(
                "{MOST_OVERDUE} children were killed and have not ended; hint: which file system or \
                 device do they wait for?"
            )));
        }
        let (ends, child_ends) = streams::open(&job.streams).map_err(|e| format!("pipes: {e}"))?;
        let descriptors = self.descriptors(job, &child_ends);
        let host_id = self
            .ids
            .borrow_mut()
            .take()
            .ok_or_else(|| "every host uid of the children is in use".to_owned())?;
        let limits = job.own.limits.as_ref().unwrap_or(&self.profile.limits);
        let result = match self.create_cgroup(limits) {
            Ok(cgroup) => {
                let folder = cgroup.as_ref().map(JobCgroup::descriptor);
                let cloned = self.clones.clone(descriptors, folder, probe).await;
                drop(child_ends);
                match cloned {
                    Ok(cloned) => {
                        let released = self.release(cloned, cgroup, host_id, job, ends).await;
                        released.map_err(Refusal::from)
                    }
                    Err(detail) => {
                        remove(cgroup).await;
                        Err(detail.into())
                    }
                }
            }
            Err(error) => Err(error.into()),
        };
        if result.is_err() {
            self.ids.borrow_mut().give_back(host_id);
        }
        result
    }

    fn create_cgroup(&self, limits: &Limits) -> Result<Option<JobCgroup>, SetupError> {
        let cgroups = self.cgroups.as_ref();
        cgroups.map(|cgroups| cgroups.create(limits)).transpose()
    }

    fn network(&self, job: &Job) -> JobNetwork {
        let own = job.own.network.clone();
        own.unwrap_or_else(|| JobNetwork::from(&self.profile.network))
    }

    fn descriptors(&self, job: &Job, child: &ChildEnds) -> ChildDescriptors {
        let or = |end: &Option<OwnedFd>, own| end.as_ref().map_or(own, AsRawFd::as_raw_fd);
        let (stdout, stderr) = match &job.streams {
            Streams::Given { stdout, stderr } => (stdout.as_raw_fd(), stderr.as_raw_fd()),
            _ => (
                or(&child.stdout, libc::STDOUT_FILENO),
                or(&child.stderr, libc::STDERR_FILENO),
            ),
        };
        ChildDescriptors {
            stdin: match &job.stdin {
                Stdin::Inherit => libc::STDIN_FILENO,
                Stdin::Private(own) => own.as_raw_fd(),
            },
            stdout,
            stderr,
            result: child.result.as_ref().map(AsRawFd::as_raw_fd),
            payload: job.payload.as_raw_fd(),
            control: child.control.as_raw_fd(),
            order: job.own.order.as_ref().map(AsRawFd::as_raw_fd),
            root: job.own.root.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// Does the host's half of the set-up and lets the child go on.
    async fn release(
        &self,
        cloned: ClonedChild,
        cgroup: Option<JobCgroup>,
        host_id: u32,
        job: &Job,
        ends: Ends,
    ) -> Result<Child, SetupError> {
        let ClonedChild { pid, pidfd } = cloned;
        // Unread, it counts as 0, which makes a peak larger, never smaller.
        let resident_at_start = memory::resident(pid).unwrap_or(0);
        let mut child = Child {
            pid,
            // It fails only if epoll does, without which nothing goes on here.
            pidfd: watch(pidfd).expect("epoll takes a pidfd"),
            cgroup,
            connection: None,
            host_id,
            ends,
            resident_at_start,
        };
        let layers = self.layers.without(&job.own.skip_layers);
        let prepared = prefer_as_victim(pid).and_then(|()| write_id_maps(pid, host_id, &layers));
        let connected = match prepared {
            Ok(()) => self.networks.connect(pid, &self.network(job)).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(connection) => {
                child.connection = connection;
                // A child that has already ended cannot read it; its end says why.
                child.ends.control.write_all(GO).await.ok();
                Ok(child)
            }
            Err(error) => {
                kill(&child.pidfd);
                reap(&child.pidfd).await;
                remove(child.cgroup.take()).await;
                // If the child had failed already, that is the cause, and this what followed from it.
                let mut said = Vec::new();
                let hear = hear(&mut child.ends.control, &mut said, pid, None);
                tokio::time::timeout(LAST_OUTPUT, hear).await.ok();
                match ChildReport::decode(&said) {
                    Some(ChildReport::SetupFailed(first)) => Err(first),
                    _ => Err(error),
                }
            }
        }
    }

    /// Collects a child's output and waits for its end, or brings it about.
    async fn attend(
        &self,
        mut child: Child,
        timeout: Option<Duration>,
        start: Instant,
        followed: Followed,
    ) -> JobReport {
        let limit = self.profile.limits.output;
        let overflow = Notify::new();
        let (mut stdout, mut stderr, mut result) = <(Capture, Capture, Capture)>::default();
        let wants_result = child.ends.result.is_some();
        let mut said = Vec::new();
        let mut stop = None;
        let reaped = {
            let collect = async {
                let control = hear(
                    &mut child.ends.control,
                    &mut said,
                    child.pid,
                    followed.started,
                );
                let (out, err, res, control) = tokio::join!(
                    stdout.collect(child.ends.stdout.take(), limit, &overflow),
                    stderr.collect(child.ends.stderr.take(), limit, &overflow),
                    result.collect(child.ends.result.take(), limit, &overflow),
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
                match timeout {
                    Some(limit) => {
                        tokio::time::sleep_until((start + limit).into()).await;
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
                    reaped = reap(&child.pidfd) => break Some(reaped),
                    () = &mut collect, if !collected => {
                        collected = true;
                        continue;
                    }
                    reason = &mut deadline, if stop.is_none() => reason,
                    () = overflow.notified(), if stop.is_none() => Stop::OutputLimit(limit),
                    _ = self.interrupt.received(), if stop.is_none() => Stop::Cancelled,
                    () = followed.kill.notified(), if stop.is_none() => Stop::Killed,
                    () = &mut overdue => break None,
                };
                stop = Some(reason);
                kill(&child.pidfd);
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
                self.forget(child).await;
                let records = wants_result.then_some(&*result.bytes);
                classify(&said, reaped, stop, usage.out_of_memory, records)
            }
            (None, stop) => {
                tokio::task::spawn_local(self.clone().reap_in_the_end(child));
                still_there(stop.expect("a child is overdue only after a stop"))
            }
        };
        report.stdout = stdout.bytes;
        report.stderr = stderr.bytes;
        report.truncated = overflowed;
        report.wall = start.elapsed();
        let (cpu, max_rss) = reaped.map_or_else(Default::default, |r| (r.cpu, r.max_rss));
        report.cpu = usage.cpu.unwrap_or(cpu);
        let grown = max_rss.saturating_sub(resident_at_start);
        report.peak_memory = usage.peak_memory.unwrap_or(grown);
        report
    }

    /// Gives back what a reaped child had.
    async fn forget(&self, mut child: Child) {
        self.ids.borrow_mut().give_back(child.host_id);
        if let Some(connection) = child.connection.take() {
            self.networks.disconnect(connection).await;
        }
        remove(child.cgroup.take()).await;
    }

    /// For a child that does not end though it was killed: its uid stays its own until it has.
    async fn reap_in_the_end(self, child: Child) {
        log::error!(
            "a child has not ended {PATIENCE_AFTER_KILL:?} after SIGKILL, as if it waited for a file \
             system or a device that does not answer"
        );
        self.overdue.set(self.overdue.get() + 1);
        reap(&child.pidfd).await;
        self.overdue.set(self.overdue.get() - 1);
        log::info!("a child that did not end after SIGKILL has ended");
        self.forget(child).await;
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
    said: &[u8],
    reaped: &Reaped,
    stop: Option<Stop>,
    out_of_memory: bool,
    records: Option<&[u8]>,
) -> JobReport {
    let mut report = match (ChildReport::decode(said), stop) {
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
        (None, Some(stop)) if reaped.ending == Ending::Signaled(libc::SIGKILL) => {
            let (outcome, detail) = Outcome::of(reaped.ending, Some(stop), false, None);
            let detail = detail.map_or_else(String::new, |detail| detail + ", ");
            JobReport::not_run(outcome, detail + "before its code ran")
        }
        (None, _) => {
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

/// Hears a child's report to its end, and tells once it has started its job.
async fn hear(
    control: &mut UnixStream,
    said: &mut Vec<u8>,
    pid: libc::pid_t,
    started: Option<oneshot::Sender<libc::pid_t>>,
) -> std::io::Result<()> {
    control.read_to_end(said).await?;
    if let Some(started) = started
        && ChildReport::decode(said) == Some(ChildReport::Started)
    {
        // Whoever followed it may have gone.
        started.send(pid).ok();
    }
    Ok(())
}

fn kill(pidfd: &AsyncFd<OwnedFd>) {
    process::signal(pidfd.get_ref().as_fd(), libc::SIGKILL)
        .expect("pidfd_send_signal of our own child");
}

async fn remove(cgroup: Option<JobCgroup>) {
    if let Some(cgroup) = cgroup {
        cgroup.remove().await;
    }
}

/// Waits for the end of a child and reaps it.
async fn reap(pidfd: &AsyncFd<OwnedFd>) -> Reaped {
    loop {
        let mut ready = pidfd.readable().await.expect("the runtime runs");
        match process::reap(pidfd.get_ref().as_fd()) {
            Ok(Some(reaped)) => return reaped,
            Ok(None) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(errno) => panic!("waitid of our own child: {errno}"),
        }
    }
}
