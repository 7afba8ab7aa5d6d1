//! Mappings: of which clones receive nothing, and of which they receive much.
//!
//! Runs on: any process.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use super::check;
use super::files::read_whole;

/// Rounds down to a page boundary.
pub(crate) fn page_floor(address: usize) -> usize {
    address & !(page_size() - 1)
}

/// The page size in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: always sound.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Whether less than a tenth of the machine's memory can still be had (`proc_meminfo(5)`, MemAvailable).
pub(crate) fn is_scarce() -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let part = |name| field(&text, name);
    let (available, all) = (part("MemAvailable"), part("MemTotal"));
    available
        .zip(all)
        .is_some_and(|(available, all)| available < all / 10)
}

/// The resident memory of a process in bytes (`proc_pid_statm(5)`).
pub(crate) fn resident(pid: libc::pid_t) -> std::io::Result<u64> {
    let mut buffer = [0; 256];
    let statm = read_whole(AT_FDCWD, &format!("/proc/{pid}/statm"), &mut buffer)?;
    let statm = String::from_utf8_lossy(statm);
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let pages = pages.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(pages * page_size() as u64)
}

/// Private writable memory of this process in bytes, as RLIMIT_DATA counts it: `VmData`
/// (`proc_pid_status(5)`).
pub(crate) fn private_data() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    field(&status, "VmData").ok_or(std::io::ErrorKind::InvalidData.into())
}

/// The bytes of a line such as `Pss:   12 kB`.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

/// Reserves `length` bytes of address space with no memory behind them: costs nothing until opened
/// with [`make_usable`].
pub(crate) fn reserve(length: usize) -> Result<NonNull<u8>, Errno> {
    map_anonymous(length, libc::PROT_NONE, libc::MAP_NORESERVE)
}

/// Maps new memory, as `malloc(3)` would.
pub(crate) fn map(length: usize) -> Result<NonNull<u8>, Errno> {
    map_anonymous(length, libc::PROT_READ | libc::PROT_WRITE, 0)
}

fn map_anonymous(
    length: usize,
    protection: libc::c_int,
    flags: libc::c_int,
) -> Result<NonNull<u8>, Errno> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(NonNull::new(base.cast()).expect("mmap gave a null address"))
}

/// Makes part of a reservation readable and writable.
///
/// # Safety
/// The range must be page-aligned and lie within a mapping of [`reserve`].
pub(crate) unsafe fn make_usable(base: *mut u8, length: usize) -> Result<(), Errno> {
    // SAFETY: by this function's contract the range belongs to the caller.
    let result = unsafe { libc::mprotect(base.cast(), length, libc::PROT_READ | libc::PROT_WRITE) };
    Errno::result(result).map(drop)
}

/// Keeps a range out of every later clone (`MADV_DONTFORK`, `madvise(2)`): in the child the
/// addresses are unmapped.
///
/// # Safety
/// No code that runs in a child may touch the range, which must be page-aligned and mapped.
pub(crate) unsafe fn hide_from_clones(base: *mut u8, length: usize) -> Result<(), Errno> {
    // SAFETY: the advice changes nothing in this process; the rest is the caller's promise.
    Errno::result(unsafe { libc::madvise(base.cast(), length, libc::MADV_DONTFORK) }).map(drop)
}

/// What the kernel calls a huge page, in bytes: a page of page table entries' worth.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Gives memory back.
///
/// # Safety
/// The range must be page-aligned, mapped, and used by nobody any more.
pub(crate) unsafe fn unmap(base: *mut u8, length: usize) {
    // SAFETY: by this function's contract. With a valid range it fails only for want of memory, and
    // then the mapping stays.
    unsafe { libc::munmap(base.cast(), length) };
}

/// Asks for huge pages where memory is touched for the first time (`MADV_HUGEPAGE`, `madvise(2)`).
///
/// # Safety
/// The range must be page-aligned and mapped.
pub(crate) unsafe fn prefer_huge_pages(base: *mut u8, length: usize) -> Result<(), Errno> {
    // SAFETY: the advice changes no content; the rest is the caller's promise.
    Errno::result(unsafe { libc::madvise(base.cast(), length, libc::MADV_HUGEPAGE) }).map(drop)
}

