//! The pipes between host and job, and which descriptors become the job's.
//!
//! Runs on: the I/O thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;

use super::payload::{Job, Stdin, Streams};
use crate::sys::descriptors::standard_streams;
use crate::wire::fd_set::{FdSet, Role};
use crate::wire::payload::Payload;

/// The parent's ends of a child's streams.
#[derive(Default)]
pub(super) struct Ends {
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    pub result: Option<pipe::Receiver>,
}

/// The child's ends of the same, closed here once they are handed over.
pub(super) type ChildEnds = FdSet<OwnedFd>;

/// Opens the pipes that this job's child needs.
pub(super) fn open(job: &Job) -> std::io::Result<(Ends, ChildEnds)> {
    let (mut ends, mut child) = <(Ends, ChildEnds)>::default();
    let mut pipe = |role| -> std::io::Result<_> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        child.put(role, write);
        Ok(Some(pipe::Receiver::from_owned_fd(read)?))
    };
    if matches!(job.streams, Streams::Capture) {
        ends.stdout = pipe(Role::Stdout)?;
        ends.stderr = pipe(Role::Stderr)?;
    }
    if job.wants_result {
        ends.result = pipe(Role::Result)?;
    }
    Ok((ends, child))
}

/// What a job's child gets: these ends, what the job brings along, and else the host's own streams.
pub(super) fn of_child<'a>(job: &'a Job, ends: &'a ChildEnds) -> FdSet<BorrowedFd<'a>> {
    let own = standard_streams();
    let given = match &job.streams {
        Streams::Given { stdout, stderr } => [Some(stdout), Some(stderr)],
        Streams::Inherit | Streams::Capture => {
            [Role::Stdout, Role::Stderr].map(|role| ends.get(role))
        }
    };
    let [stdout, stderr] = given.map(|end| end.map(AsFd::as_fd));
    let stdin = match &job.stdin {
        Stdin::Inherit => own[0],
        Stdin::Private(own) => own.as_fd(),
    };
    let arguments = match &job.payload {
        Payload::Inline(_) => None,
        Payload::File(file) => Some(file.as_fd()),
    };
    FdSet::default()
        .with(Role::Stdin, stdin)
        .with(Role::Stdout, stdout.unwrap_or(own[1]))
        .with(Role::Stderr, stderr.unwrap_or(own[2]))
        .with(Role::Arguments, arguments)
        .with(Role::Result, ends.get(Role::Result).map(AsFd::as_fd))
}
