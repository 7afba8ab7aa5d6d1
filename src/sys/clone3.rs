//! `clone3(2)`, without the C library's knowledge.
//!
//! Runs on: any process.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::{check, thread_id};

/// The two sides of a successful clone.
pub(crate) enum Side {
    /// In the clone itself.
    Child,
    /// In the caller: the child's process id in the caller's PID namespace, and its pidfd.
    Parent { pid: libc::pid_t, pidfd: OwnedFd },
}

/// Why the calling thread's state cannot be known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ThreadStateError {
    #[error("{call}: {errno}; hint: this kernel lacks CONFIG_CHECKPOINT_RESTORE")]
    Call { call: &'static str, errno: Errno },
    #[error(
        "the C library keeps the thread's id where it was not found, so a clone could not be given \
         its own; hint: pyspawner knows glibc 2.34 to 2.43"
    )]
    ThreadId,
}

/// What the C library keeps in its thread descriptor about the calling thread, which
/// `fork(3)` renews in the child and a bare `clone3` does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadState {
    tid_address: usize,
    robust_list: usize,
    robust_list_len: usize,
}

impl ThreadState {
    /// Reads the calling thread's state from the kernel.
    ///
    /// Source: `PR_GET_TID_ADDRESS(2const)` (needs `CONFIG_CHECKPOINT_RESTORE`),
    /// `get_robust_list(2)`.
    pub(crate) fn of_this_thread() -> Result<Self, ThreadStateError> {
        let call = |call| move |errno| ThreadStateError::Call { call, errno };
        let mut cleared: u64 = 0;
        let mut robust_list: usize = 0;
        let mut robust_list_len: usize = 0;
        // SAFETY: writes one word to the address given, which is valid for writes.
        check(unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut cleared, 0, 0, 0) }.into())
            .map_err(call("prctl(PR_GET_TID_ADDRESS)"))?;
        // SAFETY: writes one word to each address given, both valid for writes.
        check(unsafe {
            libc::syscall(
                libc::SYS_get_robust_list,
                0,
                &raw mut robust_list,
                &raw mut robust_list_len,
            )
        })
        .map_err(call("get_robust_list"))?;
        Ok(Self {
            tid_address: thread_id::cached_at(cleared as usize)
                .ok_or(ThreadStateError::ThreadId)?,
            robust_list,
            robust_list_len,
        })
    }

    /// Registers the robust futex list again, in the child: the kernel clears it at a
    /// clone (`set_robust_list(2)`), and robust mutexes would go unnoticed at death.
    pub(crate) fn restore_robust_list(&self) -> Result<(), Errno> {
        // SAFETY: the head lives in this thread's descriptor, which the clone copied.
        unsafe {
            check(libc::syscall(
                libc::SYS_set_robust_list,
                self.robust_list,
                self.robust_list_len,
            ))?;
        }
        Ok(())
    }
}

/// Where a clone is born, if not where its parent is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Birth {
    /// The process id it shall have (`clone(2)`, `set_tid`).
    pub pid: Option<libc::pid_t>,
    /// The folder of the control group it shall be in (`clone(2)`, `CLONE_INTO_CGROUP`).
    pub cgroup: Option<RawFd>,
    /// What its parent is sent at its end. With 0 the kernel keeps its status whatever the parent does at SIGCHLD,
    /// and only a wait with `__WALL` finds it: no `wait(2)` for any child does (`do_notify_parent` and
    /// `eligible_child` in the kernel). A program that it executes has SIGCHLD again.
    pub exit_signal: i32,
}

/// Beyond the 32 bits that `libc` gives clone flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones the calling process with `flags` (`CLONE_NEW*`) and `CLONE_PIDFD`. The thread id that glibc caches is renewed by the kernel
/// (`CLONE_CHILD_SETTID`) at the address found in `thread`.
///
/// Source: `clone(2)`.
///
/// # Safety
/// The child has one thread and a copy of every lock of this process. The caller must
/// make sure that no other thread holds a lock that the child will take, and must run the
/// fork handlers on both sides.
pub(crate) unsafe fn clone3(flags: u64, thread: &ThreadState, birth: Birth) -> Result<Side, Errno> {
    let mut pidfd: RawFd = -1;
    let tids = [birth.pid.unwrap_or(0)];
    let args = libc::clone_args {
        flags: flags
            | libc::CLONE_PIDFD as u64
            | libc::CLONE_CHILD_SETTID as u64
            | libc::CLONE_CHILD_CLEARTID as u64
            | birth.cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: (&raw mut pidfd) as u64,
        child_tid: thread.tid_address as u64,
        parent_tid: 0,
        exit_signal: birth.exit_signal as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: if birth.pid.is_some() {
            tids.as_ptr() as u64
        } else {
            0
        },
        set_tid_size: birth.pid.is_some().into(),
        cgroup: birth.cgroup.unwrap_or(0) as u64,
    };
    // SAFETY: `args` is valid for its size; without CLONE_VM the child runs on its own copy
    // of this stack, so returning from here twice is what fork(2) does too.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    Ok(Side::Parent {
        pid: pid as libc::pid_t,
        // SAFETY: the kernel has just stored a new descriptor here that nobody else knows.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}
