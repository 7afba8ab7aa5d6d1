//! Loaded libraries: who among them exports a function.
//!
//! Runs on: any process.

use std::ffi::{CStr, CString, c_int, c_void};

/// The addresses of every loaded library's own function of this name, each once (`dl_iterate_phdr(3)`, `dlsym(3)`).
pub(crate) fn exported(name: &CStr) -> Vec<usize> {
    let mut found = Vec::new();
    for library in loaded() {
        // SAFETY: C strings that outlive the calls. With RTLD_NOLOAD nothing is loaded, and the handle is given
        // back; the library stays, since whoever loaded it holds it.
        let address = unsafe {
            let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
            if handle.is_null() {
                continue;
            }
            let address = libc::dlsym(handle, name.as_ptr()) as usize;
            libc::dlclose(handle);
            address
        };
        if address != 0 && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// The names under which libraries were loaded.
pub(crate) fn loaded() -> Vec<CString> {
    unsafe extern "C" fn note(
        library: *mut libc::dl_phdr_info,
        _size: usize,
        names: *mut c_void,
    ) -> c_int {
        // SAFETY: called by `dl_iterate_phdr` with a description that is valid meanwhile, and with the list below.
        unsafe {
            let name = CStr::from_ptr((*library).dlpi_name);
            // This program itself has none.
            if !name.is_empty() {
                (*names.cast::<Vec<CString>>()).push(name.to_owned());
            }
        }
        0
    }
    let mut names: Vec<CString> = Vec::new();
    // SAFETY: `note` takes what it is given here.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut names).cast()) };
    names
}

/// Calls a function of type `int (*)(int)`.
///
/// # Safety
/// The address must be that of such a function, in a library that is still loaded.
pub(crate) unsafe fn call_with_int(address: usize, argument: c_int) -> c_int {
    // SAFETY: as this function.
    unsafe {
        let function: unsafe extern "C" fn(c_int) -> c_int = std::mem::transmute(address);
        function(argument)
    }
}
