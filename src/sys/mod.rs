//! Thin, typed wrappers around system calls that neither `libc` nor `nix` offers
//! in the form needed here. Nothing in this module decides anything.
//!
//! Runs on: any process.

pub(crate) mod clone3;
pub(crate) mod descriptors;
pub(crate) mod files;
pub(crate) mod identity;
pub(crate) mod interfaces;
pub(crate) mod libraries;
pub(crate) mod memory;
pub(crate) mod messages;
pub(crate) mod mount_watch;
pub(crate) mod mounts;
pub(crate) mod name_watch;
pub(crate) mod process;
pub(crate) mod process_tree;
pub(crate) mod scheduling;
pub(crate) mod seccomp;
pub(crate) mod sqlite;
pub(crate) mod stdio;
pub(crate) mod thread_id;

use nix::errno::Errno;

/// Turns the `-1` of a system call into its errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}
