//! Finds what preloaded objects hold open, and chooses what takes its place in a child.
//!
//! Such an object keeps a number and uses it in every child. If the child closed the descriptor, the number
//! would soon be another file's, and the object would write into that. So each number stays taken, by a
//! stand-in that carries nothing from one job to another or to the host. The table of kinds is in
//! `docs/preloading.md`.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt,
    sockopt,
};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::fstatfs;

use crate::sys::descriptors::{Timer, borrow, share_open_file};
use crate::sys::files::{read_to_end, read_whole};
use crate::sys::mounts::{copy_of_file, is_kernels, new_tmpfs, set_attributes};

/// A memory file up to this size in bytes is copied for children.
const LARGEST_MEMORY_FILE: i64 = 256 << 20;
/// Room for a file of `/proc/PID/fdinfo`, in bytes: enough for most, and for an epoll instance, which has a line for
/// each descriptor it watches. What is touched of the heap costs each clone, so the smaller is tried first.
const INFO_SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
/// Character devices without a state of their own, by minor number of major 1: null, zero, full, random,
/// urandom.
const STATELESS_DEVICES: &[u64] = &[3, 5, 7, 8, 9];
/// What a file is restricted to for children, whatever the way that leads to it.
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// As the kernel names an instance of `inotify(7)`.
pub const WATCH_OF_NAMES: &str = "anon_inode:inotify";

/// One end of something that a child makes anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub number: RawFd,
    pub is_nonblocking: bool,
}

/// What an epoll instance watches: a number, events, and the word that it answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    pub number: RawFd,
    pub events: u32,
    pub data: u64,
}

/// What a child has in place of descriptors of the host's.
#[derive(Debug)]
pub enum StandIn {
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

/// A descriptor that preloaded objects hold.
#[derive(Debug)]
pub struct Held {
    pub number: RawFd,
    /// As the kernel names it: a path, or such as `socket:[4711]`.
    pub target: String,
    /// What a job must not expect of it, if anything.
    pub remark: Option<&'static str>,
}

/// All that preloaded objects hold, and what stands in for it.
#[derive(Debug, Default)]
pub struct Survey {
    pub held: Vec<Held>,
    pub stand_ins: Vec<StandIn>,
    /// The ways to files, by device and inode.
    sources: Vec<((u64, u64), OwnedFd)>,
}

/// The folders of the calling thread and of its process in `/proc`, whose paths are gone once the root has been changed.
pub struct Table {
    thread: OwnedFd,
    process: OwnedFd,
}

impl Table {
    /// # Errors
    /// Of `open(2)`.
    pub fn open() -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            thread: open("/proc/thread-self", flags, Mode::empty())?,
            process: open("/proc/self", flags, Mode::empty())?,
        })
    }

    /// # Errors
    /// Of `open(2)`.
    pub fn open_of_process(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        openat(&self.process, name, flags, Mode::empty())
    }

    /// # Errors
    /// If the file cannot be read.
    pub fn read_of_process(&self, name: &str) -> std::io::Result<String> {
        let file = self.open_of_process(name, OFlag::O_RDONLY | OFlag::O_CLOEXEC)?;
        let content = crate::sys::files::read_to_end(file)?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    /// The numbers that are open, but for this listing's own.
    ///
    /// # Errors
    /// Of reading `/proc/thread-self/fd`.
    pub fn numbers(&self) -> nix::Result<Vec<RawFd>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = openat(&self.thread, "fd", flags, Mode::empty())?;
        let own = folder.as_raw_fd();
        let mut numbers = Vec::new();
        for entry in Dir::from_fd(folder)?.iter() {
            let name = entry?.file_name().to_str().unwrap_or("").parse();
            numbers.extend(name.ok().filter(|number: &RawFd| *number != own));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Opens what a number of this process leads to, by an open file of its own.
    ///
    /// # Errors
    /// Of `open(2)`.
    pub fn open_anew(&self, number: RawFd, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = format!("fd/{number}");
        openat(
            &self.thread,
            &*path,
            flags | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    }

    fn target(&self, number: RawFd) -> nix::Result<String> {
        let target = readlinkat(&self.thread, &*format!("fd/{number}"))?;
        Ok(target.to_string_lossy().into_owned())
    }

    fn info(&self, number: RawFd) -> nix::Result<Info> {
        let name = format!("fdinfo/{number}");
        for size in INFO_SIZES {
            match read_whole(self.thread.as_fd(), &name, &mut vec![0; size]) {
                Err(Errno::EFBIG) => {}
                text => return Ok(Info(String::from_utf8_lossy(text?).into_owned())),
            }
        }
        Err(Errno::EFBIG)
    }
}

/// A file of `/proc/PID/fdinfo` (`proc_pid_fdinfo(5)`).
struct Info(String);

impl Info {
    fn value(&self, name: &str) -> Option<&str> {
        let mut values = self
            .0
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        values.next().map(str::trim)
    }

    fn number(&self, name: &str, radix: u32) -> Option<u64> {
        u64::from_str_radix(self.value(name)?, radix).ok()
    }

    fn flags(&self) -> OFlag {
        let flags = self.number("flags", 8).unwrap_or(0);
        OFlag::from_bits_retain(flags as libc::c_int)
    }

    /// A line such as `it_value: (0, 499000)`.
    fn time(&self, name: &str) -> Option<(i64, i64)> {
        let pair = self.value(name)?.strip_prefix('(')?.strip_suffix(')')?;
        let (seconds, nanoseconds) = pair.split_once(',')?;
        Some((seconds.parse().ok()?, nanoseconds.trim().parse().ok()?))
    }

    /// Lines such as `tfd: 4 events: 19 data: 4  pos:0 ino:7138 sdev:9`, with the inode that was watched.
    fn interests(&self) -> Vec<(Interest, u64)> {
        self.0.lines().filter_map(parse_interest).collect()
    }
}

fn parse_interest(line: &str) -> Option<(Interest, u64)> {
    let after = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split_whitespace().next()
    };
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let interest = Interest {
        number: after("tfd:")?.parse().ok()?,
        events: hex(after("events:")?)? as u32,
        data: hex(after("data:")?)?,
    };
    Some((interest, hex(after("ino:")?)?))
}

/// One number of the table, as the kernel describes it.
struct Entry {
    number: RawFd,
    target: String,
    status: FileStat,
    info: Info,
}

impl Entry {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it was listed a moment ago, and this thread closes none of them meanwhile; if a thread of a
        // preloaded module does, the calls below fail.
        unsafe { borrow(self.number) }
    }

    fn end(&self) -> End {
        End {
            number: self.number,
            is_nonblocking: self.info.flags().contains(OFlag::O_NONBLOCK),
        }
    }

    fn access(&self) -> OFlag {
        self.info.flags() & OFlag::O_ACCMODE
    }

    /// Device and inode.
    fn inode(&self) -> (u64, u64) {
        (self.status.st_dev, self.status.st_ino)
    }

    fn is_memory(&self) -> bool {
        self.target.starts_with("/memfd:")
    }

    /// What two numbers of one open file have in common. Only close-on-exec is each number's own.
    fn shape(&self) -> ((u64, u64), Vec<&str>) {
        let lines = self.info.0.lines();
        let common = lines.filter(|line| !line.starts_with("flags:"));
        (self.inode(), common.collect())
    }

    fn kind(&self) -> SFlag {
        SFlag::from_bits_truncate(self.status.st_mode & SFlag::S_IFMT.bits())
    }
}

