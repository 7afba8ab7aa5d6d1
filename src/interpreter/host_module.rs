//! The module `pyspawner_host`, which preloaded modules and children can import.
//!
//! Typed, with stand-ins for use outside a host, in `python-stubs/`; a test holds the two
//! against each other.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::record;
use crate::record::RESULT_FD;
use crate::sys::files::write_once;

static STATE: Mutex<State> = Mutex::new(State {
    before_clone: Vec::new(),
    after_clone: Vec::new(),
    job: None,
});

struct State {
    before_clone: Vec<Py<PyAny>>,
    after_clone: Vec<Py<PyAny>>,
    /// In a child, once its job is known.
    job: Option<CurrentJob>,
}

struct CurrentJob {
    id: String,
    deadline: Option<f64>,
    has_result_channel: bool,
}

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hooks into the life of a pyspawner host, and facts about the current job.
#[pymodule(gil_used = true)]
pub mod pyspawner_host {
    #[pymodule_export]
    use super::{after_clone, before_clone, deadline, job_id, progress, reseed};
}

/// Call `fn()` in the host just before each clone, in order of registration.
///
/// Use it to bring what a clone cannot take along into a state that it can: stop a thread,
/// close a connection. An exception fails the clone. Returns `fn`, so that it can decorate.
#[pyfunction]
#[pyo3(signature = (r#fn, /))]
fn before_clone(py: Python<'_>, r#fn: Py<PyAny>) -> PyResult<Py<PyAny>> {
    check_callable(py, &r#fn)?;
    state().before_clone.push(r#fn.clone_ref(py));
    Ok(r#fn)
}

/// Call `fn()` in each child, inside its sandbox, before its job, in order of registration.
///
/// Use it to give the child what must not be shared: a random generator of its own, a fresh
/// connection. The job is not known yet: `job_id()` is None. An exception ends the child
/// before its job runs. Returns `fn`, so that it can decorate.
#[pyfunction]
#[pyo3(signature = (r#fn, /))]
fn after_clone(py: Python<'_>, r#fn: Py<PyAny>) -> PyResult<Py<PyAny>> {
    check_callable(py, &r#fn)?;
    state().after_clone.push(r#fn.clone_ref(py));
    Ok(r#fn)
}

fn check_callable(py: Python<'_>, function: &Py<PyAny>) -> PyResult<()> {
    if function.bind(py).is_callable() {
        return Ok(());
    }
    Err(PyTypeError::new_err("fn must be callable"))
}

/// The current job's id, or None outside a job.
#[pyfunction]
fn job_id() -> Option<String> {
    state().job.as_ref().map(|job| job.id.clone())
}

/// When the current job will be ended, in seconds since the epoch as `time.time()` counts
/// them, or None if it has no time limit or outside a job.
#[pyfunction]
fn deadline() -> Option<f64> {
    state().job.as_ref().and_then(|job| job.deadline)
}

/// Tell the host how far the job is: `fraction` from 0.0 to 1.0, `text` for people, cut at
/// 1,000 bytes. Advisory; does nothing where nobody listens. ValueError for another fraction.
#[pyfunction]
#[pyo3(signature = (fraction, text = ""))]
fn progress(fraction: f64, text: &str) -> PyResult<()> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(PyValueError::new_err("fraction must be from 0.0 to 1.0"));
    }
    let state = state();
    if state.job.as_ref().is_none_or(|job| !job.has_result_channel) {
        return Ok(());
    }
    let text = &text[..text.floor_char_boundary(1000)];
    let json = serde_json::json!({ "fraction": fraction, "text": text }).to_string();
    // Written at once while `state` is locked, and below PIPE_BUF: no record is torn.
    let mut frame = [0; 4096];
    let length = record::frame_into(&mut frame, record::PROGRESS, json.as_bytes());
    write_once(RESULT_FD, &frame[..length]);
    Ok(())
}

/// Seed `generator` anew from the operating system.
///
/// For an `after_clone` hook: a generator that was made while modules were imported gives every job
/// the same numbers. Takes a `random.Random`, a `numpy.random.Generator`, `RandomState` or
/// `BitGenerator`, or a `torch.Generator`; TypeError for anything else.
#[pyfunction]
#[pyo3(signature = (generator, /))]
fn reseed(py: Python<'_>, generator: &Bound<'_, PyAny>) -> PyResult<()> {
    let module = py.import("_pyspawner_reseed")?;
    module.call_method1("reseed", (generator,)).map(drop)
}

/// Runs the hooks of `before_clone`, and writes what they have left in buffers of files.
pub fn run_before_clone(py: Python<'_>) -> PyResult<()> {
    run(py, |state| &state.before_clone)?;
    match has_before_clone() {
        true => super::settle::flush(py),
        false => Ok(()),
    }
}

/// Whether code of preloaded modules runs before each clone.
pub fn has_before_clone() -> bool {
    !state().before_clone.is_empty()
}

/// Runs the hooks of `after_clone`.
pub fn run_after_clone(py: Python<'_>) -> PyResult<()> {
    run(py, |state| &state.after_clone)
}

fn run(py: Python<'_>, choose: fn(&State) -> &Vec<Py<PyAny>>) -> PyResult<()> {
    let hooks: Vec<Py<PyAny>> = choose(&state()).iter().map(|h| h.clone_ref(py)).collect();
    hooks.iter().try_for_each(|hook| hook.call0(py).map(drop))
}

/// Makes the job known to `job_id` and `deadline`.
pub fn set_job(id: String, deadline: Option<f64>, has_result_channel: bool) {
    state().job = Some(CurrentJob {
        id,
        deadline,
        has_result_channel,
    });
}

/// Takes that back.
pub fn forget_job() {
    state().job = None;
}

/// Puts the module among those that `import` finds without a file. Before initialisation.
pub fn register() {
    pyo3::append_to_inittab!(pyspawner_host);
}

/// Writes a whole record to the result channel, in as many writes as it takes.
pub fn send_result(json: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::fd::FromRawFd;
    let length = u32::try_from(json.len())
        .map_err(|_| std::io::Error::other("the result is larger than 4 GiB"))?;
    let _no_progress_between = state();
    // SAFETY: the number is this process's result channel by convention; whatever the job
    // put there instead is the job's own, and is not closed here.
    let mut channel = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(RESULT_FD) });
    channel.write_all(&record::header(record::RESULT, length))?;
    channel.write_all(json)
}
