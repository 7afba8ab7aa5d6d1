//! Memory that clones receive, kept so that to receive it is cheap.
//!
//! Runs on: the main thread.
//!
//! For each page of its parent's own memory the kernel gives a clone a page table entry, and takes it
//! away at the end: 88 ns each way, 11 ms for 500 MiB. A huge page is one entry for 512. So Python's
//! arenas lie side by side in one range of huge pages, the C library's heap is one range too, and
//! what is in small pages after the warm-up is collapsed (`MADV_COLLAPSE`, Linux 6.1).
//!
//! Each mapping costs a microsecond each way, too, and a library has five: its header, code, constants,
//! what the loader has relocated, variables. The first three become one, and the fourth is shared.
//!
//! A child's own new memory comes in small pages, as anywhere: it may need but little.

use std::collections::HashSet;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use pyo3::ffi;

use crate::sys::files::sealed_memfd;
use crate::sys::memory::{self, HUGE_PAGE, Mapping};

/// Address space set aside for Python's arenas. Only what is in use costs memory.
const RESERVATION: usize = 64 << 30;
/// The largest that the C library takes from its heap, rather than map it by itself (`mallopt(3)`:
/// the maximum). It is where its own adaption of that threshold ends, too.
const LARGEST_IN_HEAP: libc::c_int = 32 << 20;
/// The heap grows by this much at a time, so that it seldom does.
const HEAP_STEP: libc::c_int = 8 << 20;

static ARENAS: Mutex<Arenas> = Mutex::new(Arenas {
    size: 0,
    start: 0,
    used: 0,
    usable: 0,
    free: Vec::new(),
});
static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Arenas, side by side.
struct Arenas {
    /// The size of each. By the same functions Python also gets memory for its frames, which is little.
    size: usize,
    start: usize,
    used: usize,
    usable: usize,
    free: Vec<usize>,
}

impl Arenas {
    fn contains(&self, address: usize) -> bool {
        (self.start..self.start + self.used).contains(&address)
    }

    fn allocate(&mut self) -> Option<usize> {
        if let Some(address) = self.free.pop() {
            return Some(address);
        }
        if self.used == self.usable {
            if self.usable == RESERVATION {
                return None;
            }
            let place = (self.start + self.usable) as *mut u8;
            // SAFETY: a part of the reservation that was not opened before.
            unsafe {
                memory::make_usable(place, HUGE_PAGE).ok()?;
                // Without huge pages it is as usable.
                memory::prefer_huge_pages(place, HUGE_PAGE).ok();
            }
            self.usable += HUGE_PAGE;
        }
        let address = self.start + self.used;
        self.used += self.size;
        Some(address)
    }
}

fn arenas() -> std::sync::MutexGuard<'static, Arenas> {
    ARENAS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Arranges where memory will come from. Comes before the interpreter's first allocation. The arenas of
/// an interpreter of which their size is not known lie where it puts them.
///
/// # Errors
/// If there is no address space for it.
pub(crate) fn prepare(arena_size: Option<usize>) -> Result<(), Errno> {
    memory::set_heap_policy(LARGEST_IN_HEAP, HEAP_STEP);
    let Some(size) = arena_size else {
        return Ok(());
    };
    debug_assert!(HUGE_PAGE.is_multiple_of(size));
    let base = memory::reserve(RESERVATION + HUGE_PAGE)?.as_ptr() as usize;
    arenas().size = size;
    arenas().start = base.next_multiple_of(HUGE_PAGE);
    let mut allocator = ffi::PyObjectArenaAllocator {
        ctx: std::ptr::null_mut(),
        alloc: Some(allocate_arena),
        free: Some(free_arena),
    };
    // SAFETY: both functions keep the contract of CPython's own (`PyObjectArenaAllocator`), for
    // arenas of any thread that holds the GIL.
    unsafe { ffi::PyObject_SetArenaAllocator(&raw mut allocator) };
    Ok(())
}

/// From here on, new arenas are as CPython's own.
pub(crate) fn in_child() {
    IN_CHILD.store(true, Ordering::Relaxed);
}

/// Whether the interpreter has asked for arenas of the size that is known of it.
pub(crate) fn arenas_are_used() -> bool {
    arenas().used > 0
}

extern "C" fn allocate_arena(_: *mut c_void, size: usize) -> *mut c_void {
    if !IN_CHILD.load(Ordering::Relaxed)
        && let mut arenas = arenas()
        && size == arenas.size
        && let Some(address) = arenas.allocate()
    {
        return address as *mut c_void;
    }
    memory::map(size).map_or(std::ptr::null_mut(), |place| place.as_ptr().cast())
}

extern "C" fn free_arena(_: *mut c_void, arena: *mut c_void, size: usize) {
    let mut arenas = arenas();
    if arenas.contains(arena as usize) && !IN_CHILD.load(Ordering::Relaxed) {
        arenas.free.push(arena as usize);
        return;
    }
    // SAFETY: the interpreter gives back what `allocate_arena` gave it, and uses it no more.
    unsafe { memory::unmap(arena.cast(), size) };
}