/// Has the kernel copy what is in small pages into huge ones (`MADV_COLLAPSE`, `madvise(2)`).
///
/// # Safety
/// The range must be page-aligned and mapped.
pub(crate) unsafe fn collapse(range: Range<usize>) -> Result<(), Errno> {
    let base = range.start as *mut libc::c_void;
    // SAFETY: the content stays; the rest is the caller's promise.
    Errno::result(unsafe { libc::madvise(base, range.len(), libc::MADV_COLLAPSE) }).map(drop)
}

/// Maps a part of a file over a range, read-only (`mmap(2)`, MAP_FIXED).
///
/// # Errors
/// Of `mmap(2)`; before Linux 6.12 nothing may be mapped there then.
///
/// # Safety
/// The range must be mapped read-only, and hold what that part of the file holds.
pub(crate) unsafe fn map_over(
    range: Range<usize>,
    file: &OwnedFd,
    offset: usize,
) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    // SAFETY: for who reads the range nothing changes; the rest is the caller's promise.
    let base = unsafe {
        libc::mmap(
            range.start as *mut libc::c_void,
            range.len(),
            libc::PROT_READ,
            flags,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    Errno::result(base).map(drop)
}

/// Maps a part of a file over a range so that what is written stays in this process (`mmap(2)`, MAP_PRIVATE).
///
/// # Safety
/// The range must be mapped, from that part of the file.
pub(crate) unsafe fn map_private(
    range: Range<usize>,
    protection: libc::c_int,
    file: RawFd,
    offset: usize,
) -> Result<(), Errno> {
    let (base, flags) = (
        range.start as *mut libc::c_void,
        libc::MAP_PRIVATE | libc::MAP_FIXED,
    );
    let offset = offset as libc::off_t;
    // SAFETY: for who reads the range nothing changes; the rest is the caller's promise.
    let base = unsafe { libc::mmap(base, range.len(), protection, flags, file, offset) };
    Errno::result(base).map(drop)
}

/// Puts a copy of a range in its place, which this process shares with those that it forks, and with no other
/// (`mremap(2)`, MREMAP_FIXED).
///
/// # Safety
/// The range must be mapped, page-aligned, and used by no other thread meanwhile.
pub(crate) unsafe fn copy_in_place(
    range: Range<usize>,
    protection: libc::c_int,
) -> Result<(), Errno> {
    let base = range.start as *mut libc::c_void;
    // SAFETY: a new mapping; source and copy are mapped over their whole length and do not overlap; then the copy takes
    // the source's place as a whole.
    unsafe {
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        let copy = libc::mmap(std::ptr::null_mut(), range.len(), access, flags, -1, 0);
        Errno::result(copy)?;
        if protection & libc::PROT_READ == 0 {
            check(libc::mprotect(base, range.len(), libc::PROT_READ).into())?;
        }
        copy.cast::<u8>()
            .copy_from_nonoverlapping(base.cast(), range.len());
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        Errno::result(libc::mremap(copy, range.len(), range.len(), flags, base))?;
        check(libc::mprotect(base, range.len(), protection).into()).map(drop)
    }
}

/// Takes what is mapped at a range away; the addresses stay taken, and every use of them is SIGSEGV.
///
/// # Safety
/// The range must be mapped and page-aligned.
pub(crate) unsafe fn close_off(range: Range<usize>) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let base = range.start as *mut libc::c_void;
    // SAFETY: by this function's contract; what used the range is told by a signal.
    let base = unsafe { libc::mmap(base, range.len(), libc::PROT_NONE, flags, -1, 0) };
    Errno::result(base).map(drop)
}

/// One of this process's mappings.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Mapping {
    pub range: Range<usize>,
    /// Such as `r-xp`.
    pub modes: String,
    /// Device and inode; `None` for memory of no file.
    pub file: Option<(String, u64)>,
    /// Where in that file it begins.
    pub offset: usize,
    /// The name that the kernel shows: a path, `[heap]`, or nothing.
    pub name: String,
    /// The bytes in memory that are this process's own.
    pub own: usize,
    /// Whether a clone shares it with its parent, and both may write to it, or come to may (`VmFlags`: `sh`, `mw`).
    is_shared: bool,
    /// Whether it is of huge pages alone (hugetlbfs).
    pub is_huge: bool,
}

/// The mappings of this process in the order of their addresses (`proc_pid_smaps(5)`).
///
/// # Errors
/// If they cannot be read.
pub(crate) fn mappings() -> std::io::Result<Vec<Mapping>> {
    Ok(parse_smaps(&std::fs::read_to_string("/proc/self/smaps")?))
}

