//! A socket that clients connect to.
//!
//! Runs on: the I/O thread.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, geteuid, setfsgid};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::peer::Admission;
use super::protocol::Event;
use super::{Service, attend};
use crate::sys::files::{FileId, Interest, watch};
use crate::sys::messages::{Socket, let_descriptors_pass};

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

/// After a warning that a client is not served, more of them are left out for so long.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(5);

/// A listening socket, which is removed at the end.
pub(crate) struct Listener {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
    admission: Admission,
    /// What was made at the path.
    own: FileId,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another host may have replaced it.
        if self.is_at_its_path()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::debug!("removing {}: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> std::io::Result<FileId> {
    std::fs::symlink_metadata(path).map(|found| FileId::from(&found))
}

impl Listener {
    /// Listens at `path`, for this user, root and those of `access`. A socket that a host left there, and at which
    /// nobody listens any more, is replaced.
    pub(crate) fn open(path: &Path, access: &Access) -> anyhow::Result<Self> {
        let step = |what: &str| format!("{what} {}", path.display());
        let admission = Admission::new(access.uids.clone())?;
        let address = UnixAddr::new(path).with_context(|| step("the socket's path"))?;
        remove_stale(path, &address)?;
        let fd = new_socket()?;
        // Of the socket that bind makes (`unix(7)`): by its path it could be another by then.
        let mode = Mode::from_bits_truncate(access.mode.unwrap_or(0o600));
        fchmod(&fd, mode).with_context(|| step("fchmod"))?;
        bind_as(access.group, || bind(fd.as_raw_fd(), &address)).with_context(|| step("bind"))?;
        // From here on an error removes it.
        let listener = Self {
            own: identity(path).with_context(|| step("stat"))?,
            fd: watch(fd, Interest::READABLE)?,
            path: path.to_owned(),
            admission,
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
        let fd = listener.fd.get_ref();
        // What others send is closed in this thread, and a descriptor can make that wait (SO_LINGER): nobody's, until it is known whose.
        let_descriptors_pass(fd, false).with_context(|| step("setsockopt(SO_PASSRIGHTS)"))?;
        listen(fd, Backlog::MAXCONN).with_context(|| step("listen"))?;
        // A host that started at the same moment has found this socket while nobody listened at it.
        ensure!(
            listener.is_at_its_path(),
            "another host has taken {} at the same moment",
            path.display()
        );
        Ok(listener)
    }

    fn is_at_its_path(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.own)
    }

    /// Serves every client that comes, for ever.
    pub(crate) async fn serve(&self, service: &Rc<Service>) -> std::io::Result<()> {
        let mut warned: Option<Instant> = None;
        loop {
            let client = self.accept().await?;
            // While there is always one more, a time limit and a signal must be heard.
            tokio::task::yield_now().await;
            if let Err(reason) = admit(service, client, &self.admission) {
                // Whoever may connect must not fill the log.
                let is_due = warned.is_none_or(|last| last.elapsed() > BETWEEN_WARNINGS);
                let level = match is_due {
                    true => log::Level::Warn,
                    false => log::Level::Debug,
                };
                log::log!(level, "a client is not served: {reason}");
                if is_due {
                    warned = Some(Instant::now());
                }
            }
        }
    }

    /// Tells those who have come so far that there will be no host. Others may come all the time: not for them.
    pub(crate) fn turn_away(&self, event: &Event<'_>) {
        const MOST: usize = 64;
        for client in std::iter::from_fn(|| self.accept_now().ok()).take(MOST) {
            match Socket::new(client) {
                Ok(client) => client.say_last(&event.encode()),
                Err(error) => log::warn!("a client cannot be turned away: {error}"),
            }
        }
    }

    fn accept_now(&self) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.fd.get_ref().as_raw_fd(), flags)?;
        // SAFETY: accept4 has just made it, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    async fn accept(&self) -> std::io::Result<OwnedFd> {
        loop {
            let mut ready = self.fd.readable().await?;
            match self.accept_now() {
                Ok(client) => return Ok(client),
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

/// Begins to serve a client, if it may be one.
fn admit(service: &Rc<Service>, client: OwnedFd, admission: &Admission) -> Result<(), String> {
    let checked = admission.check(&client).and_then(|()| {
        let allowed = let_descriptors_pass(&client, true);
        allowed.map_err(|errno| format!("setsockopt(SO_PASSRIGHTS): {errno}"))
    });
    let client = Socket::new(client).map_err(|error| error.to_string())?;
    if let Err(reason) = checked {
        // Who is sent away without a word takes the host for dead.
        let event = Event::Failed {
            kind: "refused",
            detail: &reason,
        };
        client.say_last(&event.encode());
        return Err(reason);
    }
    match service.admit_client() {
        Ok(counted) => {
            let service = service.clone();
            tokio::task::spawn_local(async move {
                let _counted = counted;
                attend(service, client).await;
            });
            Ok(())
        }
        Err(reason) => {
            let event = Event::Failed {
                kind: "protocol",
                detail: &reason,
            };
            client.say_last(&event.encode());
            Err(reason)
        }
    }
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
