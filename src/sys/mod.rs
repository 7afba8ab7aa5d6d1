//! Thin, typed wrappers around system calls that neither `libc` nor `nix` offers
//! in the form needed here. Nothing in this module decides anything.

pub mod clone3;
pub mod descriptors;
pub mod files;
pub mod identity;
pub mod interfaces;
pub mod libraries;
pub mod memory;
pub mod messages;
pub mod mount_watch;
pub mod mounts;
pub mod name_watch;
pub mod process;
pub mod process_tree;
pub mod scheduling;
pub mod seccomp;
pub mod sqlite;
pub mod stdio;
pub mod thread_id;

use nix::errno::Errno;

/// Turns the `-1` of a system call into its errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}
