//! Unix sockets that keep messages apart (`SOCK_SEQPACKET`, `unix(7)`), with descriptors.

use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SockType as TypeOption;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockType, getsockopt, recvmsg, send};
use tokio::io::unix::AsyncFd;

use crate::sys::files::watch;

/// The longest message in bytes. Arguments are not in messages.
pub const LONGEST: usize = 64 << 10;
/// The most descriptors that come with one.
const MOST_DESCRIPTORS: usize = 8;

/// A connected socket, watched by the current runtime.
pub struct Socket(AsyncFd<OwnedFd>);

/// What came with one message.
pub struct Message {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// # Errors
    /// If it is not a socket that keeps messages apart.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        if getsockopt(&fd, TypeOption)? != SockType::SeqPacket {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "expected a socket of type SOCK_SEQPACKET",
            ));
        }
        Ok(Self(watch(fd)?))
    }

    /// The next message; `None` once the other side has gone. Loses nothing if dropped before it is
    /// done.
    ///
    /// # Errors
    /// For a message that is too long or has too many descriptors: it is lost then.
    pub async fn receive(&self) -> Result<Option<Message>> {
        loop {
            let mut ready = self.0.readable().await?;
            match receive_now(self.0.get_ref()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                other => return other,
            }
        }
    }

    /// Sends a message, once the other side has room for it.
    pub async fn send(&self, bytes: &[u8]) -> Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            // Tried first: there nearly always is room.
            match send(self.0.get_ref().as_raw_fd(), bytes, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => {
                    let mut ready = self.0.writable().await?;
                    ready.clear_ready();
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn receive_now(fd: &OwnedFd) -> Result<Option<Message>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    // Owned first of all, so that none is left open whatever is wrong with the message.
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            for number in numbers {
                // SAFETY: the kernel has just made it for this message, and nobody else knows it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    let cut = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
    if received.flags.intersects(cut) {
        return Err(Error::new(
            ErrorKind::InvalidData,
            format!("a message of more than {LONGEST} bytes or {MOST_DESCRIPTORS} descriptors"),
        ));
    }
    let length = received.bytes;
    if length == 0 {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some(Message { bytes, descriptors }))
}
