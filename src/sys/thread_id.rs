//! Where the C library keeps the calling thread's id.
//!
//! Runs on: any process.
//!
//! `fork(3)` renews that copy in the child, and so must a clone: mutexes record their owner by it,
//! and `raise(3)` signals by it. Up to glibc 2.42 it is the address that the kernel clears at the
//! thread's end (`set_tid_address(2)`). Since glibc 2.43 the kernel clears another field of the
//! same thread descriptor, so each word there that holds the id is tried.

use nix::errno::Errno;
use nix::unistd::gettid;

/// No thread descriptor is larger: 2304 bytes in glibc 2.36, x86-64.
const LARGEST_DESCRIPTOR: usize = 8 << 10;

/// The address of the C library's copy, for a thread that no signal handler interrupts now.
/// `cleared` is the address that the kernel clears at the thread's end. `None` if the C library
/// keeps the id in no known way.
pub(crate) fn cached_at(cleared: usize) -> Option<usize> {
    // SAFETY: the call has no preconditions.
    let descriptor = unsafe { libc::pthread_self() } as usize;
    if !(descriptor..descriptor + LARGEST_DESCRIPTOR).contains(&cleared) {
        return None;
    }
    let tid = gettid().as_raw();
    (descriptor..=cleared)
        .step_by(size_of::<libc::pid_t>())
        .filter(|&address| {
            // SAFETY: aligned, and between the start of this thread's descriptor and a field of it.
            unsafe { std::ptr::read_volatile(address as *const libc::pid_t) == tid }
        })
        .find(|&address| {
            // SAFETY: as above; it holds this thread's id.
            unsafe { decides_who_owns_a_mutex(address as *mut libc::pid_t) }
        })
}

/// Whether a thread whose id at `copy` is another may not unlock what it has locked.
///
/// # Safety
/// `copy` is a word of the calling thread's descriptor that holds the thread's id.
unsafe fn decides_who_owns_a_mutex(copy: *mut libc::pid_t) -> bool {
    // SAFETY: the attributes and the mutex are initialised before their use and destroyed after it.
    // The word has its value again before anything else can ask for the thread's id.
    unsafe {
        let mut attributes = std::mem::zeroed();
        let mut mutex: libc::pthread_mutex_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attributes);
        libc::pthread_mutexattr_settype(&raw mut attributes, libc::PTHREAD_MUTEX_ERRORCHECK);
        libc::pthread_mutex_init(&raw mut mutex, &raw const attributes);
        let tid = copy.read_volatile();
        libc::pthread_mutex_lock(&raw mut mutex);
        copy.write_volatile(tid ^ 1);
        let refused = libc::pthread_mutex_unlock(&raw mut mutex) == Errno::EPERM as i32;
        copy.write_volatile(tid);
        if refused {
            libc::pthread_mutex_unlock(&raw mut mutex);
        }
        libc::pthread_mutex_destroy(&raw mut mutex);
        libc::pthread_mutexattr_destroy(&raw mut attributes);
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_found_and_left_as_it_was() {
        let mut cleared: u64 = 0;
        // SAFETY: writes one word to the address given.
        let status = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut cleared, 0, 0, 0) };
        assert_eq!(status, 0);
        let address = cached_at(cleared as usize).expect("the C library's copy");
        // SAFETY: a word of this thread's descriptor.
        let copy = unsafe { *(address as *const libc::pid_t) };
        assert_eq!(copy, gettid().as_raw());
    }

    #[test]
    fn an_address_elsewhere_is_refused() {
        assert_eq!(cached_at(8), None);
    }
}
