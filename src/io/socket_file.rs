//! A Unix socket that listens at a path: made as if a job could make names there, and removed at the end.
//!
//! Runs on: the I/O thread.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, geteuid, setfsgid};
use serde::{Deserialize, Serialize};

use crate::sys::files::FileId;
use crate::sys::messages::let_descriptors_pass;

/// Who may connect, besides the host's own user and root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Access {
    /// The socket's mode. Users without the right to write to it cannot connect (`unix(7)`).
    pub mode: Option<u32>,
    /// The socket's group.
    pub group: Option<u32>,
    /// Users whose connections are accepted, if the mode lets them connect.
    pub uids: Vec<u32>,
}

/// The name of a socket, which is removed when this is dropped.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// What was made at the path.
    own: FileId,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another host may have replaced it.
        if self.is_at_its_path()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::debug!("removing {}: {error}", self.path.display());
        }
    }
}

impl SocketFile {
    fn is_at_its_path(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.own)
    }
}

fn identity(path: &Path) -> std::io::Result<FileId> {
    std::fs::symlink_metadata(path).map(|found| FileId::from(&found))
}

/// Listens at `path` with a socket of this type, which does not block. A socket that a host left there, and at which nobody
/// listens any more, is replaced.
pub(crate) fn listen_at(
    path: &Path,
    access: &Access,
    kind: SockType,
) -> anyhow::Result<(OwnedFd, SocketFile)> {
    let step = |what: &str| format!("{what} {}", path.display());
    let address = UnixAddr::new(path).with_context(|| step("the socket's path"))?;
    remove_stale(path, &address, kind)?;
    let fd = new_socket(kind)?;
    // Of the socket that bind makes (`unix(7)`): by its path it could be another by then.
    let mode = Mode::from_bits_truncate(access.mode.unwrap_or(0o600));
    fchmod(&fd, mode).with_context(|| step("fchmod"))?;
    bind_as(access.group, || bind(fd.as_raw_fd(), &address)).with_context(|| step("bind"))?;
    // From here on an error removes it.
    let file = SocketFile {
        own: identity(path).with_context(|| step("stat"))?,
        path: path.to_owned(),
    };
    set_mode(path, mode).with_context(|| step("chmod"))?;
    if let Some(group) = access.group {
        let found = std::fs::symlink_metadata(path).with_context(|| step("stat"))?;
        ensure!(
            found.gid() == group,
            "{} is of group {} and not {group}; hint: only root and its members can give it to a group",
            path.display(),
            found.gid()
        );
    }
    // What others send is closed in this thread, and a descriptor can make that wait (SO_LINGER): nobody's, until it is known whose.
    let_descriptors_pass(&fd, false).with_context(|| step("setsockopt(SO_PASSRIGHTS)"))?;
    listen(&fd, Backlog::MAXCONN).with_context(|| step("listen"))?;
    // A host that started at the same moment has found this socket while nobody listened at it.
    ensure!(
        file.is_at_its_path(),
        "another host has taken {} at the same moment",
        path.display()
    );
    Ok((fd, file))
}

/// Gives the socket that has just been made there the part of its mode that the umask has taken away.
fn set_mode(path: &Path, mode: Mode) -> anyhow::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let found = std::fs::File::from(open(path, flags, Mode::empty())?);
    let seen = found.metadata()?;
    // In a folder that others can write to, it may be another file by now, though none of this user's making.
    let is_own =
        seen.file_type().is_socket() && seen.uid() == geteuid().as_raw() && seen.nlink() == 1;
    ensure!(is_own, "another file has come into its place");
    // A descriptor that is open for its place alone has no fchmod of its own (`open(2)`).
    let place = format!("/proc/thread-self/fd/{}", found.as_raw_fd());
    std::fs::set_permissions(place, std::fs::Permissions::from_mode(mode.bits()))?;
    Ok(())
}

/// Makes a file with this group, which it has from the start (`setfsgid(2)`): by its path it could be another file's later.
fn bind_as<T>(group: Option<u32>, make: impl FnOnce() -> T) -> T {
    let before = group.map(|group| setfsgid(Gid::from_raw(group)));
    let made = make();
    if let Some(before) = before {
        setfsgid(before);
    }
    made
}

fn new_socket(kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, kind, flags, None)
}

fn remove_stale(path: &Path, address: &UnixAddr, kind: SockType) -> anyhow::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    ensure!(
        found.file_type().is_socket(),
        "{} exists and is no socket",
        path.display()
    );
    let answer = connect(new_socket(kind)?.as_raw_fd(), address);
    // A socket of another type refuses too, whoever listens there: EPROTOTYPE.
    ensure!(
        answer == Err(Errno::ECONNREFUSED),
        "another process listens at {}",
        path.display()
    );
    std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
}
