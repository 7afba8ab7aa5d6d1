//! Ends jobs that hold locks on files by the thousand.
//!
//! Runs on: the init.
//!
//! A process may lock any number of ranges of a file that it can only read (`fcntl_locking(2)`). No limit counts them: RLIMIT_LOCKS
//! is of Linux 2.4, and the memory, some 200 bytes each, is charged to no control group (kernel commit 3754707bcc3e took that back).
//! And whoever locks or closes that file, on the whole machine, waits while the kernel walks through all of them.
//!
//! The kernel's list of all locks (`proc_locks(5)`) does not say whose they are: it has the process that took a lock, which may be gone while
//! an open file keeps the lock (`flock(2)`), and whose number another may have. And it holds up everybody's locks while it is read. So when
//! the kernel's own memory has grown, the init asks each job's own processes what they hold.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, Hash, RandomState};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::failure::print_warning;
use crate::sys::{memory, process, process_tree};

/// How many locks the processes of a job may hold together. Data bases take some dozens.
const MOST: usize = 4096;
/// How much the kernel's memory grows before jobs are asked, in bytes: some 10,000 locks.
const STEP: u64 = 2 << 20;
/// How much is read of what a process says of one descriptor, in bytes: some 16,000 locks.
const MOST_READ: u64 = 1 << 20;
/// How long one look at all jobs may take: the init has signals to pass on. A job can make what it says of itself long, since each
/// descriptor of a file tells all locks of that file.
const LONGEST_LOOK: Duration = Duration::from_millis(250);
/// How long jobs are not asked again if none held too many: memory grows for other reasons, too.
const REST: Duration = Duration::from_secs(5);

/// Looks at the locks of a host's jobs from time to time.
pub(super) struct FileLocks {
    host: libc::pid_t,
    /// The kernel's memory at the last look, or at its lowest since, in bytes.
    before: u64,
    /// Until when jobs are left alone.
    rests: Option<Instant>,
    has_failed: bool,
}

impl FileLocks {
    pub(super) fn of_jobs_of(host: libc::pid_t) -> Self {
        Self {
            host,
            before: 0,
            rests: None,
            has_failed: false,
        }
    }

    /// Ends each job that holds too many.
    pub(super) fn look(&mut self) {
        if let Err(error) = self.try_look()
            && !self.has_failed
        {
            self.has_failed = true;
            print_warning(&format!(
                "nobody looks how many locks on files jobs hold: {error:#}"
            ));
        }
    }

    fn try_look(&mut self) -> anyhow::Result<()> {
        let now = kernel_memory()?;
        self.before = self.before.min(now);
        let rests = self.rests.is_some_and(|end| Instant::now() < end);
        if rests || now < self.before + STEP {
            return Ok(());
        }
        self.before = now;
        let look = Look::start();
        let jobs = look.shuffled(self.jobs()).into_iter();
        let held = jobs.map(|job| (job, held_by_job(job, &look)));
        let ended = held.filter(|(job, locks)| *locks > MOST && self.end(*job, *locks));
        match ended.count() {
            0 => self.rests = Some(Instant::now() + REST),
            // There may be more, for whom memory need not grow again.
            _ => self.before = 0,
        }
        Ok(())
    }

    /// The first process of each job: the host's children, and those that have come to the init.
    fn jobs(&self) -> Vec<libc::pid_t> {
        let own = std::process::id() as libc::pid_t;
        let parents = [self.host, own].into_iter();
        let children = parents.flat_map(process_tree::children);
        children.filter(|child| *child != self.host).collect()
    }

    fn end(&self, job: libc::pid_t, locks: usize) -> bool {
        let Ok(pidfd) = process::open_pidfd(job) else {
            return false; // it has ended
        };
        // The number may be another process's by now.
        if !self.jobs().contains(&job) {
            return false;
        }
        let ended = process::signal(pidfd.as_fd(), libc::SIGKILL);
        print_warning(&match ended {
            Ok(()) => format!(
                "child {job} holds {locks} locks on files or more: it is ended, since they take memory that no limit counts"
            ),
            Err(errno) => format!(
                "child {job} holds {locks} locks on files or more, and cannot be ended: pidfd_send_signal: {errno}"
            ),
        });
        ended.is_ok()
    }
}

/// The memory that the kernel has for small objects and cannot give back at will, in bytes (`proc_meminfo(5)`).
fn kernel_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    memory::field(&text, "SUnreclaim").context("/proc/meminfo has no SUnreclaim")
}

