//! What all requests share: who may ask, the queue, the jobs, and the way to the pool.
//!
//! Runs on: the I/O thread.
//!
//! Handlers of axum must be able to move between threads, and the pool cannot. So a handler sends a job's description
//! through a channel to [`run_all`](super::run::run_all), and follows the job by its entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};

use super::job::{Allowed, RequestedJob};
use super::jobs::{Digest, Entry, Jobs, Keyed};
use super::metrics::{Metrics, Refused};
use super::problem::Problem;
use super::room::Room;
use super::{Bounds, Settings};
use crate::config::Tenants;
use crate::config::{Limits, Profile};
use crate::io::pool::queue::{Queue, Turn};
use crate::sys::memory;

/// Whether jobs are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Modules are being imported.
    Warming,
    Ready,
    /// The service ends once the jobs that it has taken have ended.
    Draining,
}

/// A job on its way to the pool.
pub(super) struct Submitted {
    pub entry: Arc<Entry>,
    pub turn: Turn,
    pub job: RequestedJob,
    pub line: Option<u64>,
    pub since: Instant,
}

/// How a job is asked for.
pub(super) struct Asking {
    pub tenant: usize,
    pub key: Option<String>,
    /// Of the body, if there is a key.
    pub digest: Digest,
    /// Whether somebody may ask for it after its end.
    pub is_kept: bool,
    /// The line of a stream that it is, from 1.
    pub line: Option<u64>,
}

impl Asking {
    /// A job that only its reader knows.
    pub(super) fn of(tenant: usize) -> Self {
        Self {
            tenant,
            key: None,
            digest: Digest::default(),
            is_kept: false,
            line: None,
        }
    }
}

/// Ends a job whose only reader goes away.
pub(super) struct EndedWithReader(Arc<Entry>);

impl EndedWithReader {
    pub(super) fn new(entry: Arc<Entry>) -> Self {
        Self(entry)
    }
}

impl Drop for EndedWithReader {
    fn drop(&mut self) {
        // One that has ended hears nothing of it.
        self.0.cancel.notify_one();
    }
}

pub(super) struct Service {
    state: AtomicU8,
    pub jobs: Jobs,
    pub metrics: Metrics,
    pub tenants: Tenants,
    queue: Arc<Queue>,
    /// The first tenant's index in the queue: those before are not HTTP's.
    first_tenant: usize,
    submit: mpsc::UnboundedSender<Submitted>,
    profile_name: String,
    limits: Limits,
    has_folder: bool,
    most_at_once: usize,
    pub bounds: Bounds,
    /// For what requests bring.
    pub room: Room,
    /// Event streams that may be open.
    pub streams: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(
        settings: &Settings,
        queue: Arc<Queue>,
        first_tenant: usize,
        profile: &Profile,
    ) -> anyhow::Result<(Arc<Self>, mpsc::UnboundedReceiver<Submitted>)> {
        // Not bounded itself: the queue is.
        let (submit, submitted) = mpsc::unbounded_channel();
        let bounds = settings.bounds;
        let service = Self {
            state: AtomicU8::new(State::Warming as u8),
            jobs: Jobs::new(settings.keeping),
            metrics: Metrics::new()?,
            tenants: settings.tenants.clone(),
            queue,
            first_tenant,
            submit,
            profile_name: settings.profile_name.clone(),
            limits: profile.limits.clone(),
            has_folder: profile.starts_in_home(),
            bounds,
            room: Room::new(bounds.bodies),
            most_at_once: settings.most_at_once,
            streams: Arc::new(Semaphore::new(bounds.connections / 2)),
        };
        Ok((Arc::new(service), submitted))
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Warming,
            1 => State::Ready,
            _ => State::Draining,
        }
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Bytes of this process that are in memory; 0 if the kernel does not say.
    pub(super) fn resident_memory(&self) -> u64 {
        memory::resident(nix::unistd::getpid().as_raw()).unwrap_or(0)
    }

    /// How many jobs wait and how many run.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.queue.counts()
    }

    pub(super) fn tenant_name(&self, tenant: usize) -> &str {
        let tenant = self.tenants.iter().nth(tenant);
        tenant.map_or("", |tenant| &tenant.name)
    }

    /// How many jobs of a tenant may run at once.
    pub(super) fn places_of(&self, tenant: usize) -> usize {
        let own = self.tenants.iter().nth(tenant);
        let share = own.and_then(|tenant| tenant.concurrency);
        share.map_or(self.most_at_once, |share| share.min(self.most_at_once))
    }

    /// Says why no job can be taken now, if that is so.
    pub(super) fn check_state(&self) -> Result<(), Problem> {
        let (word, detail) = match self.state() {
            State::Ready => return Ok(()),
            State::Warming => ("warming", "modules are being imported"),
            State::Draining => ("draining", "the service is about to end"),
        };
        self.metrics.count_refusal(Refused::Draining);
        Err(Problem::unavailable(word, detail, Duration::from_secs(1)))
    }

    /// Takes a job, or finds the one that the same request has led to before. The second value tells whether it is new.
    pub(super) fn take(&self, asking: Asking, body: &[u8]) -> Result<(Arc<Entry>, bool), Problem> {
        let allowed = Allowed {
            profile_name: &self.profile_name,
            limits: &self.limits,
            has_folder: self.has_folder,
        };
        let job = RequestedJob::parse(body, &allowed)
            .inspect_err(|_| self.metrics.count_refusal(Refused::Invalid))?;
        if let Some(key) = &asking.key {
            match self.jobs.keyed(asking.tenant, key, &asking.digest) {
                Keyed::New => {}
                Keyed::Same(entry) => return Ok((entry, false)),
                Keyed::AnotherRequest => return Err(Problem::key_reused()),
            }
        }
        if !self.jobs.have_room() {
            self.metrics.count_refusal(Refused::NoRoom);
            let detail = "too much of what jobs wrote waits for its readers (serve.result_memory)";
            return Err(Problem::unavailable(
                "no-room",
                detail,
                Duration::from_secs(1),
            ));
        }
        let entered = self.queue.enter(self.first_tenant + asking.tenant);
        let turn = entered.map_err(|full| {
            // A line of a stream is not refused: it waits.
            if asking.line.is_none() {
                self.metrics.count_refusal(Refused::QueueFull);
            }
            Problem::queue_full(full.waiting, full.retry_after)
        })?;
        let id = job.id.clone();
        let id = id.or_else(|| asking.line.map(|line| line.to_string()));
        let entry = self
            .jobs
            .entry(id, asking.tenant, asking.key, asking.is_kept);
        self.jobs.add(&entry, asking.digest);
        let submitted = Submitted {
            entry: entry.clone(),
            turn,
            job,
            line: asking.line,
            since: Instant::now(),
        };
        // The receiver is held as long as the service; else there is nobody left to answer.
        self.submit.send(submitted).map_err(|_| {
            Problem::unavailable("draining", "the service ends", Duration::from_secs(1))
        })?;
        Ok((entry, true))
    }
}