impl Survey {
    /// Of all numbers but those in `own`, which are pyspawner's, and the standard streams. A file that is in an
    /// earlier survey is opened as it was then: from another root its mount may be out of reach.
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn make(table: &Table, own: &[RawFd], earlier: Option<&Self>) -> nix::Result<Self> {
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
    pub fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.held.iter().map(|held| held.number)
    }

    /// Whether a number has a stand-in of which every use fails.
    pub fn is_unusable(&self, number: RawFd) -> bool {
        let mut stand_ins = self.stand_ins.iter();
        stand_ins
            .any(|stand_in| matches!(stand_in, StandIn::Unusable { number: n } if *n == number))
    }

    /// The descriptors that this survey has made for itself.
    pub fn own_numbers(&self) -> impl Iterator<Item = RawFd> {
        self.sources.iter().map(|(_, source)| source.as_raw_fd())
    }

    fn source_of(&self, entry: &Entry) -> Option<&OwnedFd> {
        let mut sources = self.sources.iter();
        let found = sources.find(|(inode, _)| *inode == entry.inode());
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
        self.sources.push((entry.inode(), source));
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
        self.sources.push((entry.inode(), source));
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

fn entries(table: &Table, own: &[RawFd]) -> nix::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for number in table.numbers()? {
        if number <= libc::STDERR_FILENO || own.contains(&number) {
            continue;
        }
        match entry(table, number) {
            Ok(entry) => entries.push(entry),
            // A thread of a preloaded module has closed it meanwhile.
            Err(Errno::ENOENT | Errno::EBADF) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(entries)
}

fn entry(table: &Table, number: RawFd) -> nix::Result<Entry> {
    Ok(Entry {
        number,
        target: table.target(number)?,
        // SAFETY: as in `Entry::fd`.
        status: fstat(unsafe { borrow(number) })?,
        info: table.info(number)?,
    })
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

/// A descriptor through which children open a file read-only: on a mount of its own, or of a copy, so that
/// whoever has it comes to no more than that file.
fn readable_copy(table: &Table, entry: &Entry) -> std::io::Result<OwnedFd> {
    match restricted(entry.fd()) {
        Ok(tree) => Ok(tree),
        // A file of no mount: a memory file.
        Err(Errno::EINVAL) if entry.is_memory() => copy_of_memory(table, entry),
        Err(errno) => Err(errno.into()),
    }
}

/// An open file on a mount of its own, which is read-only.
///
/// # Errors
/// EINVAL for a file of no mount, or of one that is not in the calling thread's mount namespace.
pub fn restricted(file: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let tree = copy_of_file(file)?;
    set_attributes(&tree, READ_ONLY, 0)?;
    Ok(tree)
}

/// A device on a mount of its own, by which its modes and times cannot be changed.
fn restricted_device(device: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    let tree = copy_of_file(device)?;
    set_attributes(&tree, set, libc::MOUNT_ATTR_NODEV)?;
    Ok(tree)
}

/// A copy of a memory file, on a read-only mount as well: of one that is only sealed, times and attributes could be
/// changed.
fn copy_of_memory(table: &Table, entry: &Entry) -> std::io::Result<OwnedFd> {
    if entry.status.st_size > LARGEST_MEMORY_FILE {
        return Err(Errno::EFBIG.into());
    }
    let content = read_to_end(table.open_anew(entry.number, OFlag::O_RDONLY)?)?;
    let mount = new_tmpfs(&[(c"mode", c"700")])?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(&mount, "copy", flags, Mode::from_bits_truncate(0o444))?;
    std::fs::File::from(file).write_all(&content)?;
    set_attributes(&mount, READ_ONLY, 0)?;
    Ok(openat(
        &mount,
        "copy",
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// The ends of one pipe, or of one pair of sockets, by number. For sockets the kernel does not tell; those of
/// a pair are made one after the other, and so are their inode numbers. Were two of different pairs taken
/// for one, they would lead to each other within a job, and to nobody else.
fn partners<'a>(entries: &[&'a Entry]) -> HashMap<RawFd, &'a Entry> {
    let mut found = HashMap::new();
    let mut pair = |one: &'a Entry, other: &'a Entry| {
        if !found.contains_key(&one.number) && !found.contains_key(&other.number) {
            found.insert(one.number, other);
            found.insert(other.number, one);
        }
    };
    let with_kind = |kind| entries.iter().filter(move |entry| entry.kind() == kind);
    let pipes_with =
        |access| with_kind(SFlag::S_IFIFO).filter(move |entry| entry.access() == access);
    let writers: HashMap<_, &'a Entry> = pipes_with(OFlag::O_WRONLY)
        .map(|entry| (entry.inode(), *entry))
        .collect();
    for reader in pipes_with(OFlag::O_RDONLY) {
        if let Some(writer) = writers.get(&reader.inode()) {
            pair(reader, writer);
        }
    }
    let ends: HashMap<_, &'a Entry> = with_kind(SFlag::S_IFSOCK)
        .filter(|entry| is_end_of_pair(entry))
        .map(|entry| (entry.status.st_ino, *entry))
        .collect();
    let mut inodes: Vec<_> = ends.keys().copied().collect();
    inodes.sort_unstable();
    // Those with successive numbers first, since they are so more likely.
    for has_next_number in [true, false] {
        for inode in &inodes {
            let (one, other) = (ends[inode], ends.get(&(inode + 1)));
            if let Some(other) = other
                && (other.number == one.number + 1 || !has_next_number)
            {
                pair(one, other);
            }
        }
    }
    found
}

/// Whether a socket may be from `socketpair(2)`: connected, without a name on either side.
fn is_end_of_pair(entry: &Entry) -> bool {
    let is_unnamed = |address: nix::Result<SockaddrStorage>| {
        let address = address.ok();
        let address = address.as_ref().and_then(SockaddrStorage::as_unix_addr);
        address.is_some_and(|address| address.path().is_none() && address.as_abstract().is_none())
    };
    is_unnamed(getsockname(entry.number)) && is_unnamed(getpeername(entry.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_epoll_instance_watches_is_read() {
        let line = "tfd:        6 events:       19 data:     7fbc00000006  pos:0 ino:713a sdev:9";
        let interest = Interest {
            number: 6,
            events: 0x19,
            data: 0x7fbc_0000_0006,
        };
        assert_eq!(parse_interest(line), Some((interest, 0x713a)));
        assert_eq!(parse_interest("pos:\t0"), None);
    }

    #[test]
    fn descriptions_of_descriptors_are_read() {
        let info = Info(
            "pos:\t17\nflags:\t02004002\nit_value: (3, 499)\nsigmask:\t0000000000004000\n".into(),
        );
        assert_eq!(info.number("pos", 10), Some(17));
        assert!(info.flags().contains(OFlag::O_NONBLOCK | OFlag::O_RDWR));
        assert_eq!(info.time("it_value"), Some((3, 499)));
        assert_eq!(info.number("sigmask", 16), Some(0x4000));
        assert_eq!(info.value("pid"), None);
    }
}
