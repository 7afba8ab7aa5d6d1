//! Who runs first: policy and priorities of the calling thread (`sched(7)`, `ioprio_set(2)`).
//!
//! Runs on: any process.

use nix::errno::Errno;

use super::check;

/// `IOPRIO_WHO_PROCESS`: one thread.
const ONE_THREAD: libc::c_int = 1;
/// A priority for input and output has its class above these bits.
const CLASS_SHIFT: u32 = 13;
/// The class that comes before all others.
const REAL_TIME: i64 = 1;
/// The class of most, whose levels go from 0, the first served, to 7.
const BEST_EFFORT: i64 = 2;
/// The level that a thread has that never asked for one.
const DEFAULT_LEVEL: i64 = 4;

/// Has what this thread clones run as ordinary processes do, however urgent the thread is itself: the kernel takes
/// real-time policies and negative nice values from clones (`SCHED_RESET_ON_FORK`), at no cost to them. What makes the thread
/// less urgent than others stays with them.
///
/// # Errors
/// Of `sched_getattr(2)`, `sched_setattr(2)`, `ioprio_get(2)` and `ioprio_set(2)`.
pub(crate) fn reset_in_clones() -> Result<(), Errno> {
    let mut attributes = attributes()?;
    attributes.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: the kernel reads as much as `size` says.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    // SAFETY: plain integers.
    let priority = check(unsafe { libc::syscall(libc::SYS_ioprio_get, ONE_THREAD, 0) })?;
    let (class, level) = (priority >> CLASS_SHIFT, priority & 7);
    if class == REAL_TIME || class == BEST_EFFORT && level < DEFAULT_LEVEL {
        // SAFETY: plain integers. 0 stands for none of one's own.
        check(unsafe { libc::syscall(libc::SYS_ioprio_set, ONE_THREAD, 0, 0) })?;
    }
    Ok(())
}

/// Whether this thread is as urgent as others at most.
///
/// # Errors
/// Of `sched_getattr(2)`.
pub(crate) fn is_ordinary() -> Result<bool, Errno> {
    let attributes = attributes()?;
    let policies = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE];
    let has_policy = policies.contains(&(attributes.sched_policy as libc::c_int));
    Ok(has_policy && attributes.sched_nice >= 0)
}

fn attributes() -> Result<libc::sched_attr, Errno> {
    let size = size_of::<libc::sched_attr>();
    // SAFETY: all-zero is a valid value, and the kernel writes no more than `size`.
    unsafe {
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        check(libc::syscall(
            libc::SYS_sched_getattr,
            0,
            &raw mut attributes,
            size,
            0,
        ))?;
        Ok(attributes)
    }
}
