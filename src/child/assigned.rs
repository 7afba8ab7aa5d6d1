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
use crate::sys::{files, messages};
use crate::wire::assignment::{Assignment, Handed, LONGEST};
use crate::wire::child_descriptors::StreamCopy;
use crate::wire::payload::{Call, Payload};
use crate::wire::result_channel;

/// A child's job: its descriptors are in their places.
pub(crate) struct Assigned {
    pub call: Call,
    pub payload: Payload,
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
    let null = libc::STDIN_FILENO; // as the clone has left it
    let handed = Handed {
        stdin: null,
        stdout: null,
        stderr: libc::STDERR_FILENO,
        payload: None,
        result: Some(null),
    };
    let assignment = Assignment::default().encode(&Payload::Inline(Vec::new()));
    messages::send(mouth.as_fd(), &assignment, &handed.numbers())
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
    let failed = at(Layer::Descriptors, "decoding the assignment");
    let received = messages::receive_up_to(LONGEST, control, 0);
    let Some(message) = received.map_err(|error| self::failed("recvmsg(assignment)", &error))?
    else {
        return Ok(None);
    };
    let (text, attached) = messages::split_attached(&message.bytes);
    let assignment: Assignment =
        serde_json::from_slice(text).map_err(|_| failed(Errno::EBADMSG))?;
    if message.is_cut {
        let errno = match message.lost_descriptors() {
            true => Errno::EMFILE,
            false => Errno::EMSGSIZE,
        };
        return Err(at(Layer::Descriptors, "recvmsg(assignment)")(errno));
    }
    let mut descriptors = message.descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(failed(Errno::EBADF));
    let (stdin, stdout, stderr) = (next()?, next()?, next()?);
    let payload = match attached {
        Some(bytes) => Payload::Inline(bytes.to_vec()),
        None => Payload::File(next()?),
    };
    let result = descriptors.next().map(raise).transpose()?;
    result_channel::set(result);
    for (source, number) in [(&stdin, 0), (&stdout, 1), (&stderr, 2)] {
        place(source.as_raw_fd(), number, copies)?;
    }
    processes::take_name(assignment.process_name.as_deref())?;
    Ok(Some(Assigned {
        call: assignment.call,
        payload,
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
