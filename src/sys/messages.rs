//! Unix sockets that keep messages apart (`SOCK_SEQPACKET`, `unix(7)`), with descriptors.
//!
//! Runs on: any process.

use std::future::poll_fn;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Linger, SockType as TypeOption};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, SockaddrLike,
    SockaddrStorage, getsockname, getsockopt, sendmsg, setsockopt, shutdown, socketpair,
};
use tokio::io::unix::AsyncFd;

use super::check;
use super::files::{Interest, watch};

/// The longest message in bytes.
pub(crate) const LONGEST: usize = 64 << 10;
/// The most descriptors that come with one. The kernel closes what does not fit.
pub(crate) const MOST_DESCRIPTORS: usize = 8;
/// Room for them.
// SAFETY: a number of bytes, computed.
const CONTROL_SPACE: usize =
    unsafe { libc::CMSG_SPACE((MOST_DESCRIPTORS * size_of::<RawFd>()) as u32) } as usize;
/// A descriptor that the kernel sends along if asked for it (`SO_PASSPIDFD`, Linux 6.5).
const SCM_PIDFD: libc::c_int = 4;

/// How long room is waited for if nothing tells when there is some.
const PAUSE: Duration = Duration::from_millis(10);

/// What came with one message.
#[derive(Debug)]
pub(crate) struct Message {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
    /// Whether there was more: bytes, or descriptors, for which there may have been no room.
    pub is_cut: bool,
}

impl Message {
    /// Whether descriptors are missing that there was room for in the message, but not in this
    /// process.
    pub(crate) fn lost_descriptors(&self) -> bool {
        self.is_cut && self.bytes.len() < LONGEST && self.descriptors.len() < MOST_DESCRIPTORS
    }
}

/// A connected pair.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        flags,
    )?)
}

/// Receives one message; `None` once the other side has gone.
///
/// Not through nix: its iterator over control messages gives up if they were cut, and the
/// descriptors that did come would stay open for ever.
pub(crate) fn receive(socket: BorrowedFd<'_>, flags: libc::c_int) -> Result<Option<Message>> {
    receive_up_to(LONGEST, socket, flags)
}

/// The same for a message of at most so many bytes.
pub(crate) fn receive_up_to(
    longest: usize,
    socket: BorrowedFd<'_>,
    flags: libc::c_int,
) -> Result<Option<Message>> {
    let mut bytes = Vec::<u8>::with_capacity(longest);
    // In words, for the alignment of `cmsghdr`.
    let mut control = [0u64; CONTROL_SPACE.div_ceil(size_of::<u64>())];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: longest,
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_SPACE as _;
    let length = loop {
        // SAFETY: the header describes two buffers that are valid for writes of their lengths.
        let received = check(unsafe {
            libc::recvmsg(
                socket.as_raw_fd(),
                &raw mut header,
                flags | libc::MSG_CMSG_CLOEXEC,
            )
        } as _);
        match received {
            // A reset is said once, if the other side went without reading all. What it said before
            // that comes after it.
            Err(Errno::ECONNRESET | Errno::EINTR) => {}
            other => break other?,
        }
    };
    // SAFETY: the kernel has filled in both buffers as far as it says.
    let descriptors = unsafe {
        bytes.set_len(length as usize);
        take_descriptors(&header)
    };
    let is_cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some(Message {
        bytes,
        descriptors,
        is_cut,
    }))
}

/// Owns every descriptor that came, whatever else is wrong with the message (`cmsg(3)`).
///
/// # Safety
/// The header must be one that `recvmsg(2)` has just filled in, once.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: by this function's contract the control messages are valid, and each number was made
    // for this message, so nobody else knows it.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let kind = ((*message).cmsg_level, (*message).cmsg_type);
            if matches!(kind, (libc::SOL_SOCKET, libc::SCM_RIGHTS | SCM_PIDFD)) {
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                let length = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for place in 0..length / size_of::<RawFd>() {
                    let number = data.add(place).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(number));
                }
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    descriptors
}

/// A connected socket, watched by the current runtime.
pub(crate) struct Socket {
    fd: Rc<OwnedFd>,
    watched: Option<AsyncFd<Rc<OwnedFd>>>,
}

