//! The table of open descriptors, as the kernel describes it in `/proc`.
//!
//! Runs on: the main thread.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::stand_ins::{End, Interest};
use crate::sys::descriptors::borrow;
use crate::sys::files::{FileId, read_to_end, read_whole};

/// Room for a file of `/proc/PID/fdinfo`, in bytes: enough for most, and for an epoll instance, which has a line for
/// each descriptor it watches. What is touched of the heap costs each clone, so the smaller is tried first.
const INFO_SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// The folders of the calling thread and of its process in `/proc`, whose paths are gone once the root has been changed.
pub(super) struct Table {
    thread: OwnedFd,
    process: OwnedFd,
}

impl Table {
    /// # Errors
    /// Of `open(2)`.
    pub(super) fn open() -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            thread: open("/proc/thread-self", flags, Mode::empty())?,
            process: open("/proc/self", flags, Mode::empty())?,
        })
    }

    /// # Errors
    /// Of `open(2)`.
    pub(super) fn open_of_process(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        openat(&self.process, name, flags, Mode::empty())
    }

    /// # Errors
    /// If the file cannot be read.
    pub(super) fn read_of_process(&self, name: &str) -> std::io::Result<String> {
        let file = self.open_of_process(name, OFlag::O_RDONLY | OFlag::O_CLOEXEC)?;
        let content = read_to_end(file)?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    /// The numbers that are open, but for this listing's own.
    ///
    /// # Errors
    /// Of reading `/proc/thread-self/fd`.
    pub(super) fn numbers(&self) -> nix::Result<Vec<RawFd>> {
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
    pub(super) fn open_anew(&self, number: RawFd, flags: OFlag) -> nix::Result<OwnedFd> {
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
pub(super) struct Info(String);

impl Info {
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let mut values = self
            .0
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        values.next().map(str::trim)
    }

    pub(super) fn number(&self, name: &str, radix: u32) -> Option<u64> {
        u64::from_str_radix(self.value(name)?, radix).ok()
    }

    pub(super) fn flags(&self) -> OFlag {
        let flags = self.number("flags", 8).unwrap_or(0);
        OFlag::from_bits_retain(flags as libc::c_int)
    }

    /// A line such as `it_value: (0, 499000)`.
    pub(super) fn time(&self, name: &str) -> Option<(i64, i64)> {
        let pair = self.value(name)?.strip_prefix('(')?.strip_suffix(')')?;
        let (seconds, nanoseconds) = pair.split_once(',')?;
        Some((seconds.parse().ok()?, nanoseconds.trim().parse().ok()?))
    }

    /// Lines such as `tfd: 4 events: 19 data: 4  pos:0 ino:7138 sdev:9`, with the inode that was watched.
    pub(super) fn interests(&self) -> Vec<(Interest, u64)> {
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
pub(super) struct Entry {
    pub number: RawFd,
    pub target: String,
    pub status: FileStat,
    pub info: Info,
}

impl Entry {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it was listed a moment ago, and this thread closes none of them meanwhile; if a thread of a
        // preloaded module does, the calls below fail.
        unsafe { borrow(self.number) }
    }

    pub(super) fn end(&self) -> End {
        End {
            number: self.number,
            is_nonblocking: self.info.flags().contains(OFlag::O_NONBLOCK),
        }
    }

    pub(super) fn access(&self) -> OFlag {
        self.info.flags() & OFlag::O_ACCMODE
    }

    pub(super) fn file(&self) -> FileId {
        FileId::from(&self.status)
    }

    pub(super) fn is_memory(&self) -> bool {
        self.target.starts_with("/memfd:")
    }

    /// What two numbers of one open file have in common. Only close-on-exec is each number's own.
    pub(super) fn shape(&self) -> (FileId, Vec<&str>) {
        let lines = self.info.0.lines();
        let common = lines.filter(|line| !line.starts_with("flags:"));
        (self.file(), common.collect())
    }

    pub(super) fn kind(&self) -> SFlag {
        SFlag::from_bits_truncate(self.status.st_mode & SFlag::S_IFMT.bits())
    }
}

/// Of all numbers but those in `own` and the standard streams.
///
/// # Errors
/// If the table cannot be read.
pub(super) fn entries(table: &Table, own: &[RawFd]) -> nix::Result<Vec<Entry>> {
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
