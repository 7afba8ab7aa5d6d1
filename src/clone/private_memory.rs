//! Memory that clones do not receive.
//!
//! Runs on: the main thread, the I/O thread.
//!
//! The host's I/O thread handles the arguments, output and names of all jobs; a child
//! inherits the host's memory. So whatever that thread allocates, and the stack it runs
//! on, live in mappings marked `MADV_DONTFORK`. The process's global allocator tells the
//! two heaps apart: by thread when it allocates, by address when it frees.
//!
//! A child must never touch a private object, not even to drop it: the pages are not there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use rlsf::Tlsf;

use super::clone_lock;
use crate::sys::memory;

/// Address space set aside for the private heap. Only what is in use costs memory.
const HEAP_RESERVATION: usize = 64 << 30;
/// The private heap grows by at least this much at a time.
const HEAP_STEP: usize = 1 << 20;
/// The private stack, guard page included.
const STACK_SIZE: usize = 4 << 20;

#[global_allocator]
static ALLOCATOR: ByThread = ByThread;

static HEAP: Mutex<Heap> = Mutex::new(Heap::new());
/// Bounds of the private heap's reservation; 0 until it exists.
static HEAP_START: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// The private heap: an allocator over a reservation that is opened step by step.
struct Heap {
    blocks: Tlsf<'static, u32, u32, 30, 32>,
    usable: usize,
}

impl Heap {
    const fn new() -> Self {
        Self {
            blocks: Tlsf::new(),
            usable: 0,
        }
    }

    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if let Some(block) = self.blocks.allocate(layout) {
            return Some(block);
        }
        self.grow(layout.size() + layout.align())?;
        self.blocks.allocate(layout)
    }

    fn grow(&mut self, needed: usize) -> Option<()> {
        // TLSF rounds a request up to the next size class, at most 1/32 larger.
        let step = (needed + needed / 16 + 4096).next_multiple_of(HEAP_STEP);
        if self.usable.checked_add(step)? > HEAP_RESERVATION {
            return None;
        }
        let start = (HEAP_START.load(Ordering::Relaxed) + self.usable) as *mut u8;
        // SAFETY: the range lies within the reservation, was not opened before, and follows the
        // previous one directly. (TLSF may keep it as a pool of its own.)
        unsafe {
            memory::make_usable(start, step).ok()?;
            let block = NonNull::slice_from_raw_parts(NonNull::new(start)?, step);
            self.blocks.append_free_block_ptr(block);
        }
        self.usable += step;
        Some(())
    }
}

fn heap() -> std::sync::MutexGuard<'static, Heap> {
    HEAP.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_private(pointer: *const u8) -> bool {
    let start = HEAP_START.load(Ordering::Relaxed);
    start != 0 && (start..start + HEAP_RESERVATION).contains(&(pointer as usize))
}

/// Forgets the private heap, in a child: its addresses are free there, and the kernel gives
/// them to new mappings of the child, which the common heap then hands out.
pub(crate) fn forget_in_child() {
    HEAP_START.store(0, Ordering::Relaxed);
}

/// Bytes that the private heap has been opened to: no less than were ever in use at once.
#[cfg(test)]
pub(crate) fn opened() -> usize {
    heap().usable
}

struct ByThread;

