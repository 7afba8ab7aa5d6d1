//! Cloning the host: one `clone3(2)` that leaves both sides in a state in which any
//! code may run.
//!
//! Runs on: the main thread, and a child that it has just cloned.
//!
//! `fork(3)` cannot give namespaces or a pidfd, so what it does around the system call is
//! done here: Python's hooks, the registered `pthread_atfork` handlers, the thread id that
//! glibc caches, the robust list. And since a clone copies locks in whatever state they
//! are, no lock of this process may be held by another thread at that moment: see
//! [`clone_lock`] for the host's own thread and [`foreign_threads`] for all others.

pub(crate) mod clone_lock;
pub(crate) mod foreign_threads;
pub(crate) mod fork_protocol;
pub(crate) mod inherited;
pub(crate) mod namespace_fingerprint;
pub(crate) mod network_namespace;
pub(crate) mod openmp;
pub(crate) mod private_memory;
mod scratch;
mod thread_code;
pub(crate) mod warm_image;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pyo3::prelude::*;

use crate::layer::{Layer, SetupError};
use crate::sys::clone3::{Birth, Side, ThreadState, ThreadStateError, clone3};
use crate::sys::process::{self, Disposition};
use crate::sys::stdio;
use crate::wire::child_descriptors::ChildDescriptors;
use foreign_threads::{ForeignThread, ForeignThreads, Sleeper};
use inherited::Inherited;
use network_namespace::Home;

/// How long a clone waits for the threads of preloaded modules to fall asleep.
const PATIENCE: Duration = Duration::from_millis(500);

/// The exit status of a clone in which the C library's state could not be renewed.
const NOT_A_WHOLE_CLONE: i32 = 125;

/// Why a clone could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloneError {
    #[error(
        "clone3(flags {flags:#x}): {errno}{}",
        hint(*errno)
    )]
    Clone { flags: u64, errno: Errno },
    #[error(transparent)]
    ThreadState(#[from] ThreadStateError),
    #[error(
        "thread {name:?} (tid {tid}) of a preloaded module did not wait for others while the clone was \
         made ({state}), so it may have held a lock that the child would wait for for ever; hint: stop \
         it in a before_clone hook, or do not start it while preloading"
    )]
    BusyThread {
        name: String,
        tid: libc::pid_t,
        state: String,
    },
    #[error("opening what preloaded modules hold open, for a child: {errno}{}", limit_hint(*errno))]
    Inherited { errno: Errno },
    #[error("looking at what preloaded modules hold open and share: {0}")]
    Look(std::io::Error),
    #[error("sigaction(SIGCHLD): {0}")]
    Signal(Errno),
    #[error("looking at the threads of this process in /proc/self/task: {0}")]
    Threads(std::io::Error),
    #[error(transparent)]
    NetworkNamespace(#[from] SetupError),
}

fn limit_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EMFILE | Errno::ENFILE => {
            "; hint: raise the limit of open files (ulimit -n), or have the modules hold fewer"
        }
        _ => "",
    }
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

/// What one clone is to be.
pub(crate) struct CloneSpec<'a> {
    /// `CLONE_NEW*`.
    pub flags: u64,
    /// The folder of the control group to be born in.
    pub cgroup: Option<RawFd>,
    /// The network namespace to be born in.
    pub network: Option<RawFd>,
    pub descriptors: &'a ChildDescriptors,
    /// Descriptors that are open for this clone alone.
    pub own: &'a [RawFd],
}

/// The two sides of a clone.
pub(crate) enum Cloned {
    Parent {
        pid: libc::pid_t,
    },
    /// The error: preloaded objects' descriptors and memory could not be made the child's own, so it must report
    /// that and end.
    Child(Result<(), SetupError>),
}

