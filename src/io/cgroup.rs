//! Control groups (cgroup v2): each child is born in one of its own, which counts and limits
//! what all of the job's processes use together, and ends them all.
//!
//! Runs on: the I/O thread.
//!
//! Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use std::cell::Cell;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::config::Limits;
use crate::layer::{Layer, SetupError};
use crate::sys::files::FileId;

/// What a group is wanted for: limits, and with memory and pids, what a job used.
const CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

/// The controllers without which these limits would not hold.
fn needed(limits: &Limits) -> impl Iterator<Item = &'static str> {
    let cpu = limits.cpu.map(|_| "cpu");
    let memory = limits.memory.map(|_| "memory");
    cpu.into_iter().chain(memory).chain(["pids"])
}

/// The folder that this host made for its children's groups.
pub(crate) struct Cgroups {
    folder: PathBuf,
    /// Those of [`CONTROLLERS`] that may be used here.
    controllers: Vec<&'static str>,
    needed: Vec<&'static str>,
    /// Held while the host lives, so that others see that it does.
    _lock: Flock<File>,
    /// Where the host went out of the way: a group that has processes cannot have groups with
    /// controllers ("no internal process constraint"). `None` where it could stay.
    moved_from: Option<PathBuf>,
    next: Cell<u64>,
}

impl Cgroups {
    /// Makes a folder below a group: `configured`, or the process's own. Not below any other:
    /// jobs stay within the limits that pyspawner itself is given.
    ///
    /// # Errors
    /// With the reason why it will not do for these limits.
    pub(crate) fn claim(configured: Option<&Path>, limits: &Limits) -> anyhow::Result<Self> {
        let parent = match configured {
            Some(path) => path.to_owned(),
            None => own_group()?,
        };
        Self::below(&parent, limits).with_context(|| parent.display().to_string())
    }

    /// The controllers in use, for the log.
    pub(crate) fn controllers(&self) -> String {
        self.controllers.join(", ")
    }

    fn below(parent: &Path, limits: &Limits) -> anyhow::Result<Self> {
        let offered = read(parent, "cgroup.controllers")?;
        let controllers: Vec<_> = CONTROLLERS
            .iter()
            .copied()
            .filter(|name| offered.split_whitespace().any(|offer| offer == *name))
            .collect();
        if let Some(missing) = needed(limits).find(|name| !controllers.contains(name)) {
            bail!("it has no controller {missing:?}");
        }
        remove_stale(parent);
        // The process id alone is not unique: hosts of several PID namespaces may share a parent.
        let unique: u64 = RandomState::new().build_hasher().finish();
        let folder = parent.join(format!("pyspawner-{}-{unique:016x}", std::process::id()));
        fs::create_dir(&folder).context("mkdir")?;
        let mut cgroups = Self {
            _lock: lock(&folder).context("the new group cannot be locked")?,
            folder,
            controllers,
            needed: needed(limits).collect(),
            moved_from: None,
            next: Cell::new(1),
        };
        cgroups.delegate(parent).inspect_err(|_| cgroups.remove())?;
        Ok(cgroups)
    }

    /// Hands the controllers down, to the folder and to what is made in it.
    fn delegate(&mut self, parent: &Path) -> anyhow::Result<()> {
        // All but the root: where cgroup.type is, there must be no process beside the folder. (With
        // pids alone the kernel would let it be, and the folder would be "domain invalid".)
        let has_type = parent.join("cgroup.type").exists();
        if has_type && has_processes(parent)? {
            self.step_aside(parent)?;
            if has_processes(parent)? {
                bail!(
                    "other processes are in it; hint: it must hold no process but pyspawner's \
                     (systemd-run --scope -p Delegate=yes, or a container of its own)"
                );
            }
        }
        self.enable_controllers(parent)?;
        let folder = self.folder.clone();
        self.enable_controllers(&folder)
    }

    fn enable_controllers(&mut self, folder: &Path) -> anyhow::Result<()> {
        let needed = self.needed.clone();
        let enable = |name: &str| write(folder, "cgroup.subtree_control", &format!("+{name}"));
        for name in &needed {
            enable(name)?;
        }
        // Without the others a job is counted less exactly.
        self.controllers
            .retain(|name| needed.contains(name) || enable(name).is_ok());
        Ok(())
    }

    fn each_controller(&self, sign: char) -> String {
        let words = self.controllers.iter().map(|name| format!("{sign}{name} "));
        words.collect()
    }

