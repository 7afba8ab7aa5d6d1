//! What modules hold open, by name. `held.py` is its Python half.
//!
//! Runs on: the main thread.

use std::collections::HashMap;
use std::os::fd::RawFd;

use pyo3::prelude::*;

/// Has objects that write to files of the host's know a job from the host.
///
/// # Errors
/// If the standard library is not as known.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    py.import("_pyspawner_held")?
        .call_method0("keep_logs_whole")
        .map(drop)
}

/// The variables of modules that hold these numbers.
///
/// # Errors
/// Of whatever Python raises at a strange object.
pub(crate) fn names(py: Python<'_>, numbers: &[RawFd]) -> PyResult<HashMap<RawFd, String>> {
    py.import("_pyspawner_held")?
        .call_method1("names", (numbers,))?
        .extract()
}
