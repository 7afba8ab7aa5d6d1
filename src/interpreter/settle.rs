//! What preloaded modules have left, and each job would have in the same state: random generators, exit
//! handlers, half-filled buffers. Settled once, in the host, after the warm-up.
//!
//! Runs on: the main thread, a child.

use pyo3::prelude::*;

use super::random_states::RandomStates;

/// Whether Python code may run in the host after [`settle`], other than hooks of `before_clone`: there
/// are threads.
pub(crate) fn may_be_unsettled(py: Python<'_>) -> PyResult<bool> {
    let alone: bool = super::job_module(py)?
        .call_method0("is_the_only_thread")?
        .extract()?;
    Ok(!alone)
}

/// Before anything is preloaded.
pub(crate) fn before_imports(py: Python<'_>) -> PyResult<()> {
    exit_handlers(py)?.call_method0("hold_what_is_registered")?;
    Ok(())
}

/// Has generators seed themselves in each child, and forgets the exit handlers of the host's modules. To
/// be repeated, in a child, if other code has run in the host since.
pub(crate) fn settle(py: Python<'_>, random_states: &RandomStates) -> PyResult<()> {
    randomness(py)?.call_method0("settle")?;
    random_states.settle();
    exit_handlers(py)?.call_method0("settle")?;
    Ok(())
}

/// Looks through all objects of the collector, once: writes what is buffered in files, and warns of
/// generators that have no known way to be renewed.
pub(crate) fn look_through(py: Python<'_>, objects: &Bound<'_, PyAny>) -> PyResult<()> {
    exit_handlers(py)?.call_method1("find_files", (objects,))?;
    flush(py)?;
    let (names, unnamed): (Vec<String>, usize) = randomness(py)?
        .call_method1("find_shared_generators", (objects,))?
        .extract()?;
    warn_of_generators(&names, unnamed);
    Ok(())
}

/// Writes what files that preloaded modules opened have buffered: each child would write it again.
pub(crate) fn flush(py: Python<'_>) -> PyResult<()> {
    let failed: Vec<String> = exit_handlers(py)?.call_method0("flush")?.extract()?;
    for what in failed {
        log::warn!(
            "a preloaded module's file cannot be flushed, and jobs may write what it has: {what}"
        );
    }
    Ok(())
}

/// How many names a warning has.
const MOST_NAMES: usize = 20;

fn warn_of_generators(names: &[String], unnamed: usize) {
    let others = unnamed + names.len().saturating_sub(MOST_NAMES);
    let others = match others {
        0 => String::new(),
        _ => format!(", and {others} that no module names"),
    };
    if names.is_empty() {
        if unnamed > 0 {
            log::info!("preloaded modules made {unnamed} random generators that no module names");
        }
        return;
    }
    let shown = names[..names.len().min(MOST_NAMES)].join(", ");
    log::warn!(
        "random generators that preloaded modules made give every job the same numbers: {shown}{others}; \
         hint: make them in the jobs, or renew each in an after_clone hook: \
         pyspawner_host.reseed(generator)"
    );
}

fn randomness(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("_pyspawner_randomness")
}

fn exit_handlers(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("_pyspawner_exit_handlers")
}