    /// Moves the host, the init in front of it, and what it has started, into a group of their own.
    fn step_aside(&mut self, parent: &Path) -> anyhow::Result<()> {
        let aside = self.folder.join("host");
        fs::create_dir(&aside).context("mkdir host")?;
        let members = read(parent, "cgroup.procs")?;
        let init = nix::unistd::getppid().to_string();
        let own = std::process::id().to_string();
        for pid in members.lines().filter(|pid| {
            *pid == own
                || *pid == init && is_this_program(pid)
                || parent_of(pid).is_some_and(|parent| parent == own)
        }) {
            write(&aside, "cgroup.procs", pid)?;
            self.moved_from = Some(parent.to_owned());
        }
        Ok(())
    }

    /// Whether a job's group is left.
    fn end_and_remove_jobs(&self) -> bool {
        let mut left = false;
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"job-") {
                left |= write(&entry.path(), "cgroup.kill", "1").is_err()
                    || fs::remove_dir(entry.path()).is_err();
            }
        }
        left
    }

    /// Makes a group for one child.
    pub(crate) fn create(&self, limits: &Limits) -> Result<JobCgroup, SetupError> {
        let number = self.next.get();
        self.next.set(number + 1);
        let path = self.folder.join(format!("job-{number}"));
        fs::create_dir(&path).map_err(|e| setup_error(format!("mkdir {}", path.display()), &e))?;
        let group = JobCgroup {
            folder: open_folder(&path)
                .map_err(|e| setup_error(format!("open {}", path.display()), &e.into()))?,
            path,
        };
        let available = |file: &str| self.controllers.iter().any(|name| file.starts_with(name));
        for (file, value) in settings(limits) {
            if !available(file) {
                continue; // no limit depends on it: see `needed`
            }
            match fs::write(group.path.join(file), &value) {
                Ok(()) => {}
                // A kernel without swap has no limit of it.
                Err(e) if file == "memory.swap.max" && e.kind() == ErrorKind::NotFound => {}
                Err(e) => {
                    fs::remove_dir(&group.path).ok();
                    return Err(setup_error(format!("write {file} {value:?}"), &e));
                }
            }
        }
        Ok(group)
    }

    /// Takes away what [`Cgroups::claim`] made. Jobs that were given up are ended.
    pub(crate) fn remove(&self) {
        const ATTEMPTS: u32 = 100;
        for _ in 0..ATTEMPTS {
            if !self.end_and_remove_jobs() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(parent) = &self.moved_from {
            // Only without controllers below may the group have processes again.
            let disable = self.each_controller('-');
            let back = write(&self.folder, "cgroup.subtree_control", &disable)
                .and_then(|()| write(parent, "cgroup.subtree_control", &disable))
                .and_then(|()| read(&self.folder.join("host"), "cgroup.procs"))
                .and_then(|pids| {
                    pids.lines()
                        .try_for_each(|pid| write(parent, "cgroup.procs", pid))
                });
            if let Err(reason) = back {
                log::debug!("leaving {} behind: {reason}", self.folder.display());
            }
        }
        remove_tree(&self.folder);
    }
}

/// The files of a group that enforce these limits, with their contents. Without swap, a limit
/// of memory is one; and if the kernel must end a process for memory, it ends the job.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    const PERIOD_MICROSECONDS: f64 = 100_000.0;
    let mut settings = vec![("pids.max", limits.pids.to_string())];
    if let Some(bytes) = limits.memory {
        settings.push(("memory.max", bytes.to_string()));
        settings.push(("memory.swap.max", "0".to_owned()));
    }
    settings.push(("memory.oom.group", "1".to_owned()));
    if let Some(cpu) = limits.cpu {
        let quota = (cpu * PERIOD_MICROSECONDS) as u64;
        settings.push(("cpu.max", format!("{quota} {PERIOD_MICROSECONDS}")));
    }
    settings
}

/// The group of one job.
pub(crate) struct JobCgroup {
    path: PathBuf,
    folder: OwnedFd,
}

/// What a job used, all its processes together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// `memory.peak` in bytes; `None` before Linux 5.19.
    pub peak_memory: Option<u64>,
    pub cpu: Option<Duration>,
    /// Whose memory was at its end, if the kernel ended a process of the job for that.
    pub out_of_memory: Option<OutOfMemory>,
}

/// Whose memory was at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutOfMemory {
    /// The job's own, by its limit.
    Job,
    /// That of the machine, or of a control group above.
    Above,
}

