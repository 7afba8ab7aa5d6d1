//! Mappings that clones do not receive.

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
