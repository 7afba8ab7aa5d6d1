//! The operator's terminal and open files, as they were before a job had them.
//!
//! Runs on: the I/O thread.
//!
//! `pyspawner run` hands the job the operator's own standard streams. Terminal modes and the
//! non-blocking flag belong to what is open, not to the process, so a job could leave a
//! terminal without echo, or the shell with an input that never waits.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::termios::{FlowArg, SetArg, Termios, tcflow, tcgetattr, tcsetattr};

/// The state of the three standard streams.
pub(super) struct Streams {
    saved: Vec<(BorrowedFd<'static>, OFlag, Mode, Option<Termios>)>,
}

impl Streams {
    /// Remembers the present state.
    pub(super) fn save() -> nix::Result<Self> {
        let saved = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO]
            .map(|number| {
                // SAFETY: the standard streams stay open for as long as the process lives.
                let stream = unsafe { BorrowedFd::borrow_raw(number) };
                let flags = OFlag::from_bits_retain(fcntl(stream, FcntlArg::F_GETFL)?);
                let mode = Mode::from_bits_truncate(fstat(stream)?.st_mode);
                Ok((stream, flags, mode, tcgetattr(stream).ok()))
            })
            .into_iter()
            .collect::<nix::Result<_>>()?;
        Ok(Self { saved })
    }

    /// Puts the state back, and lets a stopped terminal go on.
    pub(super) fn restore(&self) {
        for (stream, flags, mode, modes) in &self.saved {
            let mut result = fcntl(stream, FcntlArg::F_SETFL(*flags)).map(drop);
            // A job that has no user of its own owns what its operator does.
            let now = fstat(stream).map(|found| Mode::from_bits_truncate(found.st_mode));
            if now != Ok(*mode) {
                result = result.and_then(|()| fchmod(stream, *mode));
            }
            if let Some(modes) = modes {
                result = result
                    .and_then(|()| tcflow(stream, FlowArg::TCOON))
                    .and_then(|()| tcsetattr(stream, SetArg::TCSANOW, modes));
            }
            if let Err(errno) = result {
                log::warn!("restoring stream {}: {errno}", stream.as_raw_fd());
            }
        }
    }
}