impl JobCgroup {
    /// For `CLONE_INTO_CGROUP` (`clone(2)`).
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Ends every process in it (`cgroup.kill`, Linux 5.14).
    pub(crate) fn kill(&self) {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                log::error!("write cgroup.kill in {}: {error}", self.path.display());
            }
            _ => {}
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let number = |file: &str, key: &str| {
            let text = read(&self.path, file).ok()?;
            text.lines().find_map(|line| {
                line.strip_prefix(key)
                    .and_then(|value| value.trim().parse::<u64>().ok())
            })
        };
        let happened = |file, key| number(file, key).is_some_and(|count| count > 0);
        Usage {
            peak_memory: number("memory.peak", ""),
            cpu: number("cpu.stat", "usage_usec ").map(Duration::from_micros),
            out_of_memory: happened("memory.events", "oom_kill ").then(|| {
                match happened("memory.events", "oom ") {
                    true => OutOfMemory::Job,
                    false => OutOfMemory::Above,
                }
            }),
        }
    }

    /// Removes it. What may still live in it, where no PID namespace ended it, is ended.
    pub(crate) async fn remove(self) {
        const ATTEMPTS: u32 = 200;
        for attempt in 0..ATTEMPTS {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => self.kill(),
                Err(error) => {
                    log::error!("rmdir {}: {error}", self.path.display());
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)))).await;
        }
        log::error!("rmdir {}: still busy", self.path.display());
    }
}

/// The host rather loses a child than itself where the machine, or the container, is out of
/// memory; and a child must not inherit the host's own exemption (`proc_pid_oom_score_adj(5)`).
pub(crate) fn prefer_as_victim(pid: libc::pid_t) -> Result<(), SetupError> {
    const FIRST: &str = "1000";
    fs::write(format!("/proc/{pid}/oom_score_adj"), FIRST)
        .map_err(|e| setup_error(format!("write oom_score_adj {FIRST:?}"), &e))
}

fn setup_error(step: String, error: &std::io::Error) -> SetupError {
    SetupError::from_io(Layer::Limits, step, error)
}

/// The folder of this process's group.
fn own_group() -> anyhow::Result<PathBuf> {
    // Not /proc/self: that is the main thread's view, which has become the children's.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").context("mountinfo")?;
    let (root, point) = mounts
        .lines()
        .find_map(cgroup2_mount)
        .context("no cgroup v2 file system is mounted")?;
    let groups = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let own = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .context("this process is in no cgroup v2 group")?;
    let own = Path::new(own)
        .strip_prefix(root)
        .with_context(|| format!("the group {own} is outside of what is mounted"))?;
    Ok(if own.as_os_str().is_empty() {
        point
    } else {
        point.join(own)
    })
}

/// Root and place of a line of mountinfo, if it is of a cgroup v2 file system
/// (`proc_pid_mountinfo(5)`).
fn cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (fields, file_system) = line.split_once(" - ")?;
    if !file_system.starts_with("cgroup2 ") {
        return None;
    }
    let mut fields = fields.split(' ').skip(3);
    Some((fields.next()?.into(), fields.next()?.into()))
}

fn lock(folder: &Path) -> Option<Flock<File>> {
    let folder = File::open(folder).ok()?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).ok()
}

/// What hosts left behind that were killed. A folder whose host lives is locked.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b"pyspawner-") && lock(&entry.path()).is_some() {
            // Its jobs have ended with it; what has not is ended.
            write(&entry.path(), "cgroup.kill", "1").unwrap_or_else(|e| log::debug!("{e}"));
            remove_tree(&entry.path());
        }
    }
}

/// Removes a group and those in it, deepest first, as far as they are empty.
fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(folder) {
        log::debug!("rmdir {}: {error}", folder.display());
    }
}

fn has_processes(group: &Path) -> anyhow::Result<bool> {
    Ok(!read(group, "cgroup.procs")?.is_empty())
}

/// The parent of a process (`proc_pid_status(5)`).
fn parent_of(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(parent.trim().to_owned())
}

fn is_this_program(pid: &str) -> bool {
    // By the file: the host's has a mount of its own (`crate::launcher::execute`), and so another name.
    let program = |pid: &str| FileId::at(format!("/proc/{pid}/exe"));
    program(pid).is_ok_and(|exe| program("self").is_ok_and(|own| own == exe))
}

fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    open(path, flags, nix::sys::stat::Mode::empty())
}

fn read(folder: &Path, file: &str) -> anyhow::Result<String> {
    fs::read_to_string(folder.join(file)).with_context(|| format!("read {file}"))
}

fn write(folder: &Path, file: &str, text: &str) -> anyhow::Result<()> {
    fs::write(folder.join(file), text).with_context(|| format!("write {file} {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found() {
        let line = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";
        let found = cgroup2_mount(line).expect("a cgroup2 mount");
        assert_eq!(found, ("/".into(), "/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_mount("30 23 0:26 / /x rw - cgroup cgroup rw"), None);
    }

    #[test]
    fn limits_become_settings() {
        let limits = Limits {
            memory: Some(64 << 20),
            cpu: Some(0.2),
            pids: 32,
            ..Limits::default()
        };
        let settings = settings(&limits);
        for expected in [
            ("pids.max", "32"),
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("cpu.max", "20000 100000"),
        ] {
            assert!(
                settings
                    .iter()
                    .any(|(file, value)| (*file, value.as_str()) == expected),
                "{settings:?}"
            );
        }
    }
}
