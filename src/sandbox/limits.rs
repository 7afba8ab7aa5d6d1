//! Resource limits of the process (`setrlimit(2)`). Control groups count what a job uses
//! together; these hold for each of its processes, and everywhere.
//!
//! Runs on: the main thread, a child.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Limits;
use crate::layer::{Layer, Layers, SetupError, at};

// What the kernel counts for each user it counts in all user namespaces above, too, so for the host's user
// (`inc_rlimit_get_ucounts`): one job must not use up what root's daemons need, for whom `setuid(2)` fails half-way then.

/// Signals that wait with a value, and timers (`timer_create(2)`).
const QUEUED_SIGNALS: u64 = 256;
/// In bytes, for each process.
const LOCKED_MEMORY: u64 = 64 << 10;

/// What a child's processes may use.
#[derive(Clone)]
pub(crate) struct ResourceLimits {
    limits: Limits,
    /// The host's hard limit of open files.
    files_of_host: u64,
    /// The limit of open files where the profile names none.
    usual_files: u64,
    /// Whether processes are counted for the child alone, in a user namespace of its own.
    counts_processes: bool,
    /// Private writable memory that a clone brings, in bytes.
    warm: u64,
}

/// 1,024, of which at least half are the job's own: preloaded modules may hold thousands, which have stand-ins at their numbers.
fn usual_files() -> std::io::Result<u64> {
    const USUAL: u64 = 1024;
    let mut highest = 0;
    for entry in std::fs::read_dir("/proc/thread-self/fd")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(USUAL.max(highest + USUAL / 2))
}

impl ResourceLimits {
    /// Raises the host's own limit of open files as far as it may, since each job takes some in
    /// the host.
    pub(crate) fn prepare(limits: &Limits, layers: &Layers) -> Result<Self, SetupError> {
        let step = at(Layer::Limits, "setrlimit(RLIMIT_NOFILE)");
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(&step)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(&step)?;
        Ok(Self {
            limits: limits.clone(),
            files_of_host: hard,
            usual_files: usual_files()
                .map_err(|e| SetupError::from_io(Layer::Limits, "read /proc/thread-self/fd", &e))?,
            counts_processes: layers.has(Layer::UserNamespace),
            warm: crate::sys::memory::private_data()
                .map_err(|e| SetupError::from_io(Layer::Limits, "read /proc/self/status", &e))?,
        })
    }

    /// The same for a child with other limits than its profile's.
    pub(crate) fn with(&self, limits: Limits) -> Self {
        Self {
            limits,
            ..self.clone()
        }
    }

    /// The limits of a child: which, its name for an error, soft and hard.
    fn of_child(
        &self,
        in_cgroup: bool,
    ) -> impl Iterator<Item = (Resource, &'static str, u64, u64)> {
        let limits = &self.limits;
        let both = |resource, name, limit: Option<u64>| limit.map(|n| (resource, name, n, n));
        let files = limits.open_files.unwrap_or(self.usual_files);
        let files = files.min(self.files_of_host);
        let processes = self.counts_processes.then_some(limits.pids);
        // In a control group the memory is counted exactly, and its end is an outcome.
        let memory = limits.memory.filter(|_| !in_cgroup);
        let data = memory.map(|bytes| bytes.saturating_add(self.warm));
        [
            both(Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE", Some(files)),
            // No core dump: it would hold the warm interpreter. Where a program takes them, the kernel does not look at
            // a limit of 0; 1 it takes for what ends that program's own dumps (`core(5)`, `do_coredump`).
            both(Resource::RLIMIT_CORE, "RLIMIT_CORE", Some(1)),
            both(
                Resource::RLIMIT_SIGPENDING,
                "RLIMIT_SIGPENDING",
                Some(QUEUED_SIGNALS),
            ),
            both(Resource::RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE", Some(0)),
            both(
                Resource::RLIMIT_MEMLOCK,
                "RLIMIT_MEMLOCK",
                Some(LOCKED_MEMORY),
            ),
            both(Resource::RLIMIT_RTPRIO, "RLIMIT_RTPRIO", Some(0)),
            both(Resource::RLIMIT_NICE, "RLIMIT_NICE", Some(0)),
            both(Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", limits.file_size),
            both(Resource::RLIMIT_NPROC, "RLIMIT_NPROC", processes),
            both(Resource::RLIMIT_DATA, "RLIMIT_DATA", data),
        ]
        .into_iter()
        .flatten()
    }

    /// Applies them to the calling child.
    pub(crate) fn apply(&self, in_cgroup: bool) -> Result<(), SetupError> {
        for (resource, name, soft, hard) in self.of_child(in_cgroup) {
            setrlimit(resource, soft, hard)
                .map_err(|e| SetupError::new(Layer::Limits, format!("setrlimit({name})"), e))?;
        }
        Ok(())
    }

    /// Says which limit is not as promised, if one is not.
    pub(crate) fn broken_promise(&self, in_cgroup: bool) -> Option<&'static str> {
        self.of_child(in_cgroup)
            .find(|(resource, _, soft, hard)| getrlimit(*resource) != Ok((*soft, *hard)))
            .map(|(_, name, _, _)| name)
    }
}
