//! Mappings: of which clones receive nothing, and of which they receive much.

use std::ptr::NonNull;

use nix::errno::Errno;

/// Rounds down to a page boundary.
pub fn page_floor(address: usize) -> usize {
    address & !(page_size() - 1)
}

/// The page size in bytes.
pub fn page_size() -> usize {
    // SAFETY: always sound.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// The resident memory of a process in bytes (`proc_pid_statm(5)`).
pub fn resident(pid: libc::pid_t) -> std::io::Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let pages = pages.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(pages * page_size() as u64)
}

/// The writable mappings of this process that a clone would share with it, by range and file
/// (`proc_pid_maps(5)`).
pub fn shared_writable() -> std::io::Result<Vec<String>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let shared = maps.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (range, modes) = (fields.next()?, fields.next()?);
        let file = fields.skip(3).collect::<Vec<_>>().join(" ");
        (modes.as_bytes().get(1) == Some(&b'w') && modes.ends_with('s'))
            .then(|| format!("{range} {file}"))
    });
    Ok(shared.collect())
}

/// Private writable memory of this process in bytes, as RLIMIT_DATA counts it: `VmData`
/// (`proc_pid_status(5)`).
pub fn private_data() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kibibytes: Option<u64> = status
        .lines()
        .find_map(|line| line.strip_prefix("VmData:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    Ok(kibibytes.ok_or(std::io::ErrorKind::InvalidData)? << 10)
}

/// Reserves `length` bytes of address space with no memory behind them
/// (`mmap(2)`, `PROT_NONE`): costs nothing until opened with [`make_usable`].
pub fn reserve(length: usize) -> Result<NonNull<u8>, Errno> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(NonNull::new(base.cast()).expect("mmap gave a null address"))
}

/// Makes part of a reservation readable and writable.
///
/// # Safety
/// The range must be page-aligned and lie within a mapping of [`reserve`].
pub unsafe fn make_usable(base: *mut u8, length: usize) -> Result<(), Errno> {
    // SAFETY: by this function's contract the range belongs to the caller.
    let result = unsafe { libc::mprotect(base.cast(), length, libc::PROT_READ | libc::PROT_WRITE) };
    Errno::result(result).map(drop)
}

/// Keeps a range out of every later clone (`MADV_DONTFORK`, `madvise(2)`): in the child the
/// addresses are unmapped.
///
/// # Safety
/// No code that runs in a child may touch the range, which must be page-aligned and mapped.
pub unsafe fn hide_from_clones(base: *mut u8, length: usize) -> Result<(), Errno> {
    // SAFETY: the advice changes nothing in this process; the rest is the caller's promise.
    Errno::result(unsafe { libc::madvise(base.cast(), length, libc::MADV_DONTFORK) }).map(drop)
}

/// What the kernel calls a huge page, in bytes: a page of page table entries' worth.
pub const HUGE_PAGE: usize = 2 << 20;

/// Maps new memory, as `malloc(3)` would. Not where this process has a limit on it.
pub fn map(length: usize) -> Result<NonNull<u8>, Errno> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(NonNull::new(base.cast()).expect("mmap gave a null address"))
}

/// Gives memory back.
///
/// # Safety
/// The range must be page-aligned, mapped, and used by nobody any more.
pub unsafe fn unmap(base: *mut u8, length: usize) {
    // SAFETY: by this function's contract. With a valid range it fails only for want of memory, and
    // then the mapping stays.
    unsafe { libc::munmap(base.cast(), length) };
}

/// Asks for huge pages where memory is touched for the first time (`MADV_HUGEPAGE`, `madvise(2)`).
///
/// # Safety
/// The range must be page-aligned and mapped.
pub unsafe fn prefer_huge_pages(base: *mut u8, length: usize) -> Result<(), Errno> {
    // SAFETY: the advice changes no content; the rest is the caller's promise.
    Errno::result(unsafe { libc::madvise(base.cast(), length, libc::MADV_HUGEPAGE) }).map(drop)
}

/// Has the kernel copy what is in small pages into huge ones (`MADV_COLLAPSE`, `madvise(2)`).
///
/// # Safety
/// The range must be page-aligned and mapped.
pub unsafe fn collapse(range: std::ops::Range<usize>) -> Result<(), Errno> {
    let base = range.start as *mut libc::c_void;
    // SAFETY: the content stays; the rest is the caller's promise.
    Errno::result(unsafe { libc::madvise(base, range.len(), libc::MADV_COLLAPSE) }).map(drop)
}

/// The aligned parts of this process's own private mappings that are in memory for the better part
/// (`proc_pid_smaps(5)`).
pub fn filled_mappings() -> std::io::Result<Vec<std::ops::Range<usize>>> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some(range) = parse_range(first) {
            let rest: Vec<_> = words.collect();
            let is_own = matches!(
                rest[..],
                ["rw-p", _, _, "0"] | ["rw-p", _, _, "0", "[heap]"]
            );
            current = is_own.then_some(range);
        } else if let (Some(range), "Anonymous:") = (&current, first) {
            let kibibytes: usize = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let inner = range.start.next_multiple_of(HUGE_PAGE)..range.end / HUGE_PAGE * HUGE_PAGE;
            if (kibibytes << 10) >= range.len() / 4 * 3 && inner.start < inner.end {
                found.push(inner);
            }
        }
    }
    Ok(found)
}

fn parse_range(text: &str) -> Option<std::ops::Range<usize>> {
    let (start, end) = text.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

/// Has the C library take all but the largest blocks from its heap, and let that grow in steps
/// (`mallopt(3)`: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD).
pub fn set_heap_policy(largest: libc::c_int, step: libc::c_int) {
    // SAFETY: plain integers; a value that it does not take changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, largest);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * largest);
        libc::mallopt(libc::M_TOP_PAD, step);
    }
}
