//! Cloning the host: one `clone3(2)` that leaves both sides in a state in which any
//! code may run.
//!
//! `fork(3)` cannot give namespaces or a pidfd, so what it does around the system call is
//! done here: Python's hooks, the registered `pthread_atfork` handlers, the thread id that
//! glibc caches, the robust list. And since a clone copies locks in whatever state they
//! are, no lock of this process may be held by another thread at that moment: see
//! [`clone_lock`] for the host's own thread and [`foreign_threads`] for all others.

pub mod clone_lock;
pub mod foreign_threads;
pub mod fork_protocol;
pub mod network_namespace;
pub mod private_memory;
mod scratch;
pub mod warm_image;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pyo3::prelude::*;

use crate::sandbox::SetupError;
use crate::sys::clone3::{Birth, Side, ThreadState, ThreadStateError, clone3};
use crate::sys::process;
use foreign_threads::ForeignThreads;
use network_namespace::Home;

/// How long a clone waits for the threads of preloaded modules to fall asleep.
const PATIENCE: Duration = Duration::from_millis(500);

/// The exit status of a clone in which the C library's state could not be renewed.
const NOT_A_WHOLE_CLONE: i32 = 125;

/// Why a clone could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    #[error(
        "clone3(flags {flags:#x}): {errno}{}",
        hint(*errno)
    )]
    Clone { flags: u64, errno: Errno },
    #[error(transparent)]
    ThreadState(#[from] ThreadStateError),
    #[error(
        "thread {name:?} (tid {tid}) of a preloaded module did not stay asleep during the clone \
         ({state}); hint: stop it in a before_clone hook, or do not start it while preloading"
    )]
    BusyThread {
        name: String,
        tid: libc::pid_t,
        state: String,
    },
    #[error("looking at the threads of this process in /proc/self/task: {0}")]
    Threads(std::io::Error),
    #[error(transparent)]
    NetworkNamespace(#[from] SetupError),
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => {
            "; hint: creating user namespaces must be permitted (in Docker: --security-opt \
             seccomp=unconfined)"
        }
        Errno::ENOSPC => {
            "; hint: a limit on namespaces is reached, see /proc/sys/user/max_*_namespaces"
        }
        Errno::EAGAIN => "; hint: a limit on processes is reached (RLIMIT_NPROC, pids.max)",
        Errno::EINVAL => "; hint: a namespace type is missing from this kernel",
        _ => "",
    }
}

/// Makes clones of the calling thread's process.
pub struct Cloner {
    thread: ThreadState,
    foreign: ForeignThreads,
    /// `None`: this thread could not come back from another network namespace.
    home: Option<Home>,
}

impl Cloner {
    /// `own_threads` are the threads besides the calling one that follow the rules of
    /// [`clone_lock`]. The calling thread is the only one that may clone later.
    pub fn new(own_threads: &[libc::pid_t]) -> Result<Self, CloneError> {
        Ok(Self {
            thread: ThreadState::of_this_thread()?,
            foreign: ForeignThreads::new(own_threads).map_err(CloneError::Threads)?,
            home: Home::find()
                .inspect_err(|errno| {
                    log::info!("each child's network namespace is made anew: {errno}");
                })
                .ok(),
        })
    }

    /// The threads that neither this project nor the main program started.
    pub fn foreign_threads(&self) -> Result<Vec<foreign_threads::ThreadName>, CloneError> {
        self.foreign.names().map_err(CloneError::Threads)
    }

    /// Makes a network namespace for clones to be born into; `None` if that is not possible here.
    pub fn make_network_namespace(&self) -> Result<Option<OwnedFd>, SetupError> {
        self.home.as_ref().map(Home::make_namespace).transpose()
    }

    /// Whether a network namespace that a clone had is as it was when it was new.
    pub fn is_as_new(&self, network: RawFd) -> bool {
        self.home
            .as_ref()
            .is_some_and(|home| home.is_as_new(network))
    }

