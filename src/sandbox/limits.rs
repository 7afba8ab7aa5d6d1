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

    /// Applies them to the calling child. No core dump: it would hold the warm interpreter.
    pub fn apply(&self, in_cgroup: bool) -> Result<(), SetupError> {
        let (soft, hard) = self.open_files;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)
            .map_err(at(Layer::Limits, "setrlimit(RLIMIT_NOFILE)"))?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)
            .map_err(at(Layer::Limits, "setrlimit(RLIMIT_CORE)"))?;
        if let Some(bytes) = self.file_size {
            setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes)
                .map_err(at(Layer::Limits, "setrlimit(RLIMIT_FSIZE)"))?;
        }
        if let Some(count) = self.processes {
            setrlimit(Resource::RLIMIT_NPROC, count, count)
                .map_err(at(Layer::Limits, "setrlimit(RLIMIT_NPROC)"))?;
        }
        // In a control group the memory is counted exactly, and its end is an outcome.
        if let Some(bytes) = self.data.filter(|_| !in_cgroup) {
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)
                .map_err(at(Layer::Limits, "setrlimit(RLIMIT_DATA)"))?;
        }
        Ok(())
    }
}
