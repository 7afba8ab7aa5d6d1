//! What a host does, told to the init in front of it, which says why a host has ended.
//!
//! Runs on: the main thread, the I/O thread, the init.
//!
//! A preloaded module can end the host without a word: by a crash, by `exit(3)`. So the host writes what it is about to do
//! into a pipe, a line each, and the init reads that when the host has ended.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};

use crate::sys::files;

/// The line of a host that ends by itself. No module's name has a space.
const END: &str = "the end";

/// The end that the init reads, and the host's.
pub(crate) fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    // The host never waits for its init.
    pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
}

/// Tells what the host is about to do, such as `importing numpy`.
pub(crate) fn tell(init: BorrowedFd<'_>, activity: &str) {
    // An init that is gone does not read it, and the host goes on.
    files::write_once(init.as_raw_fd(), format!("{activity}\n").as_bytes());
}

/// Tells that the host ends by itself, and has said what there is to say.
pub(crate) fn tell_end(init: BorrowedFd<'_>) {
    tell(init, END);
}

/// What a host that has ended told last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Last {
    End,
    Activity(String),
}

impl Last {
    /// Reads what the host has told.
    pub(crate) fn read(told: &OwnedFd) -> Self {
        let mut text = Vec::new();
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = read(told, &mut part) {
            text.extend_from_slice(&part[..length]);
        }
        match String::from_utf8_lossy(&text).lines().next_back() {
            Some(END) => Self::End,
            Some(activity) => Self::Activity(activity.to_owned()),
            None => Self::Activity("starting".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_last_line_counts() {
        let (reader, writer) = pipe().expect("a pipe");
        assert_eq!(Last::read(&reader), Last::Activity("starting".to_owned()));
        tell(writer.as_fd(), "importing a");
        tell(writer.as_fd(), "importing b");
        assert_eq!(
            Last::read(&reader),
            Last::Activity("importing b".to_owned())
        );
        tell(writer.as_fd(), "running jobs");
        tell_end(writer.as_fd());
        assert_eq!(Last::read(&reader), Last::End);
    }
}
