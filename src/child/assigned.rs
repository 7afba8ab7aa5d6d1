//! How a child that is in its sandbox takes its job.
//!
//! Runs on: a child.
//!
//! It is parked at its control socket until the host hands over the job's streams and arguments, so
//! that a child can be ready before there is a job for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::layer::{Layer, SetupError, at};
use crate::sandbox::processes;
use crate::sys::descriptors::standard_streams;
use crate::sys::{files, messages};
use crate::wire::assignment::{Assignment, LONGEST, Received};
use crate::wire::child_descriptors::StreamCopy;
use crate::wire::fd_set::{FdSet, Role};
use crate::wire::payload::{Call, Payload};
use crate::wire::result_channel;

/// A child's job: its descriptors are in their places.
pub(crate) struct Assigned {
    pub call: Call,
    pub payload: Payload,
    /// See [`Assignment::shows_folder`].
    pub shows_folder: bool,
}

/// Waits for the job at the control socket. `None`: there is no host any more.
///
/// `copies` are the numbers at which preloaded objects keep a standard stream.
pub(crate) fn wait(
    control: BorrowedFd<'_>,
    copies: &[StreamCopy],
) -> Result<Option<Assigned>, SetupError> {
    take(control, copies)
}

/// Takes a job that consists of the descriptors that are there already, so that what that writes to
/// is this child's own when its job comes (a first write to a page that is shared with the host
/// takes as long as several system calls). Standard output leads nowhere from here on, until
/// [`end_rehearsal`].
pub(crate) fn rehearse(copies: &[StreamCopy]) -> Result<Option<Assigned>, SetupError> {
    let (mouth, ear) = messages::pair().map_err(|error| failed("socketpair", &error))?;
    let [null, _, stderr] = standard_streams(); // as the clone has left them
    let descriptors = FdSet::default()
        .with(Role::Stdin, null)
        .with(Role::Stdout, null)
        .with(Role::Stderr, stderr)
        .with(Role::Result, null);
    let nothing = Payload::Inline(Vec::new());
    let assignment = Assignment::default().encode(&nothing, descriptors.roles());
    messages::send(mouth.as_fd(), &assignment, &descriptors.numbers())
        .map_err(at(Layer::Descriptors, "sendmsg(rehearsal)"))?;
    take(ear.as_fd(), copies)
}

/// Undoes what a rehearsal has changed.
pub(crate) fn end_rehearsal(copies: &[StreamCopy]) -> Result<(), SetupError> {
    if let Some(channel) = result_channel::number() {
        result_channel::set(None);
        nix::unistd::close(channel).map_err(at(Layer::Descriptors, "close"))?;
    }
    place(libc::STDERR_FILENO, libc::STDOUT_FILENO, copies)
}

fn take(control: BorrowedFd<'_>, copies: &[StreamCopy]) -> Result<Option<Assigned>, SetupError> {
    let received = messages::receive_up_to(LONGEST, control, 0);
    let Some(message) = received.map_err(|error| failed("recvmsg(assignment)", &error))? else {
        return Ok(None);
    };
    let decoding = at(Layer::Descriptors, "decoding the assignment");
    let Received {
        assignment,
        mut descriptors,
        arguments,
    } = Received::decode(message).map_err(&decoding)?;
    let mut needed = |role| descriptors.take(role).ok_or_else(|| decoding(Errno::EBADF));
    let streams = [Role::Stdin, Role::Stdout, Role::Stderr];
    for (role, number) in streams.into_iter().zip(0..) {
        place(needed(role)?.as_raw_fd(), number, copies)?;
    }
    let payload = match arguments {
        Some(bytes) => Payload::Inline(bytes),
        None => Payload::File(needed(Role::Arguments)?),
    };
    let result = descriptors.take(Role::Result).map(raise).transpose()?;
    result_channel::set(result);
    processes::take_name(assignment.process_name.as_deref())?;
    Ok(Some(Assigned {
        call: assignment.call,
        payload,
        shows_folder: assignment.shows_folder,
    }))
}

/// Moves the result channel out of the way of the job's own files. Programs that the job executes do not get it.
fn raise(channel: OwnedFd) -> Result<RawFd, SetupError> {
    match files::duplicate_above(channel.as_raw_fd(), result_channel::LOWEST) {
        Ok(number) => Ok(number),
        // The limit of open files is lower. It stays where it is, close-on-exec as it came.
        Err(Errno::EINVAL) => Ok(channel.into_raw_fd()),
        Err(errno) => Err(at(Layer::Descriptors, "fcntl(F_DUPFD)")(errno)),
    }
}

/// Puts a stream at its number, and wherever else it is expected.
fn place(source: RawFd, stream: RawFd, copies: &[StreamCopy]) -> Result<(), SetupError> {
    let failed = at(Layer::Descriptors, "dup3");
    files::duplicate_onto(source, stream, false).map_err(&failed)?;
    for copy in copies.iter().filter(|copy| copy.stream == stream) {
        match files::duplicate_onto(source, copy.number, true) {
            Ok(()) => {}
            // The number is above the job's limit of open files. What was there until now is the host's.
            Err(Errno::EBADF) => nix::unistd::close(copy.number)
                .or_else(|errno| match errno {
                    Errno::EBADF => Ok(()),
                    other => Err(other),
                })
                .map_err(&failed)?,
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

fn failed(step: &'static str, error: &std::io::Error) -> SetupError {
    SetupError::from_io(Layer::Descriptors, step, error)
}
