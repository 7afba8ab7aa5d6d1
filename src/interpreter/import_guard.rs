//! Keeps the host from running code that a job may have left for it.
//!
//! Runs on: the main thread, a child.
//!
//! The host may be root, and whatever it imports runs outside of every sandbox. Where jobs can write, one can leave a module, a
//! `.pth` file, bytecode, an extension module; and which folders are searched depends on the environment, on `site`, on what modules
//! do with `sys.path`. So each file is looked at as it is opened to be executed, by the hook that CPython has for that
//! (`PyFile_SetOpenCodeHook`, PEP 578), from the first line of `site` to the host's end: hooks of the operator's run between clones.
//! Loaders that open files otherwise, as that of sourceless bytecode does, are looked at where they read. A child lifts it, whose
//! code is a job's.

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use pyo3::exceptions::PyPermissionError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCFunction;

use super::imports_module;
use crate::config::Profile;

type OpenCode = unsafe extern "C" fn(*mut ffi::PyObject, *mut c_void) -> *mut ffi::PyObject;

unsafe extern "C" {
    /// `Include/cpython/fileobject.h`; it may be called before the interpreter is initialised, once.
    fn PyFile_SetOpenCodeHook(hook: OpenCode, data: *mut c_void) -> c_int;
}

/// Set before the interpreter exists.
static PROFILE: OnceLock<Profile> = OnceLock::new();
/// Whether code is for the host.
static GUARDS: AtomicBool = AtomicBool::new(false);

/// Looks at what the host imports, from here on. Comes before the interpreter is initialised.
pub(super) fn start(profile: &Profile) -> anyhow::Result<()> {
    if !profile.has_folders_of_jobs() {
        return Ok(());
    }
    PROFILE.get_or_init(|| profile.clone());
    GUARDS.store(true, Ordering::Relaxed);
    // SAFETY: the hook has the type that is asked for, and needs no data.
    let set = unsafe { PyFile_SetOpenCodeHook(open_code, std::ptr::null_mut()) };
    ensure!(set == 0, "PyFile_SetOpenCodeHook");
    Ok(())
}

/// The same for extension modules, which are not opened as code is, and for bytecode, which the host would write.
pub(super) fn guard_interpreter(py: Python<'_>) -> PyResult<()> {
    if PROFILE.get().is_none() {
        return Ok(());
    }
    let check = PyCFunction::new_closure(py, None, None, |arguments, _| {
        check(&arguments.get_item(0)?.extract::<PathBuf>()?)
    })?;
    imports_module(py)?.call_method1("guard", (check,))?;
    Ok(())
}

/// From here on all code of this process is a job's. In a child alone.
pub(crate) fn lift() {
    // Not to write to a page of the host's for nothing.
    if PROFILE.get().is_some() {
        GUARDS.store(false, Ordering::Relaxed);
    }
}

/// What CPython calls to open a file with code (`io.open_code`).
unsafe extern "C" fn open_code(path: *mut ffi::PyObject, _: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: CPython calls it with the GIL held, and with a string that lives through the call.
    let (py, path) = unsafe {
        let py = Python::assume_attached();
        (py, Bound::from_borrowed_ptr(py, path))
    };
    let opened = path.extract::<PathBuf>().and_then(|name| {
        check(&name)?;
        py.import("_io")?.getattr("open")?.call1((&path, "rb"))
    });
    match opened {
        Ok(file) => file.into_ptr(),
        Err(error) => {
            error.restore(py);
            std::ptr::null_mut()
        }
    }
}

/// # Errors
/// PermissionError for what the host must not execute.
fn check(path: &Path) -> PyResult<()> {
    let profile = PROFILE.get().filter(|_| GUARDS.load(Ordering::Relaxed));
    match profile.and_then(|profile| profile.folder_of_code_of_jobs(path)) {
        None => Ok(()),
        Some(folder) => Err(PyPermissionError::new_err(format!(
            "{} may have been left by a job, which can write to {}: the host does not execute it; hint: keep modules \
             apart from jobs' data",
            path.display(),
            folder.display()
        ))),
    }
}
