//! Finds what preloaded objects hold open, and chooses what takes its place in a child.
//!
//! Runs on: the main thread.
//!
//! Such an object keeps a number and uses it in every child. If the child closed the descriptor, the number
//! would soon be another file's, and the object would write into that. So each number stays taken, by a
//! stand-in that carries nothing from one job to another or to the host. The table of kinds is in
//! `docs/preloading.md`.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt,
    sockopt,
};
use nix::sys::stat::{FileStat, SFlag};
use nix::sys::statfs::fstatfs;

use super::pairs::partners;
use super::read_only::{readable_copy, restricted_device};
use super::stand_ins::{End, Interest, StandIn};
use super::table::{Entry, Table, entries};
use crate::sys::descriptors::{Timer, share_open_file};
use crate::sys::files::FileId;
use crate::sys::mounts::is_kernels;

/// Character devices without a state of their own, by minor number of major 1: null, zero, full, random,
/// urandom.
const STATELESS_DEVICES: &[u64] = &[3, 5, 7, 8, 9];
/// As the kernel names an instance of `inotify(7)`.
pub(super) const WATCH_OF_NAMES: &str = "anon_inode:inotify";

/// A descriptor that preloaded objects hold.
#[derive(Debug)]
pub(crate) struct Held {
    pub number: RawFd,
    /// As the kernel names it: a path, or such as `socket:[4711]`.
    pub target: String,
    /// What a job must not expect of it, if anything.
    pub remark: Option<&'static str>,
}

/// All that preloaded objects hold, and what stands in for it.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub held: Vec<Held>,
    pub stand_ins: Vec<StandIn>,
    /// The ways to files, by device and inode.
    sources: Vec<(FileId, OwnedFd)>,
}