/// Makes clones of the calling thread's process.
pub(crate) struct Cloner {
    thread: ThreadState,
    foreign: ForeignThreads,
    pub inherited: Inherited,
    /// The foreign threads as they were when [`Inherited`] was last looked at; `None` before the first clone.
    last_asleep: RefCell<Option<Vec<Sleeper>>>,
    /// Whether code of preloaded modules runs before each clone, or after it.
    pub runs_others_code: bool,
    /// What children do at SIGCHLD, if the host cannot do the same.
    childs_signal: Cell<Option<Disposition>>,
    /// `None`: this thread could not come back from another network namespace.
    home: Option<Home>,
}

impl Cloner {
    /// `own_threads` are the threads besides the calling one that follow the rules of
    /// [`clone_lock`]. The calling thread is the only one that may clone later.
    pub(crate) fn new(
        own_threads: &[libc::pid_t],
        inherited: Inherited,
    ) -> Result<Self, CloneError> {
        Ok(Self {
            thread: ThreadState::of_this_thread()?,
            foreign: ForeignThreads::new(own_threads).map_err(CloneError::Threads)?,
            inherited,
            last_asleep: RefCell::default(),
            runs_others_code: false,
            childs_signal: Cell::default(),
            home: Home::find()
                .inspect_err(|errno| {
                    log::info!("each child's network namespace is made anew: {errno}");
                })
                .ok(),
        })
    }

    /// The threads that neither this project nor the main program started.
    pub(crate) fn foreign_threads(&self) -> Result<Vec<ForeignThread>, CloneError> {
        self.foreign.describe().map_err(CloneError::Threads)
    }

    /// Makes a network namespace for clones to be born into; `None` if that is not possible here.
    pub(crate) fn make_network_namespace(&self) -> Result<Option<OwnedFd>, SetupError> {
        self.home.as_ref().map(Home::make_namespace).transpose()
    }

    /// Whether a network namespace that a clone had is as it was when it was new.
    pub(crate) fn is_as_new(&self, network: RawFd) -> bool {
        self.home
            .as_ref()
            .is_some_and(|home| home.is_as_new(network))
    }