/// The mappings that such a file tells of.
pub(crate) fn parse_smaps(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = parse_mapping(line) {
            found.push(mapping);
        } else if let Some(own) = field(line, "Anonymous")
            && let Some(mapping) = found.last_mut()
        {
            mapping.own = own as usize;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && let Some(mapping) = found.last_mut()
        {
            let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
            // A clone does not receive what was kept from it (`dc`: MADV_DONTFORK).
            mapping.is_shared = has("sh") && has("mw") && !has("dc");
            mapping.is_huge = has("ht");
        }
    }
    found
}

/// A line such as `7f0c8000-7f0ca000 r-xp 00002000 08:01 4711   /lib/x.so`.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (modes, rest) = rest.split_once(' ')?;
    let (offset, rest) = rest.split_once(' ')?;
    let (device, rest) = rest.split_once(' ')?;
    let (inode, name) = rest.split_once(' ').unwrap_or((rest, ""));
    let inode = inode.parse().ok()?;
    Some(Mapping {
        range: number(start)?..number(end)?,
        modes: modes.to_owned(),
        file: (inode != 0).then(|| (device.to_owned(), inode)),
        offset: number(offset)?,
        name: name.trim_start().to_owned(),
        ..Mapping::default()
    })
}

impl Mapping {
    /// Whether it is memory that a clone and its parent can both write to, or make writable (`mprotect(2)`).
    pub(crate) fn is_shared_with_clones(&self) -> bool {
        self.is_shared
    }

    /// `PROT_*`, as `mmap(2)` takes it.
    pub(crate) fn protection(&self) -> libc::c_int {
        let bits = [
            ('r', libc::PROT_READ),
            ('w', libc::PROT_WRITE),
            ('x', libc::PROT_EXEC),
        ];
        let bits = bits.iter().filter(|(mode, _)| self.modes.contains(*mode));
        bits.fold(libc::PROT_NONE, |all, (_, bit)| all | bit)
    }

    /// Whether `next` goes on where this one ends, in memory and in the file.
    pub(crate) fn continues_in(&self, next: &Self) -> bool {
        self.file.is_some()
            && self.file == next.file
            && self.range.end == next.range.start
            && self.offset + self.range.len() == next.offset
    }
}

/// Lets read-only memory be executed.
///
/// # Safety
/// The range must be page-aligned and mapped, with `PROT_READ` alone.
pub(crate) unsafe fn make_executable(range: Range<usize>) -> Result<(), Errno> {
    let base = range.start as *mut libc::c_void;
    // SAFETY: whoever reads it goes on; nobody wrote to it by this function's contract.
    let result = unsafe { libc::mprotect(base, range.len(), libc::PROT_READ | libc::PROT_EXEC) };
    Errno::result(result).map(drop)
}

/// Has the C library take all but the largest blocks from its heap, and let that grow in steps
/// (`mallopt(3)`: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD).
pub(crate) fn set_heap_policy(largest: libc::c_int, step: libc::c_int) {
    // SAFETY: plain integers; a value that it does not take changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, largest);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * largest);
        libc::mallopt(libc::M_TOP_PAD, step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_with_what_is_their_own() {
        let smaps = "\
7f0c80000000-7f0c80002000 r--p 00000000 08:01 4711                       /lib/a b.so
Size:                  8 kB
Anonymous:             0 kB
7f0c80002000-7f0c80003000 r-xp 00002000 08:01 4711                       /lib/a b.so
7f0c80004000-7f0c80006000 rw-p 00000000 00:00 0 \nAnonymous:             4 kB
THPeligible:    0
";
        let found = parse_smaps(smaps);
        let [text, code, own] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(text.name, "/lib/a b.so");
        assert_eq!(code.modes, "r-xp");
        assert!(text.continues_in(code) && !code.continues_in(own));
        assert_eq!((own.range.len(), own.own, &own.file), (0x2000, 4096, &None));
    }

    #[test]
    fn this_process_has_code_and_a_stack() {
        let found = mappings().expect("/proc is mounted");
        assert!(found.iter().any(|mapping| mapping.name == "[stack]"));
        assert!(found.iter().any(|mapping| mapping.modes == "r-xp"));
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Pss_Dirty:  1 kB\nPss:            12 kB\n";
        assert_eq!(field(text, "Pss"), Some(12 << 10));
        assert_eq!(field(text, "Ps"), None);
    }
}