/// A look at all jobs, within its time. What there is no time for another look may come to: it begins somewhere else.
struct Look {
    end: Instant,
    order: RandomState,
}

impl Look {
    fn start() -> Self {
        Self {
            end: Instant::now() + LONGEST_LOOK,
            order: RandomState::new(),
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() > self.end
    }

    /// In an order that nobody can foresee.
    fn shuffled<T: Hash>(&self, mut all: Vec<T>) -> Vec<T> {
        all.sort_by_cached_key(|one| self.order.hash_one(one));
        all
    }
}

/// How many locks a job's processes hold, counted until they are too many.
fn held_by_job(job: libc::pid_t, look: &Look) -> usize {
    let mut all = 0;
    for process in look.shuffled(process_tree::below(job).collect()) {
        if look.is_over() {
            break;
        }
        all += held_by_process(process, look);
        if all > MOST {
            break;
        }
    }
    all
}

/// How many locks a process holds (`proc_pid_fdinfo(5)`): the ranges that it has locked, each of which every descriptor of that
/// file tells, and the open files that it has locked.
fn held_by_process(process: libc::pid_t, look: &Look) -> usize {
    let mut ranges = HashSet::new();
    let mut open_files = 0;
    for descriptor in look.shuffled(descriptors(process)) {
        if look.is_over() {
            break;
        }
        // One that was closed meanwhile holds none.
        let Ok(info) = File::open(descriptor) else {
            continue;
        };
        for line in BufReader::new(info.take(MOST_READ)).lines() {
            match line.as_deref().map(lock) {
                Ok(Some(Lock::OpenFile)) => open_files += 1,
                Ok(Some(Lock::Range(range))) => drop(ranges.insert(range.to_owned())),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        if ranges.len() + open_files > MOST {
            break;
        }
    }
    ranges.len() + open_files
}

/// Where a process tells of its descriptors. All its threads have one table, of which those that have ended show nothing; the first
/// thread may be one of them.
fn descriptors(process: libc::pid_t) -> Vec<PathBuf> {
    let of_thread = |thread| {
        let folder = std::fs::read_dir(format!("/proc/{process}/task/{thread}/fdinfo"));
        let entries = folder.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut tables = process_tree::threads(process).into_iter().map(of_thread);
    tables.find(|table| !table.is_empty()).unwrap_or_default()
}

#[derive(Debug, PartialEq)]
enum Lock<'a> {
    /// Of a range, in words that tell it from others.
    Range(&'a str),
    OpenFile,
}

/// The lock that a line of a descriptor's tells of, as in `lock: 1: POSIX  ADVISORY  READ 12 fd:01:7 0 EOF`.
fn lock(line: &str) -> Option<Lock<'_>> {
    let (_place, words) = line.strip_prefix("lock:")?.split_once(": ")?;
    Some(match words.split_whitespace().next()? {
        "POSIX" => Lock::Range(words),
        _ => Lock::OpenFile,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_lock_is_told_from_what_else_is_said_of_a_descriptor() {
        let range = "POSIX  ADVISORY  READ 12 fd:01:7 0 EOF";
        let line = format!("lock:\t1: {range}");
        assert_eq!(lock(&line), Some(Lock::Range(range)));
        let line = "lock:\t2: FLOCK  ADVISORY  WRITE 12 fd:01:8 0 EOF";
        assert_eq!(lock(line), Some(Lock::OpenFile));
        for line in ["pos:\t0", "flags:\t0100002", "lock:", ""] {
            assert_eq!(lock(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_process_is_asked_what_it_holds() {
        let own = std::process::id() as libc::pid_t;
        let before = held_by_process(own, &Look::start());
        let file = tempfile::tempfile().expect("a file");
        let copy = file.try_clone().expect("a copy");
        let mut range = libc::flock {
            l_type: libc::F_RDLCK as _,
            l_whence: libc::SEEK_SET as _,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        for start in [0, 2, 4] {
            range.l_start = start;
            // SAFETY: the structure is valid, and the descriptor is open.
            let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const range) };
            assert_eq!(done, 0);
        }
        assert_eq!(held_by_process(own, &Look::start()), before + 3);
        drop(copy); // and with it the locks of this process
        let file = tempfile::tempfile().expect("a file");
        file.lock().expect("nobody else has it");
        assert_eq!(held_by_process(own, &Look::start()), before + 1);
    }
}
