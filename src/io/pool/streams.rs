//! The pipes between host and job.
//!
//! Runs on: the I/O thread.

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;

use super::payload::{Job, Streams};

/// The parent's ends of a child's streams.
#[derive(Default)]
pub(super) struct Ends {
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    pub result: Option<pipe::Receiver>,
}

/// The child's ends, closed here once they are handed over.
#[derive(Default)]
pub(super) struct ChildEnds {
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub result: Option<OwnedFd>,
}

/// Opens the pipes that this job's child needs.
pub(super) fn open(job: &Job) -> std::io::Result<(Ends, ChildEnds)> {
    let (mut ends, mut child) = <(Ends, ChildEnds)>::default();
    if matches!(job.streams, Streams::Capture) {
        (ends.stdout, child.stdout) = pipe_from_child()?;
        (ends.stderr, child.stderr) = pipe_from_child()?;
    }
    if job.wants_result {
        (ends.result, child.result) = pipe_from_child()?;
    }
    Ok((ends, child))
}

fn pipe_from_child() -> std::io::Result<(Option<pipe::Receiver>, Option<OwnedFd>)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((Some(pipe::Receiver::from_owned_fd(read)?), Some(write)))
}
