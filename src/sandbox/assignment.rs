//! How a child that is in its sandbox gets its job.
//!
//! It is parked at its control socket until the host hands over the job's streams and arguments, so
//! that a child can be ready before there is a job for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::enter::CONTROL_FD;
use super::layer::{Layer, SetupError};
use super::{at, processes, seccomp};
use crate::call::{Call, Payload};
use crate::record::RESULT_FD;
use crate::sys::{files, messages};

/// What the host says of a job. With it come the arguments, unless they are in a file, and the
/// descriptors of [`Handed`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Assignment {
    /// What `ps` shows for the child; the kernel cuts it at 15 bytes.
    pub process_name: Option<String>,
    pub call: Call,
}

/// The longest message in bytes: what a client may say, in some words more.
const LONGEST: usize = messages::LONGEST + (1 << 10);

/// The host's descriptors that become the job's. Numbers, not owners: a message holds copies.
#[derive(Clone, Copy, Debug)]
pub struct Handed {
    pub stdin: RawFd,
    pub stdout: RawFd,
    pub stderr: RawFd,
    pub payload: Option<RawFd>,
    pub result: Option<RawFd>,
}

impl Handed {
    /// In the order in which they are sent.
    pub fn numbers(&self) -> Vec<RawFd> {
        let always = [self.stdin, self.stdout, self.stderr];
        let others = self.payload.into_iter().chain(self.result);
        always.into_iter().chain(others).collect()
    }
}

/// A child's job: its descriptors are in their places.
pub struct Assigned {
    pub call: Call,
    pub payload: Payload,
    pub wants_result: bool,
}

impl Assignment {
    pub fn encode(&self, payload: &Payload) -> Vec<u8> {
        let mut message = serde_json::to_vec(self).expect("an assignment is valid JSON");
        if let Payload::Inline(bytes) = payload {
            messages::attach(&mut message, bytes);
        }
        message
    }
}

/// Waits for the job. `None`: there is no host any more.
pub fn wait() -> Result<Option<Assigned>, SetupError> {
    // SAFETY: `enter` put the control socket there, and it is open until the job's code runs.
    take(unsafe { BorrowedFd::borrow_raw(CONTROL_FD) })
}

/// Takes a job that consists of the descriptors that are there already, so that what that writes to
/// is this child's own when its job comes (a first write to a page that is shared with the host
/// takes as long as several system calls). Standard output leads nowhere from here on, until
/// [`end_rehearsal`].
pub fn rehearse() -> Result<Option<Assigned>, SetupError> {
    let (mouth, ear) = messages::pair().map_err(|error| failed("socketpair", &error))?;
    let handed = Handed {
        stdin: libc::STDIN_FILENO,
        stdout: libc::STDIN_FILENO, // enter() made it /dev/null
        stderr: libc::STDERR_FILENO,
        payload: None,
        result: Some(RESULT_FD),
    };
    let assignment = Assignment::default().encode(&Payload::Inline(Vec::new()));
    messages::send(mouth.as_fd(), &assignment, &handed.numbers())
        .map_err(at(Layer::Descriptors, "sendmsg(rehearsal)"))?;
    take(ear.as_fd())
}

/// Undoes what a rehearsal has changed.
pub fn end_rehearsal() -> Result<(), SetupError> {
    seccomp::report_blocked_calls_to(false);
    duplicate(libc::STDERR_FILENO, libc::STDOUT_FILENO)
}

fn take(control: BorrowedFd<'_>) -> Result<Option<Assigned>, SetupError> {
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
    let result = descriptors.next();
    for (source, number) in [(&stdin, 0), (&stdout, 1), (&stderr, 2)] {
        place(source, number)?;
    }
    match &result {
        Some(result) => place(result, RESULT_FD)?,
        // It was kept free for this until now.
        None => nix::unistd::close(RESULT_FD).map_err(at(Layer::Descriptors, "close"))?,
    }
    seccomp::report_blocked_calls_to(result.is_some());
    processes::take_name(assignment.process_name.as_deref())?;
    Ok(Some(Assigned {
        call: assignment.call,
        payload,
        wants_result: result.is_some(),
    }))
}

fn place(source: &OwnedFd, number: RawFd) -> Result<(), SetupError> {
    duplicate(source.as_raw_fd(), number)
}

fn duplicate(source: RawFd, number: RawFd) -> Result<(), SetupError> {
    files::duplicate_onto(source, number, false).map_err(at(Layer::Descriptors, "dup3"))
}

fn failed(step: &'static str, error: &std::io::Error) -> SetupError {
    SetupError::from_io(Layer::Descriptors, step, error)
}