impl Survey {
    /// Of all numbers but those in `own`, which are pyspawner's, and the standard streams. A file that is in an
    /// earlier survey is opened as it was then: from another root its mount may be out of reach.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub(super) fn make(table: &Table, own: &[RawFd], earlier: Option<&Self>) -> nix::Result<Self> {
        let entries = entries(table, own)?;
        let mut survey = Self::default();
        let mut firsts: Vec<&Entry> = Vec::new();
        let mut alike: HashMap<_, Vec<RawFd>> = HashMap::new();
        for entry in &entries {
            let number = entry.number;
            let others = alike.entry(entry.shape()).or_default();
            if let Some(stream) = same_as_stream(number) {
                survey.stand_ins.push(StandIn::Stream { number, stream });
            } else if let Some(&of) = others.iter().find(|of| share_open_file(**of, number)) {
                survey.stand_ins.push(StandIn::Duplicate { number, of });
            } else {
                others.push(number);
                firsts.push(entry);
            }
        }
        let partners = partners(&firsts);
        let mut remarks = HashMap::new();
        for entry in &firsts {
            let partner = partners.get(&entry.number).copied();
            let known = earlier.and_then(|earlier| earlier.source_of(entry));
            let remark = survey.add(table, entry, partner, known, &firsts);
            remarks.insert(entry.number, remark);
        }
        survey.held = entries
            .iter()
            .map(|entry| Held {
                number: entry.number,
                target: entry.target.clone(),
                remark: remarks.get(&entry.number).copied().flatten(),
            })
            .collect();
        Ok(survey)
    }

    /// The numbers that preloaded objects hold.
    pub(super) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.held.iter().map(|held| held.number)
    }

    /// Whether a number has a stand-in of which every use fails.
    pub(super) fn is_unusable(&self, number: RawFd) -> bool {
        let mut stand_ins = self.stand_ins.iter();
        stand_ins
            .any(|stand_in| matches!(stand_in, StandIn::Unusable { number: n } if *n == number))
    }

    /// The descriptors that this survey has made for itself.
    pub(super) fn own_numbers(&self) -> impl Iterator<Item = RawFd> {
        self.sources.iter().map(|(_, source)| source.as_raw_fd())
    }

    fn source_of(&self, entry: &Entry) -> Option<&OwnedFd> {
        let mut sources = self.sources.iter();
        let found = sources.find(|(file, _)| *file == entry.file());
        found.map(|(_, source)| source)
    }

    /// Chooses the stand-in of one open file. Returns what a job must not expect of it.
    fn add(
        &mut self,
        table: &Table,
        entry: &Entry,
        partner: Option<&Entry>,
        known: Option<&OwnedFd>,
        all: &[&Entry],
    ) -> Option<&'static str> {
        let number = entry.number;
        if entry.info.flags().contains(OFlag::O_PATH) {
            return self.make_unusable(number);
        }
        match entry.kind() {
            SFlag::S_IFREG => self.add_file(table, entry, known),
            SFlag::S_IFIFO => self.add_pipe(entry, partner),
            SFlag::S_IFSOCK => self.add_socket(entry, partner),
            SFlag::S_IFCHR if is_stateless_device(&entry.status) => self.add_device(entry, known),
            // An anonymous inode, such as an eventfd's, has no type in its mode.
            kind if kind.is_empty() => self.add_anonymous(entry, all),
            _ => self.make_unusable(number),
        }
    }

    fn make_unusable(&mut self, number: RawFd) -> Option<&'static str> {
        self.stand_ins.push(StandIn::Unusable { number });
        Some("every use fails (EBADF)")
    }

    fn add_file(
        &mut self,
        table: &Table,
        entry: &Entry,
        known: Option<&OwnedFd>,
    ) -> Option<&'static str> {
        let number = entry.number;
        let Ok(file_system) = fstatfs(entry.fd()) else {
            return self.make_unusable(number);
        };
        if is_kernels(file_system.filesystem_type()) {
            return self.make_unusable(number);
        }
        if entry.access() == OFlag::O_WRONLY {
            self.stand_ins.push(StandIn::Stream {
                number,
                stream: libc::STDERR_FILENO,
            });
            return Some("what is written goes to the job's standard error");
        }
        // A memory file is copied each time, as it is now.
        let known = known.filter(|_| !entry.is_memory());
        let Ok(source) = known.map_or_else(|| readable_copy(table, entry), OwnedFd::try_clone)
        else {
            return self.make_unusable(number);
        };
        self.stand_ins.push(StandIn::Opened {
            number,
            through: source.as_raw_fd(),
            flags: OFlag::O_RDONLY,
        });
        self.sources.push((entry.file(), source));
        (entry.access() == OFlag::O_RDWR).then_some("it can be read, but not written (EBADF)")
    }

    fn add_device(&mut self, entry: &Entry, known: Option<&OwnedFd>) -> Option<&'static str> {
        let source = known.map_or_else(|| restricted_device(entry.fd()), OwnedFd::try_clone);
        let Ok(source) = source else {
            return self.make_unusable(entry.number);
        };
        self.stand_ins.push(StandIn::Opened {
            number: entry.number,
            through: source.as_raw_fd(),
            flags: entry.access(),
        });
        self.sources.push((entry.file(), source));
        None
    }

    fn add_pipe(&mut self, entry: &Entry, partner: Option<&Entry>) -> Option<&'static str> {
        if entry.access() == OFlag::O_RDWR {
            self.stand_ins.push(idle(entry.end()));
            return Some("nothing ever comes");
        }
        let ends = [Some(entry), partner];
        let end_with = |access| {
            let found = ends.iter().flatten().find(|end| end.access() == access);
            found.map(|entry| entry.end())
        };
        if partner.is_none_or(|partner| entry.number < partner.number) {
            self.stand_ins.push(StandIn::Pipe {
                reader: end_with(OFlag::O_RDONLY),
                writer: end_with(OFlag::O_WRONLY),
            });
        }
        partner
            .is_none()
            .then_some("as if the other end had been closed")
    }

    fn add_socket(&mut self, entry: &Entry, partner: Option<&Entry>) -> Option<&'static str> {
        let end = entry.end();
        let kind = getsockopt(&entry.fd(), sockopt::SockType);
        let family = family(entry);
        let (Ok(kind), Some(family)) = (kind, family) else {
            self.stand_ins.push(unbound(end));
            return Some("nothing ever comes, and nothing can be sent");
        };
        if let Some(partner) = partner {
            if entry.number < partner.number {
                let (one, other) = (end, Some(partner.end()));
                self.stand_ins.push(StandIn::Connected { kind, one, other });
            }
            return None;
        }
        let is_connected = getpeername::<SockaddrStorage>(entry.number).is_ok();
        if is_connected {
            self.stand_ins.push(StandIn::Connected {
                kind,
                one: end,
                other: None,
            });
            return Some("as if the other side had closed the connection");
        }
        if getsockopt(&entry.fd(), sockopt::AcceptConn) == Ok(true) {
            // A stream socket that does not listen tells of a hang-up all the time.
            self.stand_ins.push(unbound(end));
            return Some("no connection ever comes");
        }
        self.stand_ins
            .push(StandIn::Unconnected { family, kind, end });
        Some("it is bound to no address")
    }

    fn add_anonymous(&mut self, entry: &Entry, all: &[&Entry]) -> Option<&'static str> {
        let end = entry.end();
        match entry.target.as_str() {
            "anon_inode:[eventfd]" => self.stand_ins.push(StandIn::Counter {
                end,
                count: entry.info.number("eventfd-count", 16).unwrap_or(0),
                is_semaphore: entry.info.number("eventfd-semaphore", 10) == Some(1),
            }),
            "anon_inode:[timerfd]" => self.stand_ins.push(StandIn::Timer {
                end,
                setting: Timer {
                    clock: entry.info.number("clockid", 10).unwrap_or(0) as libc::c_int,
                    remaining: entry.info.time("it_value").unwrap_or_default(),
                    interval: entry.info.time("it_interval").unwrap_or_default(),
                },
            }),
            "anon_inode:[signalfd]" => self.stand_ins.push(StandIn::Signals {
                end,
                mask: entry.info.number("sigmask", 16).unwrap_or(0),
            }),
            "anon_inode:[eventpoll]" => {
                let is_held = |(watched, inode): &(Interest, u64)| {
                    let found = all.iter().find(|other| other.number == watched.number);
                    found.is_some_and(|other| other.status.st_ino == *inode)
                };
                let interests = entry.info.interests().into_iter().filter(is_held);
                self.stand_ins.push(StandIn::Epoll {
                    number: entry.number,
                    interests: interests.map(|(interest, _)| interest).collect(),
                });
            }
            WATCH_OF_NAMES | "anon_inode:[fanotify]" | "anon_inode:[pidfd]" => {
                self.stand_ins.push(idle(end));
                return Some("it never tells of anything");
            }
            _ => return self.make_unusable(entry.number),
        }
        None
    }
}

