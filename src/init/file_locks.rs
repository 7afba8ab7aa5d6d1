//! Ends jobs that hold locks on files by the thousand.
//!
//! Runs on: the init.
//!
//! A process may lock any number of ranges of a file that it can only read (`fcntl_locking(2)`). No limit counts them: RLIMIT_LOCKS
//! is of Linux 2.4, and the memory, some 200 bytes each, is charged to no control group (kernel commit 3754707bcc3e took that back).
//! And whoever locks or closes that file, on the whole machine, waits while the kernel walks through all of them.
//!
//! The kernel lists them only all together, in an order that is of no help, and holds up everybody's locks while it does. So
//! the init asks for the list only when the kernel's own memory has grown.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;

use anyhow::Context;

use crate::sys::{memory, process, process_tree};

/// How many locks the processes of a job may hold together. Data bases take some dozens.
const MOST: usize = 4096;
/// How much the kernel's memory grows before the list is looked at, in bytes: some 10,000 locks.
const STEP: u64 = 2 << 20;
/// How much of the list is read, in bytes: some 16,000 locks, the newest of each processor first. Who holds more is in there.
const MOST_READ: u64 = 1 << 20;

/// Looks at the locks of a host's jobs from time to time.
pub(super) struct FileLocks {
    host: libc::pid_t,
    /// The kernel's memory at the last look, or at its lowest since, in bytes.
    before: u64,
    has_failed: bool,
}

impl FileLocks {
    pub(super) fn of_jobs_of(host: libc::pid_t) -> Self {
        Self {
            host,
            before: 0,
            has_failed: false,
        }
    }

    /// Ends each job that holds too many.
    pub(super) fn look(&mut self) {
        match self.try_look() {
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                log(&format!(
                    "nobody looks how many locks on files jobs hold: {error:#}"
                ));
            }
            _ => {}
        }
    }

    fn try_look(&mut self) -> anyhow::Result<()> {
        let now = kernel_memory()?;
        self.before = self.before.min(now);
        if now < self.before + STEP {
            return Ok(());
        }
        let list = std::fs::File::open("/proc/locks").context("open /proc/locks")?;
        let holders = holders(BufReader::new(list.take(MOST_READ)))?;
        // Of what was behind theirs in the list, more is seen next time.
        self.before = match self.end_jobs(&holders) {
            0 => now,
            _ => 0,
        };
        Ok(())
    }

    /// How many it has ended.
    fn end_jobs(&self, holders: &HashMap<libc::pid_t, usize>) -> usize {
        let mut jobs: HashMap<libc::pid_t, usize> = HashMap::new();
        if holders.values().sum::<usize>() > MOST {
            for (process, locks) in holders {
                if let Some(job) = self.job_of(*process) {
                    *jobs.entry(job).or_default() += locks;
                }
            }
        }
        let too_many = jobs.into_iter().filter(|(_, locks)| *locks > MOST);
        too_many
            .filter(|(job, locks)| self.end(*job, *locks))
            .count()
    }

    /// The first process of the job that a process is of: a child of the host, or one that has come to the init.
    fn job_of(&self, process: libc::pid_t) -> Option<libc::pid_t> {
        let mut process = process;
        loop {
            if process == self.host {
                return None;
            }
            let parent = process_tree::parent(process)?;
            if self.is_ours(parent) {
                return Some(process);
            }
            process = parent;
        }
    }

    fn is_ours(&self, parent: libc::pid_t) -> bool {
        parent == self.host || parent == std::process::id() as libc::pid_t
    }

    fn end(&self, job: libc::pid_t, locks: usize) -> bool {
        let Ok(pidfd) = process::open_pidfd(job) else {
            return false; // it has ended
        };
        // The number may be another process's by now.
        if !process_tree::parent(job).is_some_and(|parent| self.is_ours(parent)) {
            return false;
        }
        let ended = process::signal(pidfd.as_fd(), libc::SIGKILL);
        match ended {
            Ok(()) => log(&format!(
                "child {job} holds {locks} locks on files or more: it is ended, since they take memory that no limit counts"
            )),
            Err(errno) => log(&format!(
                "child {job} holds {locks} locks on files or more, and cannot be ended: pidfd_send_signal: {errno}"
            )),
        }
        ended.is_ok()
    }
}

fn log(text: &str) {
    crate::failure::print_warning(text);
}

/// The memory that the kernel has for small objects and cannot give back at will, in bytes (`proc_meminfo(5)`).
fn kernel_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    memory::field(&text, "SUnreclaim").context("/proc/meminfo has no SUnreclaim")
}

/// How many locks each process holds or waits for (`proc_locks(5)`). While others take locks, the kernel lists some twice.
fn holders(list: impl BufRead) -> anyhow::Result<HashMap<libc::pid_t, usize>> {
    let mut seen = HashSet::new();
    let mut holders = HashMap::new();
    for line in list.lines() {
        let line = line.context("read /proc/locks")?;
        // Its place in the list, then what tells it from others: POSIX or FLOCK, ADVISORY, READ or WRITE, process, file, range.
        let Some((_, lock)) = line.split_once(' ') else {
            continue;
        };
        let mut words = lock.split_whitespace().filter(|word| *word != "->");
        // The last line may have been cut off.
        if let Some(process) = words.nth(3).and_then(|word| word.parse().ok())
            && seen.insert(lock.to_owned())
        {
            *holders.entry(process).or_default() += 1;
        }
    }
    Ok(holders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_counted_by_process() {
        let list = "1: POSIX  ADVISORY  READ 12 fd:01:7 0 EOF\n\
                    1: -> POSIX  ADVISORY  WRITE 13 fd:01:7 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 12 fd:01:8 0 EOF\n\
                    3: POSIX  ADVISORY  READ 12 fd:01:7 0 EOF\n\
                    4: POSIX  ADVI";
        let found = holders(list.as_bytes()).expect("reads");
        assert_eq!(found, HashMap::from([(12, 2), (13, 1)]));
    }

    #[test]
    fn a_process_is_of_the_job_that_it_descends_from() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & exec sleep 60"])
            .spawn()
            .expect("a shell");
        let first = shell.id() as libc::pid_t;
        let locks = FileLocks::of_jobs_of(std::process::id() as libc::pid_t);
        assert_eq!(locks.job_of(first), Some(first));
        let inner = loop {
            let found = process_tree::below(first).find(|pid| *pid != first);
            if let Some(inner) = found {
                break inner;
            }
            std::thread::yield_now();
        };
        assert_eq!(locks.job_of(inner), Some(first));
        assert_eq!(locks.job_of(1), None);
        assert_eq!(locks.job_of(locks.host), None);
        for pid in [inner, first] {
            let pidfd = process::open_pidfd(pid).expect("it is there");
            process::signal(pidfd.as_fd(), libc::SIGKILL).expect("our own");
        }
        shell.wait().expect("it was started here");
    }
}
