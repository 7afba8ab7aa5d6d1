//! What the interpreter knows of the place that children are in: their home, and where modules lie.
//!
//! Runs on: the main thread, a child.
//!
//! It is told once, in the host, so that it costs children nothing. That comes after the last import and
//! after the warm-up: in the host the home's name belongs to whoever makes a folder of that name, and a
//! library must not look for its settings there.

use std::collections::BTreeMap;
use std::path::Path;

use pyo3::prelude::*;

const HOME: &str = "HOME";

/// Adds variables that the host is to be without until its last import.
pub(crate) fn add_variables(py: Python<'_>, variables: &BTreeMap<String, String>) -> PyResult<()> {
    environment(py)?.call_method1("update", (variables,))?;
    Ok(())
}

/// Sets HOME, in Python and in the C library, unless there is one.
pub(crate) fn set_home(py: Python<'_>, home: &Path) -> PyResult<()> {
    let environment = environment(py)?;
    if environment.contains(HOME)? {
        return Ok(());
    }
    environment.set_item(HOME, home.as_os_str())
}

/// Takes HOME away again if it is that folder: in a child that has a root of its own, and it is not there.
pub(crate) fn forget_home(py: Python<'_>, home: &Path) -> PyResult<()> {
    let environment = environment(py)?;
    let is_set = environment
        .call_method1("get", (HOME,))?
        .eq(home.as_os_str())?;
    if is_set {
        environment.del_item(HOME)?;
    }
    Ok(())
}

/// Has nothing be imported from the working directory any more: others may have left modules there.
pub(crate) fn forget_working_directory(py: Python<'_>) -> PyResult<()> {
    let path = py.import("sys")?.getattr("path")?;
    while path.contains("")? {
        path.call_method1("remove", ("",))?;
    }
    Ok(())
}

/// Has children import from a folder that the host imports from as its working directory (`""`), right
/// after that, since they start elsewhere.
pub(crate) fn import_from(py: Python<'_>, folder: &Path) -> PyResult<()> {
    let path = py.import("sys")?.getattr("path")?;
    if !path.contains("")? || path.contains(folder.as_os_str())? {
        return Ok(());
    }
    let place: usize = path.call_method1("index", ("",))?.extract()?;
    path.call_method1("insert", (place + 1, folder.as_os_str()))?;
    Ok(())
}

fn environment(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import("os")?.getattr("environ")
}