/// The standard stream whose open file a number shares: what is kept of it is the job's own then.
fn same_as_stream(number: RawFd) -> Option<RawFd> {
    let streams = [libc::STDERR_FILENO, libc::STDOUT_FILENO, libc::STDIN_FILENO];
    streams
        .into_iter()
        .find(|stream| share_open_file(*stream, number))
}

fn is_stateless_device(status: &FileStat) -> bool {
    let (major, minor) = (libc::major(status.st_rdev), libc::minor(status.st_rdev));
    major == 1 && STATELESS_DEVICES.contains(&minor.into())
}

/// Nothing ever happens at it, and it says so to whoever waits for it.
fn idle(end: End) -> StandIn {
    StandIn::Counter {
        end,
        count: 0,
        is_semaphore: false,
    }
}

/// The same for a socket.
fn unbound(end: End) -> StandIn {
    StandIn::Unconnected {
        family: AddressFamily::Unix,
        kind: SockType::Datagram,
        end,
    }
}

/// The family of a socket that a child may make again.
fn family(entry: &Entry) -> Option<AddressFamily> {
    let address = getsockname::<SockaddrStorage>(entry.number).ok()?;
    let family = address.family()?;
    let known = [
        AddressFamily::Unix,
        AddressFamily::Inet,
        AddressFamily::Inet6,
    ];
    known.contains(&family).then_some(family)
}
