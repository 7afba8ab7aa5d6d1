//! What a child has in place of descriptors of the host's, and how it is put there, in a child that has just been cloned.
//!
//! Runs on: a child that has just been cloned.
//!
//! That comes before any fork handler, since handlers close and reopen what they know (libuv does). Nothing here
//! may take a lock. New descriptors take numbers that nobody holds, since those that are held are open.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
use nix::unistd::pipe2;

use crate::sys::descriptors::{Timer, add_to_epoll, set_nonblocking, timer};
use crate::sys::files::duplicate_onto;

/// One end of something that a child makes anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub number: RawFd,
    pub is_nonblocking: bool,
}

/// What an epoll instance watches: a number, events, and the word that it answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    pub number: RawFd,
    pub events: u32,
    pub data: u64,
}

/// What a child has in place of descriptors of the host's.
#[derive(Debug)]
pub(super) enum StandIn {
    /// The same file, which the host opens anew for each child.
    Opened {
        number: RawFd,
        /// The descriptor of this process that leads to it.
        through: RawFd,
        flags: OFlag,
    },
    /// The job's own standard stream of that number.
    Stream {
        number: RawFd,
        stream: RawFd,
    },
    /// A new pipe, of which an end that the host does not hold is closed.
    Pipe {
        reader: Option<End>,
        writer: Option<End>,
    },
    /// A new pair of connected sockets. The second is closed if the host did not hold both.
    Connected {
        kind: SockType,
        one: End,
        other: Option<End>,
    },
    /// A new socket that is neither bound nor connected.
    Unconnected {
        family: AddressFamily,
        kind: SockType,
        end: End,
    },
    /// A new counter (`eventfd(2)`); also where nothing shall ever happen.
    Counter {
        end: End,
        count: u64,
        is_semaphore: bool,
    },
    Timer {
        end: End,
        setting: Timer,
    },
    /// A new `signalfd(2)` for the signals of this mask.
    Signals {
        end: End,
        mask: u64,
    },
    /// A new epoll instance that watches the same numbers.
    Epoll {
        number: RawFd,
        interests: Vec<Interest>,
    },
    /// Every use fails with EBADF, as if it were closed; but the number is taken (`open(2)`, O_PATH).
    Unusable {
        number: RawFd,
    },
    /// Shares the open file of another stand-in, as in the host.
    Duplicate {
        number: RawFd,
        of: RawFd,
    },
}

/// A step that failed, with the number that it was for.
pub(super) struct Failed {
    pub step: &'static str,
    pub number: RawFd,
    pub errno: Errno,
}

fn failed(step: &'static str, number: RawFd) -> impl Fn(Errno) -> Failed {
    move |errno| Failed {
        step,
        number,
        errno,
    }
}

/// Puts every stand-in in its place. `opened` are the files that the host has opened for this child, in the
/// order of the stand-ins that are such; `unusable` is what can be used for nothing.
pub(super) fn place(
    stand_ins: &[StandIn],
    opened: &[RawFd],
    unusable: RawFd,
) -> Result<(), Failed> {
    let mut opened = opened.iter();
    for stand_in in stand_ins {
        place_one(stand_in, &mut opened, unusable)?;
    }
    // What watches and what shares come after what they watch and share.
    for stand_in in stand_ins {
        match stand_in {
            StandIn::Duplicate { number, of } => onto(*of, *number)?,
            StandIn::Epoll { number, interests } => watch(*number, interests)?,
            _ => {}
        }
    }
    Ok(())
}

fn place_one<'a>(
    stand_in: &StandIn,
    opened: &mut impl Iterator<Item = &'a RawFd>,
    unusable: RawFd,
) -> Result<(), Failed> {
    match *stand_in {
        StandIn::Opened { number, .. } => {
            let source = opened.next().ok_or(Errno::EBADF);
            onto(*source.map_err(failed("open", number))?, number)
        }
        StandIn::Stream { number, stream } => onto(stream, number),
        StandIn::Pipe { reader, writer } => {
            let number = reader.or(writer).map_or(-1, |end| end.number);
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe2", number))?;
            reader.map_or(Ok(()), |end| put(read, end))?;
            writer.map_or(Ok(()), |end| put(write, end))
        }
        StandIn::Connected { kind, one, other } => {
            let pair = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC);
            let (first, second) = pair.map_err(failed("socketpair", one.number))?;
            put(first, one)?;
            other.map_or(Ok(()), |end| put(second, end))
        }
        StandIn::Unconnected { family, kind, end } => {
            // A kind that takes a protocol, or a right, that a child has not.
            let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).or_else(|_| {
                let (family, kind) = (AddressFamily::Unix, SockType::Datagram);
                socket(family, kind, SockFlag::SOCK_CLOEXEC, None)
            });
            put(made.map_err(failed("socket", end.number))?, end)
        }
        StandIn::Counter {
            end,
            count,
            is_semaphore,
        } => {
            let mut flags = EfdFlags::EFD_CLOEXEC;
            flags.set(EfdFlags::EFD_SEMAPHORE, is_semaphore);
            let first = u32::try_from(count).unwrap_or(u32::MAX);
            let made = EventFd::from_value_and_flags(first, flags);
            put(made.map_err(failed("eventfd2", end.number))?.into(), end)
        }
        StandIn::Timer { end, ref setting } => {
            // An alarm that wakes the machine is not a child's to set (EPERM): it never expires.
            let made = timer(setting).or_else(|_| timer(&Timer::default()));
            put(made.map_err(failed("timerfd_create", end.number))?, end)
        }
        StandIn::Signals { end, mask } => {
            let made = SignalFd::with_flags(&signals(mask), SfdFlags::SFD_CLOEXEC);
            let made = made.map_err(failed("signalfd4", end.number))?;
            let raw = made.as_raw_fd();
            onto(raw, end.number)?;
            nonblocking(end)
        }
        StandIn::Epoll { number, .. } => {
            let made = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
            let made = made.map_err(failed("epoll_create1", number))?;
            onto(made.0.as_raw_fd(), number)
        }
        StandIn::Unusable { number } => onto(unusable, number),
        StandIn::Duplicate { .. } => Ok(()),
    }
}

fn put(made: OwnedFd, end: End) -> Result<(), Failed> {
    onto(made.as_raw_fd(), end.number)?;
    nonblocking(end)
}

fn nonblocking(end: End) -> Result<(), Failed> {
    match end.is_nonblocking {
        true => set_nonblocking(end.number).map_err(failed("fcntl(F_SETFL)", end.number)),
        false => Ok(()),
    }
}

/// Programs that a job executes get none of them.
fn onto(source: RawFd, number: RawFd) -> Result<(), Failed> {
    duplicate_onto(source, number, true).map_err(failed("dup3", number))
}

/// Signals up to the last one that has a name; the kernel reserves none of the others for programs.
fn signals(mask: u64) -> SigSet {
    Signal::iterator()
        .filter(|signal| mask & (1 << (*signal as i32 - 1)) != 0)
        .collect()
}

fn watch(number: RawFd, interests: &[Interest]) -> Result<(), Failed> {
    for interest in interests {
        match add_to_epoll(number, interest.number, interest.events, interest.data) {
            // What stands in cannot be watched (a file, which is always ready; what cannot be used; a loop of
            // instances), or is watched already, by a number that was another file's once.
            Ok(()) | Err(Errno::EPERM | Errno::EBADF | Errno::ELOOP | Errno::EEXIST) => {}
            Err(errno) => return Err(failed("epoll_ctl", number)(errno)),
        }
    }
    Ok(())
}