    /// Clones this process. In the child, descriptors and shared memory are its own and all fork handlers have
    /// run when this returns.
    ///
    /// The parent's answer may come after the child has started to run, so the child must
    /// wait for the host's word before it does anything that matters: a clone during which
    /// a foreign thread ran is killed here and made again.
    pub(crate) fn clone_host(
        &self,
        _attached: Python<'_>,
        spec: &CloneSpec<'_>,
    ) -> Result<Cloned, CloneError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // SAFETY: this thread holds the GIL, as the hooks of fork(2) require.
            unsafe { pyo3::ffi::PyOS_BeforeFork() };
            fork_protocol::prepare();
            match self.clone_once(spec) {
                Ok(Attempt::Child {
                    opened,
                    threads_are_gone,
                }) => {
                    private_memory::forget_in_child();
                    warm_image::in_child();
                    // Before any handler: those of libuv close descriptors and make others.
                    let made_own = self.inherited.make_own(&opened, spec.descriptors);
                    // The host's owners; in this process their numbers are others' by now.
                    std::mem::forget(opened);
                    if made_own.is_err() {
                        return Ok(Cloned::Child(made_own));
                    }
                    if threads_are_gone {
                        // SAFETY: this is the only thread, and the others slept where they do not change the list.
                        unsafe { stdio::renew_locks() };
                    }
                    fork_protocol::after_in_child();
                    if let Err(errno) = self.thread.restore_robust_list() {
                        // Robust mutexes would not be released at this child's death.
                        log::error!("set_robust_list in a clone: {errno}");
                        process::exit_now(NOT_A_WHOLE_CLONE);
                    }
                    // SAFETY: as PyOS_BeforeFork; the child's only thread.
                    unsafe { pyo3::ffi::PyOS_AfterFork_Child() };
                    return Ok(Cloned::Child(self.restore_child_signal()));
                }
                parent => {
                    fork_protocol::after_in_parent();
                    // SAFETY: as PyOS_BeforeFork.
                    unsafe { pyo3::ffi::PyOS_AfterFork_Parent() };
                    match parent? {
                        Attempt::Made { pid } => return Ok(Cloned::Parent { pid }),
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
    pub(crate) fn clone_bare(
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

    /// Nothing that preloaded objects hold changes while nobody's code but the host's own runs: no thread of theirs since
    /// the last look, and neither hooks nor fork handlers.
    fn look_again_if_need_be(
        &self,
        spec: &CloneSpec<'_>,
        asleep: &[Sleeper],
    ) -> Result<(), CloneError> {
        let is_as_before = self.last_asleep.borrow().as_deref() == Some(asleep);
        if is_as_before && !self.runs_others_code && !self.inherited.is_outdated(spec.own) {
            return Ok(());
        }
        self.inherited
            .look_again(spec.own)
            .map_err(CloneError::Look)?;
        self.last_asleep.replace(Some(asleep.to_vec()));
        Ok(())
    }

    /// Undoes that a module, or a hook, has the kernel throw children's statuses away. Children go on as that left it.
    ///
    /// # Errors
    /// Of `sigaction(2)`.
    pub(crate) fn keep_child_statuses(&self) -> Result<(), CloneError> {
        if let Some(signal) = process::take_child_statuses().map_err(CloneError::Signal)? {
            self.childs_signal.set(Some(signal));
        }
        Ok(())
    }

    fn restore_child_signal(&self) -> Result<(), SetupError> {
        let Some(signal) = self.childs_signal.get() else {
            return Ok(());
        };
        signal
            .set(libc::SIGCHLD)
            .map_err(|errno| SetupError::new(Layer::Descriptors, "sigaction(SIGCHLD)", errno))
    }

    fn clone_once(&self, spec: &CloneSpec<'_>) -> Result<Attempt, CloneError> {
        let asleep = match self.foreign.asleep()? {
            Ok(asleep) => asleep,
            Err(busy) => return Ok(Attempt::Disturbed(busy)),
        };
        // While the foreign threads sleep, so that all is as the child will have it.
        if let Err(error) = self.look_again_if_need_be(spec, &asleep) {
            return match asleep.is_empty() {
                true => Err(error),
                false => Ok(Attempt::Disturbed(error)), // one of them was not asleep any more
            };
        }
        let opened = match self.inherited.open() {
            Ok(opened) => opened,
            Err(errno @ (Errno::ENOENT | Errno::EBADF)) if !asleep.is_empty() => {
                return Ok(Attempt::Disturbed(CloneError::Inherited { errno }));
            }
            Err(errno) => return Err(CloneError::Inherited { errno }),
        };
        let birth = Birth {
            pid: None,
            cgroup: spec.cgroup,
            exit_signal: 0, // no preloaded module's `wait` or SIGCHLD may take its status
        };
        let side = {
            let _no_shared_state_is_in_use = clone_lock::hold();
            // SAFETY: the I/O thread is outside of everything that the clone lock guards,
            // foreign threads are shown below to have slept, and the caller runs the fork
            // handlers on both sides.
            unsafe { self.clone_into(spec.network, spec.flags, birth) }
        };
        let Side::Parent { pid, pidfd } = side? else {
            return Ok(Attempt::Child {
                opened,
                threads_are_gone: !asleep.is_empty(),
            });
        };
        let undisturbed = self.foreign.still(&asleep);
        if !matches!(undisturbed, Ok(Ok(()))) {
            discard(&pidfd);
        }
        Ok(match undisturbed? {
            Ok(()) => Attempt::Made { pid },
            Err(busy) => Attempt::Disturbed(busy),
        })
    }
}

enum Attempt {
    Child {
        opened: Vec<OwnedFd>,
        /// Whether threads of preloaded modules did not come along.
        threads_are_gone: bool,
    },
    Made {
        pid: libc::pid_t,
    },
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
