//! A socket that clients connect to.
//!
//! Runs on: the I/O thread.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockType, accept4};
use tokio::io::unix::AsyncFd;

use super::protocol::Event;
use super::{Service, attend};
use crate::io::peer::Admission;
use crate::io::socket_file::{Access, SocketFile, listen_at};
use crate::sys::files::{Interest, watch};
use crate::sys::messages::{Socket, let_descriptors_pass};

/// After a warning that a client is not served, more of them are left out for so long.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(5);

/// A listening socket, which is removed at the end.
pub(crate) struct Listener {
    fd: AsyncFd<OwnedFd>,
    #[expect(dead_code, reason = "it is held")]
    file: SocketFile,
    admission: Admission,
}

impl Listener {
    /// Listens at `path`, for this user, root and those of `access`.
    pub(crate) fn open(path: &Path, access: &Access) -> anyhow::Result<Self> {
        let admission = Admission::new(access.uids.clone())?;
        let (fd, file) = listen_at(path, access, SockType::SeqPacket)?;
        let fd = watch(fd, Interest::READABLE)?;
        Ok(Self {
            fd,
            file,
            admission,
        })
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
