//! The random generators of SQLite, of which a process may have several: the system's library, and the
//! copies that wheels bring.
//!
//! Runs on: any process.

use std::ffi::{CStr, c_char, c_int, c_void};

/// `sqlite3_randomness(3)`.
type Randomness = unsafe extern "C" fn(c_int, *mut c_void);
/// `sqlite3_vfs_find(3)`.
type VfsFind = unsafe extern "C" fn(*const c_char) -> *mut Vfs;
type VfsRandomness = unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int;

/// `struct sqlite3_vfs` as SQLite documents it, as far as `xRandomness`.
#[repr(C)]
struct Vfs {
    version: c_int,
    file_size: c_int,
    longest_path: c_int,
    next: *mut Vfs,
    name: *const c_char,
    application_data: *mut c_void,
    functions: [*const c_void; 8],
    randomness: VfsRandomness,
}

/// One copy of the library, which is never unloaded.
pub(crate) struct Sqlite {
    randomness: Randomness,
}

/// Finds all copies that are loaded, and has them seed themselves by `getrandom(2)`.
///
/// By themselves they read `/dev/urandom`, and where there is none, as in a chroot, they take the time
/// and the process id, which is 1 in every child.
pub(crate) fn find() -> Vec<Sqlite> {
    let libraries = super::libraries::loaded();
    libraries.iter().filter_map(|name| load(name)).collect()
}

fn load(name: &CStr) -> Option<Sqlite> {
    // SAFETY: it is loaded already, so no code of it runs. The handle is kept: the library stays.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return None;
    }
    let randomness = own_symbol(library, name, c"sqlite3_randomness");
    let vfs_find = own_symbol(library, name, c"sqlite3_vfs_find");
    let (Some(randomness), Some(vfs_find)) = (randomness, vfs_find) else {
        // SAFETY: the handle was opened above, and nothing of it is used.
        unsafe { libc::dlclose(library) };
        return None;
    };
    // SAFETY: the functions of these names have these types, in every version of the library, and
    // the file system that the second one gives is never freed. Nobody else uses the library now: other
    // threads of Python's wait for the lock that this one has.
    unsafe {
        let randomness = std::mem::transmute::<*mut c_void, Randomness>(randomness);
        let vfs = std::mem::transmute::<*mut c_void, VfsFind>(vfs_find)(std::ptr::null());
        if !vfs.is_null() {
            (*vfs).randomness = from_kernel;
        }
        Some(Sqlite { randomness })
    }
}

/// A symbol that the library itself has, and not one that it is linked to.
fn own_symbol(library: *mut c_void, name: &CStr, symbol: &CStr) -> Option<*mut c_void> {
    // SAFETY: the handle is open, and the names are texts; the information is plain data.
    unsafe {
        let address = libc::dlsym(library, symbol.as_ptr());
        let mut info: libc::Dl_info = std::mem::zeroed();
        if address.is_null() || libc::dladdr(address, &raw mut info) == 0 {
            return None;
        }
        (CStr::from_ptr(info.dli_fname) == name).then_some(address)
    }
}

/// Seeds a generator: returns how many bytes it has written.
unsafe extern "C" fn from_kernel(_: *mut Vfs, length: c_int, buffer: *mut c_char) -> c_int {
    let length = usize::try_from(length).unwrap_or(0);
    // SAFETY: the library gives a buffer of that length. Requests of up to 256 bytes are answered whole
    // (`getrandom(2)`), and it asks for 56 at most.
    let written = unsafe { libc::getrandom(buffer.cast(), length, 0) };
    written.max(0) as c_int
}

impl Sqlite {
    /// Has the generator seed itself at its next use.
    pub(crate) fn reset_randomness(&self) {
        // SAFETY: it is the function of this name; without a buffer it resets the generator.
        unsafe { (self.randomness)(0, std::ptr::null_mut()) };
    }
}
