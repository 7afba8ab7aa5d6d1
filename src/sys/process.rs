//! Processes: pidfds, exit statuses with their resource use, `prctl` switches.
//!
//! Runs on: any process.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;

use super::{check, files};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Signaled(i32),
    /// Nobody knows: it executed a program, whose exit signal is SIGCHLD again, and in the host a preloaded module's
    /// hook had just ignored that, or waited for any child.
    Lost,
}

impl Reaped {
    /// Of a process whose status was lost.
    pub(crate) const LOST: Self = Self {
        ending: Ending::Lost,
        cpu: Duration::ZERO,
        max_rss: 0,
    };
}

/// A reaped process: how it ended and what it used, its own waited-for children included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    pub ending: Ending,
    pub cpu: Duration,
    /// `ru_maxrss` in bytes.
    pub max_rss: u64,
}

/// Reaps the process behind a pidfd, whatever its exit signal; `None` if it still runs.
///
/// Source: `waitid(2)`; the raw system call takes a fifth argument, `struct rusage *`.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<Reaped>, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both structures are valid for writes; all-zero is a valid value of each, which
    // WNOHANG leaves as it is when there is nothing to reap.
    let (info, usage) = unsafe {
        check(libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOHANG | libc::__WALL,
            usage.as_mut_ptr(),
        ))?;
        (info.assume_init(), usage.assume_init())
    };
    // SAFETY: for waitid the kernel fills in the SIGCHLD fields, or leaves zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let ending = if info.si_code == libc::CLD_EXITED {
        Ending::Exited(status)
    } else {
        Ending::Signaled(status)
    };
    let micros = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    Ok(Some(Reaped {
        ending,
        cpu: Duration::from_micros(micros(usage.ru_utime) + micros(usage.ru_stime)),
        max_rss: usage.ru_maxrss as u64 * 1024,
    }))
}

