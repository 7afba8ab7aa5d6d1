//! Descriptors: sealed memory files, descriptor ranges, the handful of raw writes.
//!
//! Runs on: any process.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
pub(crate) use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::check;

/// A memory file that holds `content`, positioned at its start, that nobody can change
/// any more: not its bytes, not its size, not its seals (`memfd_create(2)`).
pub(crate) fn sealed_memfd(name: &str, content: &[&[u8]]) -> std::io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // MFD_NOEXEC_SEAL (Linux 6.3) keeps it from ever being executed; older kernels say EINVAL.
    let noexec = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let fd = match memfd_create(name, flags | noexec) {
        Err(Errno::EINVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    let mut file = File::from(fd);
    for part in content {
        file.write_all(part)?;
    }
    file.rewind()?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Reads a descriptor to its end.
pub(crate) fn read_to_end(fd: OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // `File` alone would ask for size and position first: two system calls more.
    File::from(fd).take(u64::MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// Reads a file that the kernel writes as it is read, such as those of `/proc`, by one call: it gives
/// it as a whole if there is room (`seq_read_iter`).
///
/// # Errors
/// EFBIG if there is not.
pub(crate) fn read_whole<'a>(
    folder: BorrowedFd<'_>,
    path: &str,
    buffer: &'a mut [u8],
) -> nix::Result<&'a [u8]> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = openat(folder, path, flags, Mode::empty())?;
    let length = nix::unistd::read(&file, buffer)?;
    if length == buffer.len() {
        return Err(Errno::EFBIG);
    }
    Ok(&buffer[..length])
}

/// Closes every descriptor from `first` to `last` (`close_range(2)`, Linux 5.9).
pub(crate) fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: plain integers; the caller says that nothing between them is in use.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Closes every descriptor but those of `kept`, which need not all be open.
pub(crate) fn close_all_but(kept: &mut [RawFd]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut first = 0;
    for &mut number in kept {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = first.max(number + 1);
    }
    close_range(first, RawFd::MAX)
}

/// `dup3(2)` onto another number, one that this process fixes by convention.
pub(crate) fn duplicate_onto(fd: RawFd, number: RawFd, close_on_exec: bool) -> Result<(), Errno> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: plain integers; a wrong one is EBADF.
    check(unsafe { libc::dup3(fd, number, flags) }.into()).map(drop)
}

/// `F_DUPFD_CLOEXEC`: a copy of `fd` numbered `lowest` or higher.
pub(crate) fn duplicate_above(fd: RawFd, lowest: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: plain integers; a wrong one is EBADF.
    check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) }.into()).map(|fd| fd as RawFd)
}

/// Sets or clears close-on-exec.
pub(crate) fn set_close_on_exec(fd: RawFd, on: bool) -> Result<(), Errno> {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: plain integers; a wrong one is EBADF.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }.into()).map(drop)
}

/// Whether a descriptor takes bytes without waiting, within so many milliseconds (`poll(2)`). What cannot be asked is taken to do so.
pub(crate) fn has_room(fd: RawFd, milliseconds: u8) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure, as is said.
    let count = unsafe { libc::poll(&raw mut poll, 1, milliseconds.into()) };
    count != 0
}

/// One `write(2)` that takes no lock, for log lines and signal handlers: both must be able
/// to run at any moment of a clone. A short or failed write loses the rest of the line.
pub(crate) fn write_once(fd: RawFd, bytes: &[u8]) -> isize {
    // SAFETY: the buffer is valid for its length; async-signal-safe by signal-safety(7).
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }
}

/// Registers a descriptor with the current runtime, which is woken by nothing but what is waited for.
pub(crate) fn watch<T>(owner: T, interest: Interest) -> std::io::Result<AsyncFd<T>>
where
    T: AsFd + AsRawFd + 'static,
{
    // SAFETY: `owner` is an I/O-safe type (it has AsFd, a bare number has not), which keeps its
    // one descriptor open while the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(owner, interest) }?)
}

/// The name of an open descriptor, such as `/dev/stdin` or a shell's `/dev/fd/63`, as one of the calling thread's: in `/proc/self`
/// they are the main thread's, which has others.
pub(crate) fn name_on_this_thread(path: &Path) -> PathBuf {
    match number_in_name(path) {
        Some(number) => PathBuf::from(format!("/proc/thread-self/fd/{number}")),
        None => path.to_owned(),
    }
}

/// The number of the open descriptor that a path names, if it names one.
pub(crate) fn number_in_name(path: &Path) -> Option<RawFd> {
    let path = path.to_str()?;
    match path {
        "/dev/stdin" => Some(0),
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        _ => ["/dev/fd/", "/proc/self/fd/"]
            .into_iter()
            .find_map(|folder| path.strip_prefix(folder))
            .and_then(|number| number.parse().ok()),
    }
}

/// Which file: device and inode (`inode(7)`). The same for the namespaces of `/proc/PID/ns` (`namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of what a path leads to.
    pub(crate) fn at(path: impl AsRef<Path>) -> std::io::Result<Self> {
        std::fs::metadata(path).map(|found| Self::from(&found))
    }
}

impl From<&Metadata> for FileId {
    fn from(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
        }
    }
}

impl From<&libc::stat> for FileId {
    fn from(found: &libc::stat) -> Self {
        Self {
            device: found.st_dev,
            inode: found.st_ino,
        }
    }
}
