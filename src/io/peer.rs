//! Who has connected: a job must not pass for a client.
//!
//! Runs on: the I/O thread.
//!
//! Jobs of an ordinary user's host may be that very user outside, so the uid alone does not tell: neither that user's host, nor
//! root's, which may serve that user. What does is the PID namespace: a job's is below the host's, where it has a number in each.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};

use crate::sys::process;

/// Who may be a client.
pub(crate) struct Admission {
    own: u32,
    /// Users besides this process's own and root.
    uids: Vec<u32>,
    /// Whether this process's user is mapped into its user namespace by itself, as a user who made the namespace for himself is
    /// (`user_namespaces(7)`): then it is an ordinary user outside, as the jobs of another host of his may be.
    is_mapped_alone: bool,
    /// What every user looks like who has no id in this process's user namespace, if there are such users.
    overflow: Option<u32>,
}

impl Admission {
    /// # Errors
    /// If the map of this process's ids, which does not change any more, cannot be read.
    pub(crate) fn new(uids: Vec<u32>) -> anyhow::Result<Self> {
        const ALL: [&str; 3] = ["0", "0", "4294967295"];
        const MAP: &str = "/proc/self/uid_map";
        const OVERFLOW: &str = "/proc/sys/kernel/overflowuid";
        let own = nix::unistd::geteuid().as_raw();
        let map = std::fs::read_to_string(MAP).context(MAP)?;
        let overflow = std::fs::read_to_string(OVERFLOW).context(OVERFLOW)?;
        let overflow = overflow.trim().parse().context(OVERFLOW)?;
        Ok(Self {
            own,
            uids,
            is_mapped_alone: is_mapped_alone(&map, own),
            overflow: (!map.split_whitespace().eq(ALL)).then_some(overflow),
        })
    }

    /// Whether the other end of a connection may be a client: a process of this user, of root, or of one of the users that are
    /// admitted, which is there still, and is no job of this host or of another.
    ///
    /// # Errors
    /// The reason why not, for the log and for the peer.
    pub(crate) fn check(&self, connection: &impl AsFd) -> Result<(), String> {
        let credentials = getsockopt(connection, PeerCredentials);
        let credentials = credentials.map_err(|e| format!("SO_PEERCRED: {e}"))?;
        let uid = credentials.uid();
        if self.overflow == Some(uid) {
            return Err("its user has no id in this host's user namespace: an ordinary user's host serves that user alone".to_owned());
        }
        if uid != 0 && uid != self.own && !self.uids.contains(&uid) {
            return Err(format!(
                "user {uid} is not admitted: this host serves its own user, root, and those that --allow-uid names"
            ));
        }
        let peer = Peer::of(connection, credentials.pid())?;
        let numbers = peer.numbers()?;
        let is_elsewhere = !matches!(numbers[..], [pid] if pid > 0);
        // No job is root. Any other user's jobs may be that user, if their host is an ordinary user's.
        if is_elsewhere && (uid != 0 || self.is_mapped_alone) {
            return Err("it is in another PID namespace, as jobs are".to_owned());
        }
        // As root a container's client may come, or the machine's where the host is a container.
        if is_descendant(numbers[0]) {
            return Err("it is a job of this host".to_owned());
        }
        // Its number was still its own, then.
        peer.numbers().map(drop)
    }
}

const GONE: &str = "its process has ended";

/// The process that connected.
struct Peer(OwnedFd);

impl Peer {
    fn of(connection: &impl AsFd, pid: libc::pid_t) -> Result<Self, String> {
        match getsockopt(connection, PeerPidfd) {
            Ok(pidfd) => Ok(Self(pidfd)),
            // It has been reaped: ESRCH, or EINVAL since Linux 6.16.
            Err(Errno::ESRCH | Errno::EINVAL) => Err(GONE.to_owned()),
            // Before Linux 6.5. The number might be another's by now, but a job cannot choose whose.
            Err(Errno::ENOPROTOOPT) => match process::open_pidfd(pid) {
                Ok(pidfd) => Ok(Self(pidfd)),
                Err(Errno::ESRCH) => Err(GONE.to_owned()),
                Err(errno) => Err(format!("pidfd_open: {errno}")),
            },
            Err(errno) => Err(format!("SO_PEERPIDFD: {errno}")),
        }
    }

    /// Its number in the host's PID namespace, 0 if it has none there, then those in the namespaces below.
    fn numbers(&self) -> Result<Vec<libc::pid_t>, String> {
        // That of this thread: the main one has other descriptors.
        let path = format!("/proc/thread-self/fdinfo/{}", self.0.as_raw_fd());
        let info = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        match numbers(&info) {
            Some(numbers) if numbers[0] >= 0 => Ok(numbers),
            Some(_) => Err(GONE.to_owned()),
            None => Err(format!("{path} says no number")),
        }
    }
}

/// The numbers in the text about a pidfd (`proc_pid_fdinfo(5)`): -1 if the process has been reaped. There is one at least.
fn numbers(info: &str) -> Option<Vec<libc::pid_t>> {
    let line = |name| info.lines().find_map(|line| line.strip_prefix(name));
    let numbers = line("NSpid:").or(line("Pid:"))?.split_whitespace();
    let numbers: Vec<_> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
    (!numbers.is_empty()).then_some(numbers)
}

fn is_mapped_alone(map: &str, own: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (first, length) = (numbers.next(), numbers.nth(1));
        first == Some(Ok(own)) && length == Some(Ok(1))
    })
}

/// Whether a process is below this one (`proc_pid_stat(5)`).
fn is_descendant(pid: libc::pid_t) -> bool {
    let parent = |pid: libc::pid_t| -> Option<libc::pid_t> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may have anything in it: state, parent.
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1)?.parse().ok()
    };
    let own = std::process::id() as libc::pid_t;
    std::iter::successors(Some(pid), |pid| parent(*pid))
        .take_while(|pid| *pid > 0)
        .skip(1)
        .any(|pid| pid == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_each_namespace() {
        let info = "pos:\t0\nflags:\t02000002\nPid:\t71\nNSpid:\t71\t1\n";
        assert_eq!(numbers(info), Some(vec![71, 1]));
        assert_eq!(numbers("Pid:\t-1\nNSpid:\t-1\n"), Some(vec![-1]));
        assert_eq!(numbers("Pid:\t0\n"), Some(vec![0]));
        assert_eq!(numbers("pos:\t0\nNSpid:\n"), None);
    }
}