    /// Clones this process, into the control group of that folder and into that network namespace,
    /// if these are named. In the child, all fork handlers have run when this returns.
    ///
    /// The parent's answer may come after the child has started to run, so the child must
    /// wait for the host's word before it does anything that matters: a clone during which
    /// a foreign thread ran is killed here and made again.
    pub fn clone_host(
        &self,
        _attached: Python<'_>,
        flags: u64,
        cgroup: Option<RawFd>,
        network: Option<RawFd>,
    ) -> Result<Side, CloneError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // SAFETY: this thread holds the GIL, as the hooks of fork(2) require.
            unsafe { pyo3::ffi::PyOS_BeforeFork() };
            fork_protocol::prepare();
            let attempt = self.clone_once(flags, cgroup, network);
            match attempt {
                Ok(Attempt::Child) => {
                    private_memory::forget_in_child();
                    warm_image::in_child();
                    fork_protocol::after_in_child();
                    if let Err(errno) = self.thread.restore_robust_list() {
                        // Robust mutexes would not be released at this child's death.
                        log::error!("set_robust_list in a clone: {errno}");
                        process::exit_now(NOT_A_WHOLE_CLONE);
                    }
                    // SAFETY: as PyOS_BeforeFork; the child's only thread.
                    unsafe { pyo3::ffi::PyOS_AfterFork_Child() };
                    return Ok(Side::Child);
                }
                parent => {
                    fork_protocol::after_in_parent();
                    // SAFETY: as PyOS_BeforeFork.
                    unsafe { pyo3::ffi::PyOS_AfterFork_Parent() };
                    match parent? {
                        Attempt::Made(side) => return Ok(side),
                        Attempt::Disturbed(busy) if Instant::now() > deadline => {
                            return Err(busy);
                        }
                        // The thread needs the processor to reach its next sleep.
                        _ => std::thread::sleep(Duration::from_micros(200)),
                    }
                }
            }
        }
    }

    /// Clones this process for a child that ends at once: the system call, and nothing of what makes
    /// a clone fit for use. It is what all else is measured against.
    pub fn clone_bare(
        &self,
        flags: u64,
        network: Option<RawFd>,
    ) -> Result<(libc::pid_t, OwnedFd), CloneError> {
        // SAFETY: the child takes no lock and calls nothing but _exit(2), so it needs no handlers.
        match unsafe { self.clone_into(network, flags, Birth::default()) }? {
            Side::Child => process::exit_now(0),
            Side::Parent { pid, pidfd } => Ok((pid, pidfd)),
        }
    }

    /// The system call, made in that network namespace if one is named. This thread is back when it
    /// returns in the parent.
    ///
    /// # Safety
    /// As [`clone3`].
    unsafe fn clone_into(
        &self,
        network: Option<RawFd>,
        flags: u64,
        birth: Birth,
    ) -> Result<Side, CloneError> {
        let away = self.home.as_ref().zip(network);
        if let Some((home, network)) = away {
            home.leave_for(network)?;
        }
        // SAFETY: as this function.
        let side = unsafe { clone3(flags, &self.thread, birth) };
        if let Some((home, _)) = away
            && !matches!(side, Ok(Side::Child))
        {
            home.come_back();
        }
        side.map_err(|errno| CloneError::Clone { flags, errno })
    }

    fn clone_once(
        &self,
        flags: u64,
        cgroup: Option<RawFd>,
        network: Option<RawFd>,
    ) -> Result<Attempt, CloneError> {
        let asleep = match self.foreign.asleep()? {
            Ok(asleep) => asleep,
            Err(busy) => return Ok(Attempt::Disturbed(busy)),
        };
        let birth = Birth { pid: None, cgroup };
        let side = {
            let _no_shared_state_is_in_use = clone_lock::hold();
            // SAFETY: the I/O thread is outside of everything that the clone lock guards,
            // foreign threads are shown below to have slept, and the caller runs the fork
            // handlers on both sides.
            unsafe { self.clone_into(network, flags, birth) }
        };
        let Side::Parent { pid, pidfd } = side? else {
            return Ok(Attempt::Child);
        };
        let undisturbed = self.foreign.still(&asleep);
        if !matches!(undisturbed, Ok(Ok(()))) {
            discard(&pidfd);
        }
        Ok(match undisturbed? {
            Ok(()) => Attempt::Made(Side::Parent { pid, pidfd }),
            Err(busy) => Attempt::Disturbed(busy),
        })
    }
}

enum Attempt {
    Child,
    Made(Side),
    Disturbed(CloneError),
}

/// Ends and reaps a clone that must not be used.
fn discard(pidfd: &OwnedFd) {
    process::signal(pidfd.as_fd(), libc::SIGKILL).expect("pidfd_send_signal of our own child");
    let mut poll = [nix::poll::PollFd::new(
        pidfd.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    while matches!(process::reap(pidfd.as_fd()), Ok(None)) {
        // An interrupted poll only means another look.
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE).ok();
    }
}
