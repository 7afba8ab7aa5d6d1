//! Executing this program once more, as the host.
//!
//! Runs on: the launcher.
//!
//! A process's environment and command line stay readable in `/proc/self` of every clone.
//! So the host is started from an open descriptor with a fixed command line and exactly the
//! configured environment; all else reaches it in two sealed memory files: the settings,
//! which children may know, and the command, which only the I/O thread reads. By a pipe it tells its init what it does.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use serde::Serialize;

use crate::config::HostSettings;
use crate::sys::files::{self, FileId};
use crate::sys::{mounts, process};
use crate::wire::host_descriptors::{COMMAND_FD, HOST_ARGUMENT, INIT_FD, SETTINGS_FD};

/// Replaces this process by a host. Returns only if that fails.
pub(crate) fn execute_host(
    settings: &HostSettings,
    command: &impl Serialize,
    environment: &BTreeMap<String, String>,
    init: &OwnedFd,
) -> anyhow::Result<std::convert::Infallible> {
    let environment = crate::config::environment_block(environment)?;
    let program = own_program().context("a read-only copy of the mount of /proc/self/exe")?;
    // Out of the way of the numbers that are given away below.
    let program = files::duplicate_above(program.as_raw_fd(), INIT_FD + 1)?;
    let init = files::duplicate_above(init.as_raw_fd(), INIT_FD + 1)?;
    files::duplicate_onto(init, INIT_FD, false)?;
    for (name, json, number) in [
        (
            "pyspawner-settings",
            serde_json::to_vec(settings)?,
            SETTINGS_FD,
        ),
        (
            "pyspawner-command",
            serde_json::to_vec(command)?,
            COMMAND_FD,
        ),
    ] {
        let fd = files::sealed_memfd(name, &[&json]).with_context(|| format!("memfd {name}"))?;
        if fd.as_raw_fd() != number {
            files::duplicate_onto(fd.as_raw_fd(), number, false)?;
            continue;
        }
        files::set_close_on_exec(fd.as_raw_fd(), false)?;
        std::mem::forget(fd); // the host's now
    }
    let arguments = [c"pyspawner", &*CString::new(HOST_ARGUMENT)?];
    let errno = process::execute(program, &arguments, &environment);
    bail!("execveat of /proc/self/exe: {errno}")
}

/// This program, on a mount of its own that is read-only: by `/proc/self/exe` a job comes to that very mount, whatever its root
/// has in the program's place, and may be the file's owner.
fn own_program() -> anyhow::Result<OwnedFd> {
    const PROGRAM: &str = "/proc/self/exe";
    let program = File::open(PROGRAM)?;
    let copy = match mounts::copy_of_file(program.as_fd()) {
        // Mounts are copied only within a mount namespace that belongs to this process's user namespace. The program is of the one
        // that an ordinary user's host has left (EINVAL), or the namespace is a larger user namespace's, as where somebody has
        // made root of a few ids, and no more (EPERM).
        Err(errno @ (Errno::EINVAL | Errno::EPERM)) => {
            if errno == Errno::EPERM {
                process::unshare(libc::CLONE_NEWNS).context("unshare(CLONE_NEWNS)")?;
            }
            let name = std::fs::read_link(PROGRAM)?;
            let step = || format!("{}", name.display());
            let found = File::open(&name).with_context(step)?;
            ensure!(
                FileId::from(&program.metadata()?) == FileId::from(&found.metadata()?),
                "{}: it has been replaced since it was started; hint: start it again",
                step()
            );
            mounts::copy_of_file(found.as_fd())
        }
        other => other,
    };
    let copy = copy.context("open_tree")?;
    mounts::make_read_only(&copy).context("mount_setattr")?;
    Ok(copy)
}
