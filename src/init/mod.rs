//! A tiny init in front of the host: it reaps, passes signals on, and ends as the host ends.
//!
//! Runs on: the init.
//!
//! It has two more reasons to be. OpenSSL, and others, notice a fork by the process id. A host that
//! is PID 1 of a container and a child that is PID 1 of its own namespace look the same to them,
//! and so do a host with PID 7 and a job's sixth subprocess: both would go on from the host's
//! random state. So the host runs at a process id that a child's descendants reach only after
//! millions of forks.
//!
//! And jobs must not outlive the host. A child asks to be killed at its parent's end
//! (`PR_SET_PDEATHSIG(2const)`), but that belongs to its first thread: a job that executes a
//! program from another thread is rid of it, since that thread takes the first one's place
//! (`execve(2)`). What a dead host leaves comes to this process (`PR_SET_CHILD_SUBREAPER(2const)`),
//! which ends it; and if this process is ended, the host is told to stop its jobs.
//!
//! Since it has the time, it also looks after what no limit of a job counts: [`file_locks`].

mod file_locks;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use self::file_locks::FileLocks;
use crate::sys::clone3::{Birth, Side, ThreadState, clone3};
use crate::sys::process::{self, Ending};
use crate::wire::activity::{self, Last};

/// Process ids below this one are too easy to reach by forking.
const LOWEST_HOST_PID: libc::pid_t = 4096;
/// How often it looks after its host's jobs.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Returns in the process that is to become the host, a child of this one, with the pipe by which that tells what it does. Must
/// be called while the process has one thread.
pub(crate) fn step_aside() -> anyhow::Result<OwnedFd> {
    let everything = SigSet::all();
    let mut before = SigSet::empty();
    sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&everything),
        Some(&mut before),
    )?;
    process::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).context("PR_SET_CHILD_SUBREAPER")?;
    let (told, tells) = activity::pipe().context("pipe2")?;
    match start_at_high_pid()? {
        Some(host) => {
            drop(tells);
            let ending = attend(host);
            process::exit_now(explain(ending, &Last::read(&told)))
        }
        None => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            tie_to_init()?;
            Ok(tells)
        }
    }
}

/// Asks for the signal that stops a host, for when the init ends.
fn tie_to_init() -> anyhow::Result<()> {
    // One that is ignored does not stop it: see `pool::interrupt`.
    let signal = match process::is_ignored(libc::SIGTERM)? {
        true => libc::SIGKILL,
        false => libc::SIGTERM,
    };
    process::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong).context("PR_SET_PDEATHSIG")?;
    Ok(())
}

/// Starts a child at the highest process id there is, or, where that is not permitted, at the
/// first that is high enough. `None` in the child.
fn start_at_high_pid() -> anyhow::Result<Option<Pid>> {
    let highest: libc::pid_t = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .context("reading /proc/sys/kernel/pid_max")?
        .trim()
        .parse()
        .context("/proc/sys/kernel/pid_max")?;
    if getpid().as_raw() >= LOWEST_HOST_PID {
        return start_by_counting_up(); // at the first try
    }
    anyhow::ensure!(
        highest > LOWEST_HOST_PID,
        "kernel.pid_max is {highest}: the host needs a process id above {LOWEST_HOST_PID}"
    );
    let thread = ThreadState::of_this_thread()?;
    for pid in (LOWEST_HOST_PID..highest).rev().take(64) {
        let birth = Birth {
            pid: Some(pid),
            cgroup: None,
            exit_signal: libc::SIGCHLD,
        };
        // SAFETY: there is one thread, so no lock is held and no handler is needed.
        match unsafe { clone3(0, &thread, birth) } {
            Ok(Side::Child) => return Ok(None),
            Ok(Side::Parent { pid, .. }) => return Ok(Some(Pid::from_raw(pid))),
            Err(Errno::EEXIST) => {}
            // It needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN (clone(2), set_tid).
            Err(_) => break,
        }
    }
    start_by_counting_up()
}