/// Makes what the warm-up has left cheap to clone. Where the kernel does not let it, clones are only
/// dearer.
///
/// # Errors
/// If the mappings of this process cannot be read, or may have lost some.
pub(crate) fn compact() -> std::io::Result<()> {
    let mappings = memory::mappings()?;
    collapse(&mappings);
    join_libraries(&mappings);
    // As they are now: a thread of a preloaded module may have unloaded a library.
    share_relocated(&memory::mappings()?)
}

/// Puts what is in small pages into huge ones.
fn collapse(mappings: &[Mapping]) {
    for range in mappings.iter().filter_map(filled_part) {
        // One at a time: the kernel gives up a whole range for one that it cannot do (`madvise_collapse`).
        for start in range.step_by(HUGE_PAGE) {
            // SAFETY: nothing of the content changes.
            if let Err(errno) = unsafe { memory::collapse(start..start + HUGE_PAGE) } {
                log::debug!("madvise(MADV_COLLAPSE) at {start:#x}: {errno}");
            }
        }
    }
}

/// The aligned part of a private mapping that is in memory for the better part.
fn filled_part(mapping: &Mapping) -> Option<Range<usize>> {
    let is_own = mapping.modes == "rw-p" && mapping.file.is_none();
    let is_heap = matches!(&*mapping.name, "" | "[heap]");
    let Range { start, end } = mapping.range;
    let inner = start.next_multiple_of(HUGE_PAGE)..end / HUGE_PAGE * HUGE_PAGE;
    let is_filled = mapping.own >= mapping.range.len() / 4 * 3;
    (is_own && is_heap && is_filled && !inner.is_empty()).then_some(inner)
}

fn is_code(mapping: &Mapping) -> bool {
    mapping.modes == "r-xp"
}

/// Gives a library's header and constants the modes of the code between them, so that the kernel has
/// one mapping instead of three. So linkers laid out libraries until 2018 (`ld -z noseparate-code`).
fn join_libraries(mappings: &[Mapping]) {
    // py-spy takes the beginning of libpython's code for the place that the file says, to find the interpreter in a job.
    let is_looked_for = |mapping: &Mapping| {
        let file = mapping.name.rsplit('/').next();
        file.is_some_and(|file| file.starts_with("libpython"))
    };
    let joins = |one: &Mapping, other: &Mapping| {
        // What the loader has written to is no part of the file any more.
        is_code(one) && other.modes == "r--p" && other.own == 0
    };
    for pair in mappings
        .windows(2)
        .filter(|pair| pair[0].continues_in(&pair[1]))
    {
        let [first, second] = pair else { continue };
        let read_only = if joins(first, second) {
            second
        } else if joins(second, first) && !is_looked_for(first) {
            first
        } else {
            continue;
        };
        let range = read_only.range.clone();
        // SAFETY: a mapping of a file, which is read-only; no thread of a preloaded module is expected to
        // unload its own library while this thread, which imported it, holds the GIL.
        if let Err(errno) = unsafe { memory::make_executable(range) } {
            log::debug!(
                "mprotect(PROT_READ | PROT_EXEC) of {}: {errno}",
                read_only.name
            );
        }
    }
}

/// Maps what the loader has relocated and then made read-only (RELRO) from a memory file. Clones share that
/// as they share a library's code: they get no page table entries for it, and no part in the records by which
/// the kernel finds all who have a page of a parent's own.
///
/// # Errors
/// If something may not be mapped any more.
fn share_relocated(mappings: &[Mapping]) -> std::io::Result<()> {
    let code = mappings.iter().filter(|mapping| is_code(mapping));
    let libraries: HashSet<_> = code.filter_map(|code| code.file.as_ref()).collect();
    let is_librarys = |mapping: &Mapping| {
        let file = mapping.file.as_ref();
        file.is_some_and(|file| libraries.contains(file))
    };
    let is_relocated =
        |mapping: &&Mapping| mapping.modes == "r--p" && mapping.own > 0 && is_librarys(mapping);
    let relocated: Vec<_> = mappings.iter().filter(is_relocated).collect();
    let contents = relocated.iter().map(|mapping| {
        let Range { start, end } = mapping.range;
        // SAFETY: it is mapped, as `join_libraries` says, readable, and nobody can write to it.
        unsafe { std::slice::from_raw_parts(start as *const u8, end - start) }
    });
    let contents: Vec<&[u8]> = contents.collect();
    let file = match sealed_memfd("pyspawner-relocated", &contents) {
        Ok(file) => file,
        Err(error) => {
            log::debug!("a memory file for what was relocated: {error}");
            return Ok(());
        }
    };
    let mut offset = 0;
    for mapping in relocated {
        // SAFETY: there is the same in that part of the file, which nobody can change.
        unsafe { memory::map_over(mapping.range.clone(), &file, offset) }?;
        offset += mapping.range.len();
    }
    Ok(())
}
