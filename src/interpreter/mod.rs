//! The embedded interpreter: made warm once, called in every child.

pub mod call;
pub mod host_module;
pub mod internals;
pub mod random_states;
pub mod warm;

use pyo3::prelude::*;
use pyo3::types::PyModule;

/// The Python half of this module, as a module of its own in every interpreter.
fn job_module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("_pyspawner_job")
}

/// An exception with its traceback, as Python prints it.
pub fn describe(py: Python<'_>, error: &PyErr) -> String {
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
