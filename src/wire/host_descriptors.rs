//! What a host is started with: a fixed command line, and descriptors.
//!
//! Runs on: the launcher, the main thread, the I/O thread.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::Context;
use nix::fcntl::{FcntlArg, fcntl};
use serde::de::DeserializeOwned;

use crate::sys::files;

/// The command line of a host. No command of the user begins so.
pub(crate) const HOST_ARGUMENT: &str = "--as-host";
pub(crate) const SETTINGS_FD: RawFd = 3;
pub(crate) const COMMAND_FD: RawFd = 4;
/// See [`crate::wire::activity`].
pub(crate) const INIT_FD: RawFd = 5;

/// What a host is started with.
pub(crate) struct HostDescriptors {
    pub settings: OwnedFd,
    pub command: OwnedFd,
    pub init: OwnedFd,
}

/// The descriptors of a host, if this process was executed as one.
pub(crate) fn host_descriptors() -> Option<HostDescriptors> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != HOST_ARGUMENT || arguments.next().is_some() {
        return None;
    }
    for number in [SETTINGS_FD, COMMAND_FD] {
        // SAFETY: only looked at, and for the duration of the call.
        if !is_sealed(unsafe { BorrowedFd::borrow_raw(number) }) {
            return None; // started by hand, not by the launcher
        }
    }
    // SAFETY: the launcher left them open for this process, which has just started and
    // has given nobody else these numbers.
    let [settings, command, init] =
        [SETTINGS_FD, COMMAND_FD, INIT_FD].map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    for fd in [&settings, &command, &init] {
        files::set_close_on_exec(fd.as_raw_fd(), true).ok()?;
    }
    Some(HostDescriptors {
        settings,
        command,
        init,
    })
}

fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    fcntl(fd, FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals & libc::F_SEAL_WRITE != 0)
}

/// Reads what the launcher wrote.
pub(crate) fn read<T: DeserializeOwned>(fd: OwnedFd) -> anyhow::Result<T> {
    let json = files::read_to_end(fd).context("reading the host's settings")?;
    serde_json::from_slice(&json).context("the host's settings")
}