// SAFETY: each pointer is freed by the allocator that made it, told by its address; both
// keep the contract of GlobalAlloc, and nothing here unwinds.
unsafe impl GlobalAlloc for ByThread {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_PRIVATE.get() {
            heap()
                .allocate(layout)
                .map_or(std::ptr::null_mut(), NonNull::as_ptr)
        } else {
            // SAFETY: the caller's contract is System's.
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(pointer).filter(|p| is_private(p.as_ptr())) {
            // SAFETY: the address shows that `heap` gave this block.
            unsafe { heap().blocks.deallocate(block, layout.align()) }
        } else if IS_PRIVATE.get() {
            // The common heap has locks that a child inherits.
            let _guard = clone_lock::hold();
            // SAFETY: the address shows that System gave this block.
            unsafe { System.dealloc(pointer, layout) }
        } else {
            // SAFETY: as above.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !IS_PRIVATE.get() && !is_private(pointer) {
            // SAFETY: the caller's contract is System's.
            return unsafe { System.realloc(pointer, layout, new_size) };
        }
        // SAFETY: `new_size` is not zero and does not overflow by the caller's contract; the
        // copy stays within both blocks, which do not overlap; the old one is freed once.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(pointer, new, layout.size().min(new_size));
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}

/// What went wrong in setting up the private thread.
#[derive(Debug, thiserror::Error)]
#[error("private memory: {step}: {errno}; hint: is there a limit on address space (ulimit -v)?")]
pub(crate) struct PrivateMemoryError {
    step: &'static str,
    errno: Errno,
}

fn at(step: &'static str) -> impl Fn(Errno) -> PrivateMemoryError {
    move |errno| PrivateMemoryError { step, errno }
}

/// Starts the one thread whose heap and stack clones do not receive. It runs `body` and
/// must not return from it while the process clones.
///
/// `body` itself is moved through the common heap: it may own descriptors, channels and
/// settings that children may know, and nothing else.
pub(crate) fn spawn_private_thread(
    body: Box<dyn FnOnce() + Send>,
) -> Result<(), PrivateMemoryError> {
    let heap = memory::reserve(HEAP_RESERVATION).map_err(at("reserving the heap"))?;
    // SAFETY: only the private thread gets addresses from it, and no child runs that thread.
    unsafe { memory::hide_from_clones(heap.as_ptr(), HEAP_RESERVATION) }
        .map_err(at("hiding the heap"))?;
    HEAP_START
        .compare_exchange(
            0,
            heap.as_ptr() as usize,
            Ordering::Relaxed,
            Ordering::Relaxed,
        )
        .expect("the private thread is started once");

    let stack = memory::reserve(STACK_SIZE).map_err(at("reserving the stack"))?;
    let page = memory::page_size();
    // SAFETY: within the reservation; the lowest page stays closed as a guard.
    unsafe { memory::make_usable(stack.as_ptr().add(page), STACK_SIZE - page) }
        .map_err(at("opening the stack"))?;

    let start = Box::into_raw(Box::new(PrivateThread {
        body,
        stack: stack.as_ptr() as usize,
    }));
    // A stack of our own, for two reasons: glibc may hand a stack of its own to a later
    // thread of a grandchild, which would find the pages missing; and the thread descriptor
    // at its top must stay visible in children, whose glibc goes on walking it.
    // SAFETY: the attributes are initialised before use; the stack outlives the process's
    // use of it since it is never unmapped; `start` is handed to exactly one thread.
    let error = unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        let mut thread: libc::pthread_t = 0;
        libc::pthread_attr_init(&raw mut attributes);
        libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED);
        libc::pthread_attr_setstack(
            &raw mut attributes,
            stack.as_ptr().add(page).cast(),
            STACK_SIZE - page,
        );
        let error = libc::pthread_create(
            &raw mut thread,
            &raw const attributes,
            enter_private_thread,
            start.cast(),
        );
        libc::pthread_attr_destroy(&raw mut attributes);
        error
    };
    match error {
        0 => Ok(()),
        errno => Err(at("pthread_create")(Errno::from_raw(errno))),
    }
}

struct PrivateThread {
    body: Box<dyn FnOnce() + Send>,
    stack: usize,
}

/// Hides the stack below this frame, and above it leaves only the thread's descriptor and
/// static thread-local storage (as the C library lays them out) and this frame.
extern "C" fn enter_private_thread(start: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `spawn_private_thread` made this pointer with Box::into_raw, for us alone.
    let PrivateThread { body, stack } = *unsafe { Box::from_raw(start.cast::<PrivateThread>()) };
    let here = 0u8;
    let hidden_end = memory::page_floor(&raw const here as usize);
    // SAFETY: the range is page-aligned and mapped, and in a child no thread runs on it.
    if let Err(errno) = unsafe { memory::hide_from_clones(stack as *mut u8, hidden_end - stack) } {
        panic!("hiding the I/O thread's stack: {errno}");
    }
    IS_PRIVATE.set(true);
    run_deeper(body);
    std::ptr::null_mut()
}

/// Calls `body` at least two pages further down, where the stack is hidden.
#[inline(never)]
fn run_deeper(body: Box<dyn FnOnce() + Send>) {
    let distance = [0u8; 2 * 4096];
    std::hint::black_box(&distance);
    body();
    std::hint::black_box(&distance);
}
