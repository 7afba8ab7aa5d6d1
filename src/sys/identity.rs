//! User and group ids, by raw system calls.
//!
//! Runs on: any process.
//!
//! glibc's wrappers pass every change on to all threads that it knows, by signal
//! (nptl(7)); in a clone it knows threads that no longer exist.

use nix::errno::Errno;

use super::check;

/// `setresuid(2)` of the calling thread, all three ids.
pub(crate) fn set_uid(uid: libc::uid_t) -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `setresgid(2)` of the calling thread, all three ids.
pub(crate) fn set_gid(gid: libc::gid_t) -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// `setgroups(2)` with an empty list, of the calling thread.
pub(crate) fn clear_groups() -> Result<(), Errno> {
    // SAFETY: with a length of 0 the list is not read.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })
        .map(drop)
}
