//! The pipes and the control socket between host and child.

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::payload::Streams;

/// The parent's ends of a child's streams.
pub struct Ends {
    pub control: UnixStream,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    pub result: Option<pipe::Receiver>,
}

/// The child's ends, closed here once the clone has its copies.
pub struct ChildEnds {
    pub control: OwnedFd,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub result: Option<OwnedFd>,
}

/// Opens what a child with these streams needs.
pub fn open(streams: &Streams) -> std::io::Result<(Ends, ChildEnds)> {
    let (control, child_control) = std::os::unix::net::UnixStream::pair()?;
    control.set_nonblocking(true)?;
    let mut ends = Ends {
        control: UnixStream::from_std(control)?,
        stdout: None,
        stderr: None,
        result: None,
    };
    let mut child = ChildEnds {
        control: child_control.into(),
        stdout: None,
        stderr: None,
        result: None,
    };
    if matches!(streams, Streams::Capture) {
        for (end, child_end) in [
            (&mut ends.stdout, &mut child.stdout),
            (&mut ends.stderr, &mut child.stderr),
            (&mut ends.result, &mut child.result),
        ] {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            *end = Some(pipe::Receiver::from_owned_fd(read)?);
            *child_end = Some(write);
        }
    }
    Ok((ends, child))
}
