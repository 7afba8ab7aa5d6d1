//! Installing a compiled seccomp program, and the SIGSYS handler beside it.
//!
//! Runs on: any process.

use nix::errno::Errno;

use super::check;

/// Installs a BPF program for the calling thread (`seccomp(2)`, `SECCOMP_SET_MODE_FILTER`).
/// The caller has set `no_new_privs` or holds CAP_SYS_ADMIN, or it is EACCES.
pub(crate) fn install(program: &[libc::sock_filter]) -> Result<(), Errno> {
    let header = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads `len` instructions at `filter`, both from one slice.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const header,
        )
    })
    .map(drop)
}

/// Makes `handler` the action of SIGSYS, with `SA_SIGINFO`.
///
/// # Safety
/// `handler` must be async-signal-safe (`signal-safety(7)`).
pub(crate) unsafe fn set_sigsys_handler(
    handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void),
) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid sigaction; the handler has the SA_SIGINFO signature.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        check(libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()).into())?;
    }
    Ok(())
}

/// The number of the system call that a SIGSYS of seccomp reports: `si_syscall`, which
/// follows `si_call_addr` (one pointer) in the union at offset 16 (`sigaction(2)`).
///
/// # Safety
/// `info` must come from a SIGSYS handler.
pub(crate) unsafe fn trapped_call(info: *const libc::siginfo_t) -> i32 {
    // SAFETY: by contract `info` is valid, and the field lies within its 128 bytes on the
    // 64-bit architectures that this project supports.
    unsafe { info.cast::<u8>().add(24).cast::<i32>().read() }
}

/// Makes the raw system call `number` without arguments.
pub(crate) fn call(number: libc::c_long) {
    // SAFETY: used with one number only, which the filter answers with the process's end.
    unsafe {
        libc::syscall(number);
    }
}

/// `inotify_init1(2)` with flags that no kernel takes: EINVAL, unless a filter answers.
pub(crate) fn unlisted_call() -> Result<libc::c_long, Errno> {
    // SAFETY: a plain integer; it makes nothing.
    super::check(unsafe { libc::syscall(libc::SYS_inotify_init1, -1) })
}
