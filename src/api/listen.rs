//! A socket that clients connect to.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, socket,
};
use tokio::io::unix::AsyncFd;

use super::{Service, Socket, attend};
use crate::sys::files::watch;

/// A listening socket, which is removed at the end.
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!("removing {}: {error}", self.path.display());
        }
    }
}

impl Listener {
    /// Listens at `path`, for this user and root. A socket that a host left there, and at which
    /// nobody listens any more, is replaced.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let step = |what: &str| format!("{what} {}", path.display());
        let address = UnixAddr::new(path).with_context(|| step("the socket's path"))?;
        remove_stale(path, &address)?;
        let fd = new_socket()?;
        bind(fd.as_raw_fd(), &address).with_context(|| step("bind"))?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).with_context(|| step("chmod"))?;
        listen(&fd, Backlog::MAXCONN).with_context(|| step("listen"))?;
        Ok(Self {
            fd: watch(fd)?,
            path: path.to_owned(),
        })
    }

    /// Serves every client that comes, for ever.
    pub async fn serve(&self, service: &Rc<Service>) -> std::io::Result<()> {
        loop {
            let client = self.accept().await?;
            let peer = getsockopt(&client, PeerCredentials)?;
            if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
                log::warn!("a client of uid {} is not served", peer.uid());
                continue;
            }
            tokio::task::spawn_local(attend(service.clone(), Socket::new(client)?));
        }
    }

    async fn accept(&self) -> std::io::Result<OwnedFd> {
        loop {
            let mut ready = self.fd.readable().await?;
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(self.fd.get_ref().as_raw_fd(), flags) {
                // SAFETY: accept4 has just made it, and nobody else knows it.
                Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                // There are too many now; some will go.
                Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
                    log::error!("accept: {errno}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

fn remove_stale(path: &Path, address: &UnixAddr) -> anyhow::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    ensure!(
        found.file_type().is_socket(),
        "{} exists and is no socket",
        path.display()
    );
    let answer = connect(new_socket()?.as_raw_fd(), address);
    ensure!(
        answer == Err(Errno::ECONNREFUSED),
        "another process listens at {}",
        path.display()
    );
    std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
}
