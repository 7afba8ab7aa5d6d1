//! The C library's streams: flushing them, and renewing their locks in a clone.
//!
//! Runs on: any process.
//!
//! Source: glibc `posix/fork.c` (reset_locks), `libio/libioP.h`; `struct _IO_FILE` is part of its ABI
//! (`bits/types/struct_FILE.h`).

use std::ffi::{c_int, c_void};

/// The head of `struct _IO_FILE` on 64-bit machines, as far as its lock.
#[repr(C)]
struct Stream {
    flags: c_int,
    /// Buffers, markers, chain, numbers, column.
    _between: [u64; 16],
    lock: *mut Lock,
}

/// `_IO_lock_t`: a futex, how often its owner holds it, and the owner.
#[repr(C)]
struct Lock {
    lock: c_int,
    count: c_int,
    owner: *mut c_void,
}

/// `_IO_USER_LOCK`: the program does the locking (`__fsetlocking(3)`).
const USER_LOCK: c_int = 0x8000;

unsafe extern "C" {
    fn _IO_iter_begin() -> *mut Stream;
    fn _IO_iter_end() -> *mut Stream;
    fn _IO_iter_next(stream: *mut Stream) -> *mut Stream;
    fn _IO_iter_file(stream: *mut Stream) -> *mut Stream;
    fn _IO_list_resetlock();
}

/// Writes what standard output has buffered, unless another thread is using it (`ftrylockfile(3)`). Other streams are left
/// alone: one of them may be locked by a thread that reads, and would be waited for.
pub(crate) fn flush_standard_output() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
        fn ftrylockfile(stream: *mut libc::FILE) -> c_int;
        fn funlockfile(stream: *mut libc::FILE);
    }
    // SAFETY: the C library's own stream, which this thread holds meanwhile.
    unsafe {
        if !stdout.is_null() && ftrylockfile(stdout) == 0 {
            libc::fflush(stdout);
            funlockfile(stdout);
        }
    }
}

/// Releases every stream's lock and that of their list, as `fork(3)` does in a child.
///
/// # Safety
/// This must be the process's only thread, and no thread of its parent was changing the list when it was cloned.
pub(crate) unsafe fn renew_locks() {
    // SAFETY: the iterators walk the list of open streams, which nobody changes by this function's contract. A
    // lock may be null in a stream that is used without one.
    unsafe {
        let mut stream = _IO_iter_begin();
        while stream != _IO_iter_end() {
            let file = _IO_iter_file(stream);
            if (*file).flags & USER_LOCK == 0 && !(*file).lock.is_null() {
                (*file).lock.write(Lock {
                    lock: 0,
                    count: 0,
                    owner: std::ptr::null_mut(),
                });
            }
            stream = _IO_iter_next(stream);
        }
        _IO_list_resetlock();
    }
}
