//! Descriptors that are no files: comparing open files, timers, close-on-exec moves.
//!
//! Runs on: any process.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::check;

/// Whether two numbers of this process share one open file: its offset, flags and owner (`kcmp(2)`,
/// KCMP_FILE). Where the kernel does not tell, they are taken for different ones.
pub(crate) fn share_open_file(one: RawFd, other: RawFd) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let own = std::process::id();
    // SAFETY: plain integers; a wrong number is EBADF.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, one, other) };
    order == 0
}

/// A timer's clock and setting (`timerfd_create(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timer {
    pub clock: libc::c_int,
    /// Seconds and nanoseconds until it next expires; zero if it is not armed.
    pub remaining: (i64, i64),
    /// Seconds and nanoseconds between later expirations.
    pub interval: (i64, i64),
}

/// Makes a timer with that setting.
pub(crate) fn timer(setting: &Timer) -> Result<OwnedFd, Errno> {
    let time = |(seconds, nanoseconds): (i64, i64)| libc::timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let value = libc::itimerspec {
        it_interval: time(setting.interval),
        it_value: time(setting.remaining),
    };
    // SAFETY: plain integers; then the new descriptor, which nobody else knows, and a structure that is
    // valid for reads.
    unsafe {
        let fd = check(libc::timerfd_create(setting.clock, libc::TFD_CLOEXEC).into())?;
        let fd = OwnedFd::from_raw_fd(fd as RawFd);
        let old = std::ptr::null_mut();
        check(libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const value, old).into())?;
        Ok(fd)
    }
}

/// Has an epoll instance watch a number (`epoll_ctl(2)`, EPOLL_CTL_ADD).
pub(crate) fn add_to_epoll(
    epoll: RawFd,
    number: RawFd,
    events: u32,
    data: u64,
) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: plain integers, and a structure that is valid for reads.
    let done = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, number, &raw mut event) };
    check(done.into()).map(drop)
}

/// The status flags that `F_SETFL` can change (`fcntl(2)`), as they are.
pub(crate) fn status_flags(fd: RawFd) -> Result<libc::c_int, Errno> {
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(fd, libc::F_GETFL) }.into()).map(|flags| flags as libc::c_int)
}

/// Puts a descriptor into non-blocking mode.
pub(crate) fn set_nonblocking(fd: RawFd) -> Result<(), Errno> {
    let flags = status_flags(fd)?;
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }.into()).map(drop)
}

/// Where in its file a descriptor stands; 0 where there is no such place.
pub(crate) fn offset(fd: RawFd) -> Result<i64, Errno> {
    // SAFETY: plain integers.
    match check(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }) {
        Err(Errno::ESPIPE) => Ok(0),
        other => other,
    }
}

/// Borrows a number for as long as the caller knows it to be open.
///
/// # Safety
/// The number must stay open for the lifetime that the caller gives it.
pub(crate) unsafe fn borrow<'a>(number: RawFd) -> BorrowedFd<'a> {
    // SAFETY: as this function.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// The standard streams, which are open as long as this process lives: Rust's runtime opens what is missing of them at its start.
pub(crate) fn standard_streams() -> [BorrowedFd<'static>; 3] {
    // SAFETY: they are replaced (`dup3(2)`), and never closed.
    [0, 1, 2].map(|number| unsafe { borrow(number) })
}
