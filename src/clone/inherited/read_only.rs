//! Ways by which children open a file that the host holds, and come to no more than that file.
//!
//! Runs on: the main thread.

use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::table::{Entry, Table};
use crate::sys::files::read_to_end;
use crate::sys::mounts::{copy_of_file, new_tmpfs, set_attributes};

/// A memory file up to this size in bytes is copied for children.
const LARGEST_MEMORY_FILE: i64 = 256 << 20;
/// What a file is restricted to for children, whatever the way that leads to it.
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// A descriptor through which children open a file read-only: on a mount of its own, or of a copy, so that
/// whoever has it comes to no more than that file.
pub(super) fn readable_copy(table: &Table, entry: &Entry) -> std::io::Result<OwnedFd> {
    match restricted(entry.fd()) {
        Ok(tree) => Ok(tree),
        // A file of no mount: a memory file.
        Err(Errno::EINVAL) if entry.is_memory() => copy_of_memory(table, entry),
        Err(errno) => Err(errno.into()),
    }
}

/// An open file on a mount of its own, which is read-only.
///
/// # Errors
/// EINVAL for a file of no mount, or of one that is not in the calling thread's mount namespace.
pub(super) fn restricted(file: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let tree = copy_of_file(file)?;
    set_attributes(&tree, READ_ONLY, 0)?;
    Ok(tree)
}

/// A device on a mount of its own, by which its modes and times cannot be changed.
pub(super) fn restricted_device(device: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    let tree = copy_of_file(device)?;
    set_attributes(&tree, set, libc::MOUNT_ATTR_NODEV)?;
    Ok(tree)
}

/// A copy of a memory file, on a read-only mount as well: of one that is only sealed, times and attributes could be
/// changed.
fn copy_of_memory(table: &Table, entry: &Entry) -> std::io::Result<OwnedFd> {
    if entry.status.st_size > LARGEST_MEMORY_FILE {
        return Err(Errno::EFBIG.into());
    }
    let content = read_to_end(table.open_anew(entry.number, OFlag::O_RDONLY)?)?;
    let mount = new_tmpfs(&[(c"mode", c"700")])?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(&mount, "copy", flags, Mode::from_bits_truncate(0o444))?;
    std::fs::File::from(file).write_all(&content)?;
    set_attributes(&mount, READ_ONLY, 0)?;
    Ok(openat(
        &mount,
        "copy",
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}
