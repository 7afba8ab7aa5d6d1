//! The threads that preloaded modules started, and the proof that they slept.
//!
//! A clone copies the locks that other threads hold, and the child would wait for them for
//! ever. A thread that is blocked in one of a few system calls holds none of the C
//! library's. That it was so at the very moment of the clone is shown afterwards: if a
//! thread is in the same system call as before and was not scheduled in between, it did not
//! run. (`proc_pid_syscall(5)`, `proc_pid_status(5)`: context switches.)

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

use super::CloneError;
use super::scratch::Scratch;
use crate::sys::files::read_whole;

/// More than any of a thread's files has: `status` names up to some thousand groups.
const MOST: usize = 64 << 10;

/// System calls in which a thread waits without holding a lock of the C library.
/// Not among them: reads and writes, since stdio makes them with a stream locked.
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
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];

/// A thread and the name it gave itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadName {
    pub tid: libc::pid_t,
    pub name: String,
}

/// A thread as it was seen asleep.
#[derive(Debug, PartialEq, Eq)]
pub struct Sleeper {
    tid: libc::pid_t,
    /// The line of `/proc/self/task/TID/syscall`: number, arguments, stack, instruction.
    call: String,
    switches: String,
}

pub struct ForeignThreads {
    /// `/proc/self/task`, kept open: the path is gone once the root has been changed.
    tasks: OwnedFd,
    own: Vec<libc::pid_t>,
    /// The foreign ones when they were last listed.
    listed: RefCell<Vec<libc::pid_t>>,
    scratch: Scratch,
}

impl ForeignThreads {
    /// All threads but the calling one and those in `own`.
    pub fn new(own: &[libc::pid_t]) -> io::Result<Self> {
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
    pub fn asleep(&self) -> Result<Result<Vec<Sleeper>, CloneError>, CloneError> {
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
            let number = call.split(' ').next().and_then(|n| n.parse().ok());
            if number.is_none_or(|n: libc::c_long| !WAITING_CALLS.contains(&n)) {
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
    pub fn still(&self, before: &[Sleeper]) -> Result<Result<(), CloneError>, CloneError> {
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

    /// The foreign threads by name.
    pub fn names(&self) -> io::Result<Vec<ThreadName>> {
        self.list()?;
        let tids = self.listed.borrow();
        let names = tids.iter().map(|&tid| ThreadName {
            tid,
            name: self.name(tid),
        });
        Ok(names.collect())
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
        CloneError::BusyThread {
            name: self.name(tid),
            tid,
            state: match state {
                "running" => "it is running".to_owned(),
                other => match other.split(' ').next().and_then(|n| n.parse::<i64>().ok()) {
                    Some(number) => format!("it is in system call {number}"),
                    None => other.to_owned(),
                },
            },
        }
    }
}
