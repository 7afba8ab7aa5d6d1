//! The `pthread_atfork` handlers of every loaded library, recorded as they are registered.
//!
//! Runs on: the main thread, and a child that it has just cloned.
//!
//! OpenBLAS stops its threads in such a handler, Arrow and jemalloc reset their locks.
//! glibc has no call that runs them outside `fork(3)`. But libraries register through
//! `__register_atfork` and announce their unloading through `__cxa_finalize`, and the
//! dynamic linker finds both here first, since this executable exports them (build.rs).
//! Each call is recorded and passed on, so `fork(3)` itself goes on working.
//!
//! Source: glibc `nptl/register-atfork.c`, `stdlib/cxa_finalize.c`.

use std::ffi::{CStr, c_int, c_void};
use std::sync::{Mutex, PoisonError};

type Handler = unsafe extern "C" fn();

#[derive(Clone, Copy)]
struct Registration {
    prepare: Option<Handler>,
    parent: Option<Handler>,
    child: Option<Handler>,
    /// The address of the registering library's `__dso_handle`.
    library: usize,
}

static REGISTRATIONS: Mutex<Vec<Registration>> = Mutex::new(Vec::new());

/// The handlers in order of registration. A copy, so that a handler may register another.
fn registrations() -> Vec<Registration> {
    REGISTRATIONS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

fn run(handler: Option<Handler>) {
    if let Some(handler) = handler {
        // SAFETY: registered for exactly this use, and its library is still loaded: unloading
        // one takes its registrations out (`__cxa_finalize` below).
        unsafe { handler() }
    }
}

/// Before the clone: last registered, first run (`pthread_atfork(3)`).
pub(crate) fn prepare() {
    registrations().iter().rev().for_each(|r| run(r.prepare));
}

/// After the clone in the parent: in order of registration.
pub(crate) fn after_in_parent() {
    registrations().iter().for_each(|r| run(r.parent));
}

/// After the clone in the child: in order of registration.
pub(crate) fn after_in_child() {
    registrations().iter().for_each(|r| run(r.child));
}

/// How many handlers are known.
pub(crate) fn handler_count() -> usize {
    registrations().len()
}

/// The next definition of `name` after this executable's: the C library's.
fn next_definition(name: &CStr) -> *mut c_void {
    // SAFETY: `name` is a C string.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!next.is_null(), "the C library has no {name:?}");
    next
}

/// See the module's text. Called by libraries, through `pthread_atfork(3)`.
///
/// # Safety
/// As the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __register_atfork(
    prepare: Option<Handler>,
    parent: Option<Handler>,
    child: Option<Handler>,
    library: *mut c_void,
) -> c_int {
    type Real = unsafe extern "C" fn(
        Option<Handler>,
        Option<Handler>,
        Option<Handler>,
        *mut c_void,
    ) -> c_int;
    // SAFETY: glibc's function has this type; its arguments are passed on unchanged.
    let result = unsafe {
        let real = std::mem::transmute::<*mut c_void, Real>(next_definition(c"__register_atfork"));
        real(prepare, parent, child, library)
    };
    if result == 0 {
        REGISTRATIONS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Registration {
                prepare,
                parent,
                child,
                library: library as usize,
            });
    }
    result
}

/// See the module's text. Called by a library as it is unloaded, or with null for all.
///
/// # Safety
/// As the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __cxa_finalize(library: *mut c_void) {
    type Real = unsafe extern "C" fn(*mut c_void);
    // SAFETY: glibc's function has this type; its argument is passed on unchanged. It runs
    // the library's destructors, so our record is dropped after it, as glibc does.
    unsafe {
        let real = std::mem::transmute::<*mut c_void, Real>(next_definition(c"__cxa_finalize"));
        real(library);
    }
    REGISTRATIONS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|r| !library.is_null() && r.library != library as usize);
}