/// Process ids are given out in order, so a few thousand short-lived children lead to a
/// high one.
fn start_by_counting_up() -> anyhow::Result<Option<Pid>> {
    loop {
        // SAFETY: there is one thread; the short-lived child only exits.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child if getpid().as_raw() >= LOWEST_HOST_PID => return Ok(None),
            ForkResult::Child => process::exit_now(0),
            ForkResult::Parent { child } if child.as_raw() >= LOWEST_HOST_PID => {
                return Ok(Some(child));
            }
            ForkResult::Parent { child } => drop(waitpid(child, None)?),
        }
    }
}

/// The status to end with. Says why a host has ended that has not said so itself.
fn explain(ending: Ending, last: &Last) -> i32 {
    let failed = i32::from(crate::failure::FAILED);
    let (status, how) = match (ending, last) {
        (Ending::Signaled(signal), _) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            (
                128 + signal,
                format!("was ended by signal {signal} ({name})"),
            )
        }
        (Ending::Exited(status), Last::Activity(_)) if status != failed => {
            (failed, format!("exited with status {status}"))
        }
        // It has said why.
        (Ending::Exited(status), _) => return status,
        (Ending::Lost, _) => (failed, "has ended, nobody knows how,".to_owned()),
    };
    let activity = match last {
        Last::End => "ending",
        Last::Activity(activity) => activity,
    };
    let hint = match ending {
        Ending::Signaled(libc::SIGKILL) => {
            "; hint: the kernel does so for want of memory, see its log"
        }
        Ending::Exited(_) => "; hint: a preloaded module has called exit(3) or os._exit",
        _ => "",
    };
    crate::failure::print_error(&anyhow::anyhow!("the host {how} while {activity}{hint}"));
    status
}

/// Reaps all, passes signals on to the host, and returns how that has ended.
fn attend(host: Pid) -> Ending {
    let mut file_locks = FileLocks::of_jobs_of(host.as_raw());
    let mut last_look = Instant::now();
    loop {
        // Also while one signal comes after the other.
        if last_look.elapsed() >= BETWEEN_LOOKS {
            file_locks.look();
            last_look = Instant::now();
        }
        match process::wait_for_signal(BETWEEN_LOOKS) {
            Ok((libc::SIGCHLD, _)) => {
                if let Some(ending) = reap_all(host) {
                    end_what_is_left();
                    return ending;
                }
            }
            // A key at the terminal: it has reached the host too, as one process group.
            Ok((_, true)) | Err(_) => {}
            Ok((signal, false)) => {
                if let Ok(signal) = Signal::try_from(signal) {
                    // A host that has just ended: its SIGCHLD comes next.
                    kill(host, signal).ok();
                }
            }
        }
    }
}

/// Reaps whatever has ended; how the host has, once it is among them. Stops as the host stops.
fn reap_all(host: Pid) -> Option<Ending> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == host => {
                return Some(Ending::Exited(status));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == host => {
                return Some(Ending::Signaled(signal as i32));
            }
            Ok(WaitStatus::Stopped(pid, _)) if pid == host => {
                // The shell sees the first process alone. It continues both, as one group.
                kill(getpid(), Signal::SIGSTOP).ok();
                kill(host, Signal::SIGCONT).ok();
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Ends the jobs of a host that has ended: they are this process's children now. One that does not
/// end though it was killed is left to the next init.
fn end_what_is_left() {
    const ATTEMPTS: u32 = 500;
    let own = std::process::id();
    for _ in 0..ATTEMPTS {
        // Without CONFIG_PROC_CHILDREN there is only the signal that a child asked for itself.
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        for pid in children
            .unwrap_or_default()
            .split_whitespace()
            .flat_map(str::parse)
        {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(10)),
            Ok(_) => {}
            Err(_) => return, // there is none
        }
    }
}
