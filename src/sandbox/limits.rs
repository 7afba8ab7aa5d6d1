//! Resource limits of the process (`setrlimit(2)`). Control groups count what a job uses
//! together; these hold for each of its processes, and everywhere.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::at;
use super::layer::{Layer, Layers, SetupError};
use crate::config::Limits;

/// What a child's processes may use.
pub struct ResourceLimits {
    open_files: (u64, u64),
    file_size: Option<u64>,
    /// Processes and threads of the child's user, counted in its own user namespace.
    processes: Option<u64>,
    /// For children in no control group: private writable memory, with what the clone brings.
    data: Option<u64>,
}

impl ResourceLimits {
    /// Raises the host's own limit of open files as far as it may, since each job takes some in
    /// the host; children get what it was.
    pub fn prepare(limits: &Limits, layers: &Layers) -> Result<Self, SetupError> {
        let step = at(Layer::Limits, "setrlimit(RLIMIT_NOFILE)");
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(&step)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(&step)?;
        let warm = crate::sys::memory::private_data()
            .map_err(|_| at(Layer::Limits, "reading /proc/self/status")(nix::errno::Errno::EIO))?;
        Ok(Self {
            open_files: match limits.open_files {
                Some(files) => (files.min(hard), files.min(hard)),
                None => (soft, hard),
            },
            file_size: limits.file_size,
            // Without a user namespace, the count would include what is not the child's.
            processes: layers.has(Layer::UserNamespace).then_some(limits.pids),
            data: limits.memory.map(|bytes| bytes.saturating_add(warm)),
        })
    }

    /// The limits of a child: which, its name for an error, soft and hard.
    fn of_child(
        &self,
        in_cgroup: bool,
    ) -> impl Iterator<Item = (Resource, &'static str, u64, u64)> {
        let both = |resource, name, limit: Option<u64>| limit.map(|n| (resource, name, n, n));
        let (soft, hard) = self.open_files;
        // In a control group the memory is counted exactly, and its end is an outcome.
        let data = self.data.filter(|_| !in_cgroup);
        [
            Some((Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE", soft, hard)),
            // No core dump: it would hold the warm interpreter.
            both(Resource::RLIMIT_CORE, "RLIMIT_CORE", Some(0)),
            both(Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", self.file_size),
            both(Resource::RLIMIT_NPROC, "RLIMIT_NPROC", self.processes),
            both(Resource::RLIMIT_DATA, "RLIMIT_DATA", data),
        ]
        .into_iter()
        .flatten()
    }

    /// Applies them to the calling child.
    pub fn apply(&self, in_cgroup: bool) -> Result<(), SetupError> {
        for (resource, name, soft, hard) in self.of_child(in_cgroup) {
            setrlimit(resource, soft, hard)
                .map_err(|e| SetupError::new(Layer::Limits, format!("setrlimit({name})"), e))?;
        }
        Ok(())
    }

    /// Says which limit is not as promised, if one is not.
    pub fn broken_promise(&self, in_cgroup: bool) -> Option<&'static str> {
        self.of_child(in_cgroup)
            .find(|(resource, _, soft, hard)| getrlimit(*resource) != Ok((*soft, *hard)))
            .map(|(_, name, _, _)| name)
    }
}
