//! Gives each child a private copy of the memory that a clone would share with the host.
//!
//! Runs on: the main thread, and a child that it has just cloned.
//!
//! A lock of `multiprocessing` lies in such memory: a job that took it and ended would stop every later one.
//! What is not plain memory (a device's registers, the rings of io_uring) is out of a child's reach.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use super::table::Table;
use crate::sys::memory::{self, Mapping};

/// Up to this size in bytes a range is copied for each child, at up to a microsecond a KiB: locks, and what they guard. What is
/// larger is mostly data to be read.
const LARGEST_COPY: usize = 1 << 20;

/// A range that clones share with the host and that they may write to.
#[derive(Debug)]
pub(crate) struct SharedRange {
    range: Range<usize>,
    protection: libc::c_int,
    how: How,
    /// What the kernel calls it.
    pub name: String,
}

#[derive(Debug)]
enum How {
    /// Mapped again, privately, from the file behind it: costs nothing until it is used. What a job changes there, the
    /// processes that it has forked do not see.
    FromFile { file: OwnedFd, offset: usize },
    /// Copied, into memory that the job shares with the processes that it forks, as `multiprocessing` expects.
    ByCopy,
    /// Nothing but the addresses stays.
    OutOfReach,
}

/// All ranges of this process that clones would share with it.
pub(super) struct SharedMemory {
    pub ranges: Vec<SharedRange>,
    /// The lines of `/proc/PID/maps` that may be such, as they were when this was found.
    lines: Vec<String>,
}

impl SharedMemory {
    /// # Errors
    /// If the mappings cannot be read.
    pub(super) fn find(table: &Table) -> std::io::Result<Self> {
        let lines = lines(table)?;
        let mappings = match lines.is_empty() {
            true => Vec::new(),
            false => memory::parse_smaps(&table.read_of_process("smaps")?),
        };
        let shared = mappings.into_iter().filter(Mapping::is_shared_with_clones);
        Ok(Self {
            ranges: shared
                .map(|mapping| SharedRange::of(mapping, table))
                .collect(),
            lines,
        })
    }

    /// The descriptors that this process keeps for it.
    pub(super) fn own_numbers(&self) -> impl Iterator<Item = RawFd> {
        self.ranges.iter().filter_map(|range| match &range.how {
            How::FromFile { file, .. } => Some(file.as_raw_fd()),
            How::ByCopy | How::OutOfReach => None,
        })
    }

    /// Finds them anew if there are others. `smaps` takes the kernel ten times as long as `maps`.
    ///
    /// # Errors
    /// If the mappings cannot be read.
    pub(super) fn look_again(&mut self, table: &Table) -> std::io::Result<()> {
        if lines(table)? != self.lines {
            *self = Self::find(table)?;
        }
        Ok(())
    }
}

fn lines(table: &Table) -> std::io::Result<Vec<String>> {
    let maps = table.read_of_process("maps")?;
    let is_shared = |line: &&str| {
        line.split(' ')
            .nth(1)
            .is_some_and(|modes| modes.ends_with('s'))
    };
    Ok(maps.lines().filter(is_shared).map(str::to_owned).collect())
}

impl SharedRange {
    fn of(mapping: Mapping, table: &Table) -> Self {
        let file = file_behind(&mapping, table);
        let is_memory = match &file {
            Some(file) => fstat(file)
                .is_ok_and(|status| status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()),
            None => is_memory_by_name(&mapping.name),
        };
        let how = match file {
            _ if !is_memory => How::OutOfReach,
            Some(file) if mapping.range.len() > LARGEST_COPY && !mapping.is_huge => How::FromFile {
                file,
                offset: mapping.offset,
            },
            _ => How::ByCopy,
        };
        Self {
            protection: mapping.protection(),
            range: mapping.range,
            how,
            name: mapping.name,
        }
    }

    /// Whether the processes of a job share it with each other.
    pub(crate) fn is_common_to_a_job(&self) -> bool {
        matches!(self.how, How::ByCopy)
    }

    pub(crate) fn is_out_of_reach(&self) -> bool {
        matches!(self.how, How::OutOfReach)
    }

    /// In a child that has just been cloned: makes the range its own.
    ///
    /// # Errors
    /// Of `mmap(2)`, `mprotect(2)` and `mremap(2)`.
    pub(crate) fn make_private(&self) -> Result<(), Errno> {
        let range = self.range.clone();
        // SAFETY: the range is mapped: nobody but code of the host's has run since this was found, else it was found
        // anew. What it holds stays (or, out of reach, can only be used by a driver's library, which then ends by SIGSEGV), and
        // this is the only thread.
        unsafe {
            match &self.how {
                How::FromFile { file, offset } => {
                    memory::map_private(range, self.protection, file.as_raw_fd(), *offset)
                }
                How::ByCopy => memory::copy_in_place(range, self.protection),
                How::OutOfReach => memory::close_off(range),
            }
        }
    }
}

/// The file that is mapped, if this process may open it so (`proc_pid_map_files(5)`: CAP_SYS_ADMIN or
/// CAP_CHECKPOINT_RESTORE in the initial user namespace).
fn file_behind(mapping: &Mapping, table: &Table) -> Option<OwnedFd> {
    let Range { start, end } = mapping.range;
    // O_NONBLOCK: to open a device may wait.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    table
        .open_of_process(&format!("map_files/{start:x}-{end:x}"), flags)
        .ok()
}

/// Without a look at the file: anonymous and System V shared memory, memory files, and files of folders.
/// Devices lie in `/dev`, but for the memory in `/dev/shm`; what is not a file has no path.
fn is_memory_by_name(name: &str) -> bool {
    let is_device = name.starts_with("/dev/") && !name.starts_with("/dev/shm/");
    name.starts_with("/dev/zero (deleted)") || (name.starts_with('/') && !is_device)
}