impl Socket {
    /// # Errors
    /// If it is not a Unix socket that keeps messages apart.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self> {
        if !is_unix_socket(&fd) || getsockopt(&fd, TypeOption)? != SockType::SeqPacket {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "expected a Unix socket of type SOCK_SEQPACKET",
            ));
        }
        let fd = Rc::new(fd);
        Ok(Self {
            watched: Some(watch(fd.clone(), Interest::READABLE)?),
            fd,
        })
    }

    /// From here on this thread is not woken when something comes. To receive then fails with
    /// `WouldBlock` if nothing has.
    pub(crate) fn stop_watching(&mut self) {
        self.watched = None;
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    /// The next message; `None` once the other side has gone. Loses nothing if dropped before it is
    /// done.
    pub(crate) async fn receive(&self) -> Result<Option<Message>> {
        poll_fn(|context| self.poll_receive(context)).await
    }

    /// The same, for a task that listens to several.
    pub(crate) fn poll_receive(&self, context: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let Some(watched) = &self.watched else {
            return Poll::Ready(self.receive_now());
        };
        loop {
            let mut ready = ready!(watched.poll_read_ready(context))?;
            match self.receive_now() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                other => return Poll::Ready(other),
            }
        }
    }

    fn receive_now(&self) -> Result<Option<Message>> {
        let message = receive(self.fd.as_fd(), libc::MSG_DONTWAIT)?;
        if let Some(message) = &message {
            message.descriptors.iter().for_each(do_not_linger);
        }
        Ok(message)
    }

    /// Sends a message, once the other side has room for it.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<()> {
        loop {
            match self.send_now(bytes, &[]) {
                Err(errno) => self.room_after(errno).await?,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Waits until what could not be sent for want of room may be sent; fails with any other error.
    pub(crate) async fn room_after(&self, errno: Errno) -> Result<()> {
        match errno {
            Errno::EAGAIN => self.room().await,
            // Too many descriptors are under way, of all sockets of this user (`unix(7)`).
            Errno::ETOOMANYREFS => {
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
            other => Err(other.into()),
        }
    }

    /// Waits until the other side has room. Watched for that all the time, the socket would wake
    /// this thread each time that the other side reads something.
    async fn room(&self) -> Result<()> {
        let socket = match self.fd.try_clone() {
            Ok(socket) => socket,
            // Some other will be closed.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                tokio::time::sleep(PAUSE).await;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        watch(socket, Interest::WRITABLE)?
            .writable()
            .await?
            .retain_ready();
        Ok(())
    }

    /// Says something before this end is closed. What has come meanwhile is thrown away: unread, it
    /// would have the other side told of a reset first (`unix(7)`), where many stop listening. Nothing more comes:
    /// the other side's threads could else keep this one here.
    pub(crate) fn say_last(&self, bytes: &[u8]) {
        if let Err(errno) = shutdown(self.fd.as_raw_fd(), Shutdown::Read) {
            log::debug!("shutdown: {errno}");
            return;
        }
        while matches!(self.receive_now(), Ok(Some(_))) {}
        if let Err(errno) = self.send_now(bytes, &[]) {
            log::debug!("nobody hears the last word: {errno}");
        }
    }

    /// Sends a message with descriptors, or fails with EAGAIN.
    pub(crate) fn send_now(&self, bytes: &[u8], descriptors: &[RawFd]) -> nix::Result<()> {
        send(self.fd.as_fd(), bytes, descriptors)
    }
}

/// Has a descriptor that came from elsewhere close at once: what a socket of a network has not sent, its owner may have it
/// wait for (SO_LINGER, `socket(7)`).
fn do_not_linger(descriptor: &OwnedFd) {
    let never = libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    match setsockopt(descriptor, Linger, &never) {
        Ok(()) | Err(Errno::ENOTSOCK | Errno::ENOPROTOOPT | Errno::EBADF) => {}
        Err(errno) => log::debug!("SO_LINGER of a client's socket: {errno}"),
    }
}

/// Whether the other end of a socket may send descriptors (SO_PASSRIGHTS, Linux 6.16; a listening socket passes it on). Older kernels
/// let everybody do so.
///
/// # Errors
/// Of `setsockopt(2)`, but for a kernel that does not know it.
pub(crate) fn let_descriptors_pass(socket: &OwnedFd, pass: bool) -> nix::Result<()> {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let value = libc::c_int::from(pass);
    // SAFETY: an int, and its size.
    let result = check(
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PASSRIGHTS,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        }
        .into(),
    );
    match result {
        Err(Errno::ENOPROTOOPT) => Ok(()),
        other => other.map(drop),
    }
}

/// Whether it is a socket of this machine alone.
pub(crate) fn is_unix_socket(socket: &OwnedFd) -> bool {
    getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix))
}

/// Appends bytes to a message that is a text: after a null character, which is in no text.
pub(crate) fn attach(message: &mut Vec<u8>, bytes: &[u8]) {
    message.push(0);
    message.extend_from_slice(bytes);
}

/// A message's text, and the bytes that were appended to it.
pub(crate) fn split_attached(message: &[u8]) -> (&[u8], Option<&[u8]>) {
    match message.iter().position(|&byte| byte == 0) {
        Some(end) => (&message[..end], Some(&message[end + 1..])),
        None => (message, None),
    }
}

/// Sends a message with descriptors, or fails with EAGAIN.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd]) -> nix::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() {
        &rights[..0]
    } else {
        &rights
    };
    let parts = [IoSlice::new(bytes)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}
