//! A child's processes, as `/proc` shows them: it, and whatever it has forked.
//!
//! Runs on: any process.
//!
//! In a PID namespace all descend from the first (`pid_namespaces(7)`).

use std::fs;

use nix::errno::Errno;

use super::{check, memory};

/// Whether a process or one below it has memory. What has ended as far as that keeps it only in name
/// (`proc_pid_statm(5)` of a task without an address space).
pub(crate) fn has_memory(first: libc::pid_t) -> bool {
    below(first).any(|pid| memory::resident(pid).is_ok_and(|bytes| bytes > 0))
}

/// Has all threads of a process, and of those below it, run only when others leave the processors (`setpriority(2)`).
pub(crate) fn make_nice(first: libc::pid_t) {
    for thread in below(first).flat_map(threads) {
        // SAFETY: plain integers.
        let done = check(unsafe {
            libc::setpriority(libc::PRIO_PROCESS, thread as libc::id_t, LEAST_URGENT)
        } as _);
        if let Err(errno) = done
            && errno != Errno::ESRCH
        {
            log::debug!("setpriority({thread}): {errno}");
        }
    }
}

const LEAST_URGENT: libc::c_int = 19;

/// What a process has forked, of all its threads (`proc_tid_children(5)`); none of one that has ended.
pub(crate) fn children(pid: libc::pid_t) -> Vec<libc::pid_t> {
    let of_thread = |thread| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
        let text = text.unwrap_or_default();
        let words = text.split_whitespace();
        words.flat_map(str::parse).collect::<Vec<_>>()
    };
    threads(pid).into_iter().flat_map(of_thread).collect()
}

/// A process and all below it, in no order.
pub(crate) fn below(first: libc::pid_t) -> impl Iterator<Item = libc::pid_t> {
    Tree(vec![first])
}

struct Tree(Vec<libc::pid_t>);

impl Iterator for Tree {
    type Item = libc::pid_t;

    fn next(&mut self) -> Option<libc::pid_t> {
        let pid = self.0.pop()?;
        self.0.extend(children(pid));
        Some(pid)
    }
}

/// The threads of a process; none of one that is gone.
pub(crate) fn threads(pid: libc::pid_t) -> Vec<libc::pid_t> {
    let listing = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let names = listing.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forked_is_found_until_it_has_ended() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & exec sleep 60"])
            .spawn()
            .expect("a shell");
        let own = shell.id() as libc::pid_t;
        let all = || below(own).collect::<Vec<_>>();
        while all().len() < 2 {
            std::thread::yield_now();
        }
        assert!(has_memory(own));
        let niceness = |pid: libc::pid_t| {
            // SAFETY: plain integers.
            unsafe { libc::getpriority(libc::PRIO_PROCESS, pid as libc::id_t) }
        };
        make_nice(own);
        let all = all();
        assert!(all.iter().all(|pid| niceness(*pid) == LEAST_URGENT));
        for pid in &all {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(*pid),
                nix::sys::signal::Signal::SIGKILL,
            )
            .expect("it is there");
        }
        // Not reaped yet: a name without memory.
        while has_memory(own) {
            std::thread::yield_now();
        }
        assert_eq!(below(own).next(), Some(own));
        shell.wait().expect("it was started here");
    }
}