/// Sends a signal through a pidfd: never to another process that got the same number
/// (`pidfd_send_signal(2)`). A process that has already ended is not an error.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: plain integers and a null siginfo, which means "as kill(2) does".
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    });
    match result {
        Err(Errno::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Whether a signal is ignored, as `nohup` and shells arrange it for what they start.
pub(crate) fn is_ignored(signal: i32) -> Result<bool, Errno> {
    Ok(Disposition::of(signal)?.is_ignored())
}

/// Gives SIGCHLD its default action: ignored, as some parents leave it, children would be
/// reaped by the kernel and their status lost (`sigaction(2)`).
pub(crate) fn keep_child_statuses() {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// What a process does at a signal (`sigaction(2)`).
#[derive(Clone, Copy)]
pub(crate) struct Disposition(libc::sigaction);

impl Disposition {
    /// The present one.
    pub(crate) fn of(signal: libc::c_int) -> Result<Self, Errno> {
        // SAFETY: all-zero is a valid sigaction, which a null action only fills in.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            check(libc::sigaction(signal, std::ptr::null(), &raw mut action).into())?;
            Ok(Self(action))
        }
    }

    /// Has the process do so at a signal, as it once did.
    pub(crate) fn set(&self, signal: libc::c_int) -> Result<(), Errno> {
        // SAFETY: it was read from the kernel, and a handler is code of a library that stays loaded.
        let done = unsafe { libc::sigaction(signal, &raw const self.0, std::ptr::null_mut()) };
        check(done.into()).map(drop)
    }

    fn is_ignored(&self) -> bool {
        self.0.sa_sigaction == libc::SIG_IGN
    }
}

impl PartialEq for Disposition {
    fn eq(&self, other: &Self) -> bool {
        let Self(one) = self;
        let Self(other) = other;
        (one.sa_sigaction, one.sa_flags) == (other.sa_sigaction, other.sa_flags)
    }
}

/// Gives SIGCHLD its default action if its present one has the kernel reap children by itself (SIG_IGN,
/// SA_NOCLDWAIT: their status would be lost), and returns that.
pub(crate) fn take_child_statuses() -> Result<Option<Disposition>, Errno> {
    let present = Disposition::of(libc::SIGCHLD)?;
    let loses = present.is_ignored() || present.0.sa_flags & libc::SA_NOCLDWAIT != 0;
    if loses {
        keep_child_statuses();
    }
    Ok(loses.then_some(present))
}

/// Waits so long for any signal (all must be blocked): its number, and whether the kernel sent it, as it
/// does for a key at the terminal (`sigtimedwait(2)`, `SI_KERNEL`).
///
/// # Errors
/// EAGAIN if none has come.
pub(crate) fn wait_for_signal(patience: Duration) -> Result<(i32, bool), Errno> {
    let patience = TimeSpec::from_duration(patience);
    // SAFETY: the structures are plain data, filled in before they are read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        let signal = libc::sigtimedwait(&raw const set, &raw mut info, patience.as_ref());
        let signal = check(signal.into())?;
        Ok((signal as i32, info.si_code == libc::SI_KERNEL))
    }
}

/// `unshare(2)` of the calling thread.
pub(crate) fn unshare(flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: plain integer; what it may unshare is this thread's own.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Gives the calling thread a table of descriptors of its own, with those of `kept` and the standard
/// streams (`unshare(2)`, CLONE_FILES; `close_range(2)`). Other threads keep the table as it is.
///
/// # Safety
/// No owner of another descriptor may be used or dropped on this thread, or on one that it starts.
pub(crate) unsafe fn own_descriptors(kept: &[RawFd]) -> Result<(), Errno> {
    unshare(libc::CLONE_FILES)?;
    let streams = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];
    files::close_all_but(&mut [&streams, kept].concat())
}

/// A descriptor of a child of this process that nobody has reaped (`pidfd_open(2)`).
pub(crate) fn open_pidfd(child: libc::pid_t) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers; the descriptor is new, and close-on-exec.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, child, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Has core dumps of this process, and of those that are cloned from it from now on, hold no memory (`core(5)`).
///
/// # Errors
/// Of opening, writing and reading `/proc/self/coredump_filter`; InvalidData if it does not hold what was written.
pub(crate) fn keep_memory_from_core_dumps() -> std::io::Result<()> {
    const FILTER: &str = "/proc/self/coredump_filter";
    match std::fs::write(FILTER, "0") {
        // A kernel without core dumps (CONFIG_ELF_CORE).
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    let kept = std::fs::read_to_string(FILTER)?;
    match kept.trim().bytes().all(|digit| digit == b'0') {
        true => Ok(()),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// `setns(2)`: the calling thread enters the namespace of this type behind a descriptor.
pub(crate) fn setns(namespace: RawFd, kind: libc::c_int) -> Result<(), Errno> {
    // SAFETY: plain integers; a wrong descriptor is EBADF or EINVAL.
    check(unsafe { libc::setns(namespace, kind) }.into()).map(drop)
}

/// The version of the kernel's Landlock (`landlock_create_ruleset(2)`,
/// `LANDLOCK_CREATE_RULESET_VERSION`).
pub(crate) fn landlock_abi() -> Result<i64, Errno> {
    const VERSION: libc::c_int = 1;
    // SAFETY: with this flag the attribute is null and its size 0.
    check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0,
            VERSION,
        )
    })
}

/// `prctl(2)` with integer arguments.
pub(crate) fn prctl(option: libc::c_int, argument: libc::c_ulong) -> Result<i64, Errno> {
    // SAFETY: used only with options whose arguments are integers.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into())
}

/// Leaves the process at once: no destructor, no atexit handler, no flush.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: always sound; _exit(2) does not return.
    unsafe { libc::_exit(status) }
}

/// Replaces the process by the program behind `program` with exactly these arguments
/// and environment (`execveat(2)`, `AT_EMPTY_PATH`). Returns only on failure.
pub(crate) fn execute(
    program: RawFd,
    arguments: &[&std::ffi::CStr],
    environment: &[std::ffi::CString],
) -> Errno {
    let argv: Vec<*const libc::c_char> = arguments
        .iter()
        .map(|argument| argument.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let envp: Vec<*const libc::c_char> = environment
        .iter()
        .map(|variable| variable.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    // SAFETY: both vectors are null-terminated arrays of C strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Errno::last()
}
