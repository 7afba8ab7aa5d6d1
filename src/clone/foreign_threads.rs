//! The threads that preloaded modules started, and the proof that they slept.
//!
//! Runs on: the main thread.
//!
//! A clone copies the locks that other threads hold, and the child would wait for them for
//! ever. A thread that waits for others in a system call holds none of the C library's that a child
//! could not release. That it was so at the very moment of the clone is shown afterwards: if a
//! thread is in the same system call as before and was not scheduled in between, it did not
//! run. (`proc_pid_syscall(5)`, `proc_pid_status(5)`: context switches.)

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

use super::CloneError;
use super::scratch::Scratch;
use super::thread_code::CodeMap;
use crate::sys::descriptors::borrow;
use crate::sys::files::read_whole;

/// More than any of a thread's files has: `status` names up to some thousand groups.
const MOST: usize = 64 << 10;

/// System calls in which a thread waits for others. Of the C library's locks, whoever waits there holds at most a
/// stream's, which children release ([`crate::sys::stdio::renew_locks`]), as `fork(3)` does. A lock of its own library's it may
/// hold, as beside `fork(3)`.
const WAITING_CALLS: &[libc::c_long] = &[
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_flock,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_io_getevents,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

/// The same, if their descriptor is no file: the loader and the resolver read files with locks held.
const TRANSFERS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Whether a line of `/proc/PID/task/TID/syscall` shows a thread that waits for others.
fn is_waiting(call: &str) -> bool {
    let mut words = call.split(' ');
    let Some(number) = words.next().and_then(|number| number.parse().ok()) else {
        return false; // running, or in no call
    };
    if WAITING_CALLS.contains(&number) {
        return true;
    }
    let descriptor = words.next().and_then(|word| word.strip_prefix("0x"));
    let descriptor = descriptor.and_then(|hex| RawFd::from_str_radix(hex, 16).ok());
    TRANSFERS.contains(&number) && descriptor.is_some_and(is_no_file)
}

/// Whether reading it waits for somebody, rather than for a disk. Threads of preloaded modules share this thread's table.
fn is_no_file(number: RawFd) -> bool {
    // SAFETY: if it is closed meanwhile, it cannot be looked at.
    let kind = fstat(unsafe { borrow(number) }).map(|status| status.st_mode & libc::S_IFMT);
    matches!(kind, Ok(libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | 0))
}

/// A thread that a preloaded module started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignThread {
    pub tid: libc::pid_t,
    /// The name it gave itself.
    pub name: String,
    /// The library whose code it runs, if that is not Python's or the C library's.
    pub library: Option<String>,
}

/// A thread as it was seen asleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sleeper {
    tid: libc::pid_t,
    /// The line of `/proc/self/task/TID/syscall`: number, arguments, stack, instruction.
    call: String,
    switches: String,
}

pub(crate) struct ForeignThreads {
    /// `/proc/self/task`, kept open: the path is gone once the root has been changed.
    tasks: OwnedFd,
    own: Vec<libc::pid_t>,
    /// The foreign ones when they were last listed.
    listed: RefCell<Vec<libc::pid_t>>,
    scratch: Scratch,
}

impl ForeignThreads {
    /// All threads but the calling one and those in `own`.
    pub(crate) fn new(own: &[libc::pid_t]) -> io::Result<Self> {
        let tasks = std::fs::File::open("/proc/self/task")?.into();
        let mut own = own.to_vec();
        own.push(nix::unistd::gettid().as_raw());
        let scratch = Scratch::new(MOST)?;
        Ok(Self {
            tasks,
            own,
            listed: RefCell::default(),
            scratch,
        })
    }

    /// Shows that every foreign thread waits in a system call that holds no lock. The
    /// inner error names the first that does not.
    pub(crate) fn asleep(&self) -> Result<Result<Vec<Sleeper>, CloneError>, CloneError> {
        if !self.are_as_many_as_listed().map_err(CloneError::Threads)? {
            self.list().map_err(CloneError::Threads)?;
        }
        let tids = self.listed.borrow().clone();
        let mut sleepers = Vec::with_capacity(tids.len());
        for tid in tids {
            // Order matters to `still`: the count of switches is read last here, first there.
            let Some((call, switches)) = self.observe(tid).map_err(CloneError::Threads)? else {
                // It has ended, and perhaps another has begun: list them anew the next time.
                self.listed.borrow_mut().clear();
                return Ok(Err(self.busy(tid, "it has ended")));
            };
            if !is_waiting(&call) {
                return Ok(Err(self.busy(tid, &call)));
            }
            sleepers.push(Sleeper {
                tid,
                call,
                switches,
            });
        }
        Ok(Ok(sleepers))
    }

