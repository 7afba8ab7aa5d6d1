//! The pipes between host and job.

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;

use super::payload::Streams;

/// The parent's ends of a child's streams.
#[derive(Default)]
pub struct Ends {
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    pub result: Option<pipe::Receiver>,
}

/// The child's ends, closed here once they are handed over.
#[derive(Default)]
pub struct ChildEnds {
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub result: Option<OwnedFd>,
}

/// Opens what a child with these streams needs.
pub fn open(streams: &Streams) -> std::io::Result<(Ends, ChildEnds)> {
    let (mut ends, mut child) = <(Ends, ChildEnds)>::default();
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
