//! Starting without privilege: a user namespace in which this process has every capability.
//!
//! Runs on: the launcher.
//!
//! The kernel lets any user make one (`user_namespaces(7)`); what it is worth depends on the
//! ids that are mapped into it. With subordinate ids (`subuid(5)`, written by `newuidmap(1)`)
//! each child still gets a user of its own; else all are the user who started pyspawner.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, User, fork, getgid, getpid, getuid, pipe};

use crate::sys::process;

/// Whether this process may do without a user namespace.
pub(crate) fn has_privilege() -> anyhow::Result<bool> {
    Ok(caps::has_cap(
        None,
        CapSet::Effective,
        Capability::CAP_SYS_ADMIN,
    )?)
}

/// Enters a user namespace unless this process may do without one. Must be called while the
/// process has one thread.
pub(crate) fn gain_capabilities() -> anyhow::Result<()> {
    if has_privilege()? {
        return Ok(());
    }
    let maps = IdMaps::choose()?;
    let target = getpid().as_raw();
    let (wait, go) = pipe().context("pipe")?;
    // The maps are written from outside, with the privilege that is left there.
    // SAFETY: there is one thread, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(go);
            process::exit_now(write_maps_when_told(&maps, target, wait));
        }
        ForkResult::Parent { child } => {
            drop(wait);
            // With a mount namespace that belongs to it: only there may mounts be copied, for a
            // child's own root. What is mounted outside later is seen here too.
            process::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).map_err(|errno| {
                // It would complain too, of what is not its fault.
                kill(child, Signal::SIGKILL).ok();
                refused(errno)
            })?;
            drop(go);
            let status = waitpid(child, None).context("waiting for the id maps")?;
            ensure!(
                matches!(status, WaitStatus::Exited(_, 0)),
                "the id maps of the user namespace could not be written"
            );
            Ok(())
        }
    }
}

fn refused(errno: Errno) -> anyhow::Error {
    let hint = match errno {
        Errno::EPERM => {
            "user namespaces are closed to users here: see kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns, a container's seccomp profile; or start \
             pyspawner with CAP_SYS_ADMIN"
        }
        Errno::ENOSPC => "see user.max_user_namespaces",
        _ => "",
    };
    anyhow::anyhow!("without CAP_SYS_ADMIN: unshare(CLONE_NEWUSER): {errno}; hint: {hint}")
}

/// How ids are mapped into the namespace.
enum IdMaps {
    /// All that are mapped here, each to itself: what CAP_SETUID and CAP_SETGID allow.
    Identity { users: String, groups: String },
    /// This user as 0, and its subordinate ids from 1.
    Subordinate { user: (u32, u32), group: (u32, u32) },
    /// This user and group alone, as 0.
    Single,
}

impl IdMaps {
    fn choose() -> anyhow::Result<Self> {
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability);
        // CAP_SETFCAP: to map id 0, since Linux 5.12.
        if has(Capability::CAP_SETUID)?
            && has(Capability::CAP_SETGID)?
            && has(Capability::CAP_SETFCAP)?
        {
            return Ok(Self::Identity {
                users: identity(&fs::read_to_string("/proc/self/uid_map")?),
                groups: identity(&fs::read_to_string("/proc/self/gid_map")?),
            });
        }
        // newuidmap(1) knows users by their names alone.
        let user = User::from_uid(getuid()).ok().flatten();
        let range = |file| {
            let text = fs::read_to_string(file).ok()?;
            subordinate_range(&text, &user.as_ref()?.name, getuid().as_raw())
        };
        Ok(match (range("/etc/subuid"), range("/etc/subgid")) {
            (Some(user), Some(group)) if installed("newuidmap").is_some() => {
                Self::Subordinate { user, group }
            }
            _ => Self::Single,
        })
    }

    fn write(&self, target: libc::pid_t) -> anyhow::Result<()> {
        let file = |name: &str| format!("/proc/{target}/{name}");
        match self {
            Self::Identity { users, groups } => {
                fs::write(file("uid_map"), users).context("uid_map")?;
                fs::write(file("gid_map"), groups).context("gid_map")
            }
            Self::Subordinate { user, group } => {
                map_subordinate("newuidmap", target, getuid().as_raw(), *user)?;
                map_subordinate("newgidmap", target, getgid().as_raw(), *group)
            }
            Self::Single => {
                // Without it an unprivileged gid_map is refused (user_namespaces(7)).
                fs::write(file("setgroups"), "deny").context("setgroups")?;
                fs::write(file("uid_map"), format!("0 {} 1", getuid())).context("uid_map")?;
                fs::write(file("gid_map"), format!("0 {} 1", getgid())).context("gid_map")
            }
        }
    }
}

/// Writes the maps once the other end of the pipe is closed. Returns an exit status.
fn write_maps_when_told(maps: &IdMaps, target: libc::pid_t, wait: OwnedFd) -> i32 {
    let told = crate::sys::files::read_to_end(wait).context("pipe");
    match told.and_then(|_| maps.write(target)) {
        Ok(()) => 0,
        Err(error) => {
            // This process ends here; the message is all that is left of it.
            writeln!(std::io::stderr(), "pyspawner: error: id maps: {error:#}").ok();
            1
        }
    }
}

fn map_subordinate(
    program: &str,
    target: libc::pid_t,
    own: u32,
    (first, count): (u32, u32),
) -> anyhow::Result<()> {
    let numbers = [target as u32, 0, own, 1, 1, first, count];
    let path = installed(program).with_context(|| format!("{program} is not installed"))?;
    let status = Command::new(path)
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("running {program}"))?;
    if !status.success() {
        bail!(
            "{program} failed; hint: it must be set-uid root, and /etc/sub?id must have the range"
        );
    }
    Ok(())
}

/// A map of the ids of this namespace to themselves.
fn identity(map: &str) -> String {
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace();
            let (inside, length) = (numbers.next()?, numbers.nth(1)?);
            Some(format!("{inside} {inside} {length}\n"))
        })
        .collect()
}

/// The first range of a user in a file of the form of `subuid(5)`: `name-or-id:first:count`.
fn subordinate_range(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if owner != name && owner.parse() != Ok(uid) {
            return None;
        }
        let first = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        Some((first, count))
    })
}

/// Where a program is, also where PATH is empty, as it is for an application that gives its jobs no environment.
fn installed(program: &str) -> Option<PathBuf> {
    const USUAL: [&str; 3] = ["/usr/bin", "/bin", "/run/wrappers/bin"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = USUAL.into_iter().map(PathBuf::from);
    let folders = folders.chain(std::env::split_paths(&path));
    let mut places = folders.map(|folder| folder.join(program));
    places.find(|place| place.is_absolute() && place.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subordinate_range_is_found_by_name_or_id() {
        let text = "other:1:2\nme:100000:65536\n1000:7:8\n";
        assert_eq!(subordinate_range(text, "me", 5), Some((100_000, 65_536)));
        assert_eq!(subordinate_range(text, "who", 1000), Some((7, 8)));
        assert_eq!(subordinate_range(text, "nobody", 5), None);
    }

    #[test]
    fn an_identity_map_keeps_what_is_mapped() {
        let map = "         0     100000      65536\n";
        assert_eq!(identity(map), "0 0 65536\n");
    }
}