    /// Shows, after a clone, that the threads seen asleep before it did not run since and
    /// that there are no others.
    pub(crate) fn still(&self, before: &[Sleeper]) -> Result<Result<(), CloneError>, CloneError> {
        let now = match self.asleep()? {
            Ok(now) => now,
            Err(busy) => return Ok(Err(busy)),
        };
        if now == before {
            return Ok(Ok(()));
        }
        let ran = now.iter().find(|sleeper| !before.contains(sleeper));
        let tid = ran.or(before.first()).map_or(0, |sleeper| sleeper.tid);
        Ok(Err(self.busy(tid, "it ran while the clone was made")))
    }

    /// The foreign threads, each with the library that it runs.
    ///
    /// # Errors
    /// If threads or mappings cannot be read.
    pub(crate) fn describe(&self) -> io::Result<Vec<ForeignThread>> {
        self.list()?;
        let tids = self.listed.borrow();
        let code = match tids.is_empty() {
            true => None,
            false => Some(CodeMap::read()?),
        };
        let described = tids.iter().map(|&tid| {
            let call = self.read(tid, "syscall").ok().flatten();
            ForeignThread {
                tid,
                name: self.name(tid),
                library: code
                    .as_ref()
                    .zip(call)
                    .and_then(|(code, call)| code.library_of(&call)),
            }
        });
        Ok(described.collect())
    }

    /// With as many threads as before, and all of those there still, there is no other.
    fn are_as_many_as_listed(&self) -> io::Result<bool> {
        // proc(5) does not say so, but the link count of a task folder has been its threads
        // plus two since 2.6 (`proc_task_getattr`).
        let count = fstat(&self.tasks)?.st_nlink as usize;
        Ok(count == self.own.len() + self.listed.borrow().len() + 2)
    }

    fn list(&self) -> io::Result<()> {
        let folder = openat(
            &self.tasks,
            ".",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut tids = Vec::new();
        for entry in Dir::from_fd(folder)?.iter() {
            let tid = entry?
                .file_name()
                .to_str()
                .ok()
                .and_then(|n| n.parse().ok());
            tids.extend(tid.filter(|tid| !self.own.contains(tid)));
        }
        *self.listed.borrow_mut() = tids;
        Ok(())
    }

    fn observe(&self, tid: libc::pid_t) -> io::Result<Option<(String, String)>> {
        let Some(call) = self.read(tid, "syscall")? else {
            return Ok(None);
        };
        let Some(status) = self.read(tid, "status")? else {
            return Ok(None);
        };
        let switches = status
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .collect();
        Ok(Some((call.trim_end().to_owned(), switches)))
    }

    fn read(&self, tid: libc::pid_t, file: &str) -> io::Result<Option<String>> {
        let mut buffer = self.scratch.borrow();
        match read_whole(self.tasks.as_fd(), &format!("{tid}/{file}"), &mut buffer) {
            Ok(content) => Ok(Some(String::from_utf8_lossy(content).into_owned())),
            Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn name(&self, tid: libc::pid_t) -> String {
        let name = self.read(tid, "comm").ok().flatten();
        name.map_or_else(|| "?".to_owned(), |name| name.trim_end().to_owned())
    }

    fn busy(&self, tid: libc::pid_t, state: &str) -> CloneError {
        let number = state.split(' ').next().and_then(|word| word.parse().ok());
        CloneError::BusyThread {
            name: self.name(tid),
            tid,
            state: match number {
                Some(number) => format!("it was in {}", call_name(number)),
                None if state == "running" => "it was running".to_owned(),
                None => state.to_owned(),
            },
        }
    }
}

fn call_name(number: i32) -> String {
    let call = libseccomp::ScmpSyscall::from(number);
    call.get_name().map_or_else(
        |_| format!("system call {number}"),
        |name| format!("{name}(2)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_others_is_told_from_who_reads_a_file() {
        let (pipe, _other) = nix::unistd::pipe().expect("a pipe");
        let file = std::fs::File::open("/proc/self/exe").expect("a file");
        let read = |number: RawFd| format!("{} {number:#x} 0x7f00", libc::SYS_read);
        assert!(is_waiting(&read(std::os::fd::AsRawFd::as_raw_fd(&pipe))));
        assert!(!is_waiting(&read(std::os::fd::AsRawFd::as_raw_fd(&file))));
        assert!(is_waiting(&format!("{} 0x3 0x0", libc::SYS_recvfrom)));
        for call in [
            "running",
            "-1 0x7f00 0x0",
            &format!("{} 0x0", libc::SYS_mmap),
        ] {
            assert!(!is_waiting(call), "{call}");
        }
    }
}
