//! The embedded interpreter: made warm once, called in every child.
//!
//! Runs on: the main thread, a child.

pub(crate) mod call;
pub(crate) mod crash_stacks;
pub(crate) mod held;
pub(crate) mod host_module;
pub(crate) mod import_guard;
pub(crate) mod internals;
pub(crate) mod random_states;
pub(crate) mod settle;
pub(crate) mod surroundings;
pub(crate) mod threads;
pub(crate) mod warm;

use std::ffi::CStr;

use pyo3::prelude::*;
use pyo3::types::PyModule;

/// The Python half of this module, as modules of its own in every interpreter, in the order in which they import
/// each other.
const PYTHON_MODULES: &[(&CStr, &str)] = &[
    (c"_pyspawner_crash_stacks", include_str!("crash_stacks.py")),
    (c"_pyspawner_imports", include_str!("imports.py")),
    (c"_pyspawner_results", include_str!("results.py")),
    (
        c"_pyspawner_fork_handlers",
        include_str!("fork_handlers.py"),
    ),
    (c"_pyspawner_held", include_str!("held.py")),
    (c"_pyspawner_threads", include_str!("threads.py")),
    (c"_pyspawner_job", include_str!("job.py")),
    (c"_pyspawner_randomness", include_str!("randomness.py")),
    (
        c"_pyspawner_exit_handlers",
        include_str!("exit_handlers.py"),
    ),
    (
        c"_pyspawner_reseed",
        include_str!("../../python-stubs/pyspawner_host/_reseed.py"),
    ),
];

fn job_module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("_pyspawner_job")
}

/// An exception with its traceback, as Python prints it.
pub(crate) fn describe(py: Python<'_>, error: &PyErr) -> String {
    let lines = py
        .import("traceback")
        .and_then(|traceback| {
            let parts = (error.get_type(py), error.value(py), error.traceback(py));
            traceback.call_method1("format_exception", parts)
        })
        .and_then(|lines| lines.extract::<Vec<String>>());
    match lines {
        Ok(lines) => lines.concat().trim_end().to_owned(),
        Err(_) => error.to_string(),
    }
}

/// The Python half of what the host imports: `imports.py`.
fn imports_module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("_pyspawner_imports")
}
