//! The module `pyspawner_host`, which preloaded modules and children can import.
//!
//! Runs on: the main thread, a child.
//!
//! Typed, with stand-ins for use outside a host, in `python-stubs/`; a test holds the two
//! against each other.

use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::sys::files::write_once;
use crate::wire::{record, result_channel};

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
    let (Some(_), Some(channel)) = (&state.job, result_channel::number()) else {
        return Ok(());
    };
    let text = &text[..text.floor_char_boundary(1000)];
    let json = serde_json::json!({ "fraction": fraction, "text": text }).to_string();
    // Written at once while `state` is locked, and below PIPE_BUF: no record is torn.
    let mut frame = [0; 4096];
    let length = record::frame_into(&mut frame, record::PROGRESS, json.as_bytes());
    write_once(channel, &frame[..length]);
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
pub(crate) fn run_before_clone(py: Python<'_>) -> PyResult<()> {
    run(py, |state| &state.before_clone)?;
    match has_before_clone() {
        true => super::settle::flush(py),
        false => Ok(()),
    }
}

/// Whether code of preloaded modules runs before each clone.
pub(crate) fn has_before_clone() -> bool {
    !state().before_clone.is_empty()
}

/// Whether preloaded modules, other than the standard library's, have Python call something in the host at each fork.
pub(crate) fn has_fork_handlers(py: Python<'_>) -> PyResult<bool> {
    py.import("_pyspawner_fork_handlers")?
        .call_method0("are_registered")?
        .extract()
}

/// Runs the hooks of `after_clone`.
pub(crate) fn run_after_clone(py: Python<'_>) -> PyResult<()> {
    run(py, |state| &state.after_clone)
}

fn run(py: Python<'_>, choose: fn(&State) -> &Vec<Py<PyAny>>) -> PyResult<()> {
    let hooks: Vec<Py<PyAny>> = choose(&state()).iter().map(|h| h.clone_ref(py)).collect();
    hooks.iter().try_for_each(|hook| hook.call0(py).map(drop))
}

/// Makes the job known to `job_id` and `deadline`.
pub(crate) fn set_job(id: String, deadline: Option<f64>) {
    state().job = Some(CurrentJob { id, deadline });
}

/// Takes that back.
pub(crate) fn forget_job() {
    state().job = None;
}

/// Puts the module among those that `import` finds without a file. Before initialisation.
pub(crate) fn register() {
    pyo3::append_to_inittab!(pyspawner_host);
}

/// Writes whole records to the result channel, in as many writes as it takes: the result with a note on
/// it, or that there is none, with the note as the reason.
pub(crate) fn send_result(json: Option<&[u8]>, note: Option<&[u8]>) -> std::io::Result<()> {
    let _no_progress_between = state();
    let channel = result_channel::number().ok_or(std::io::ErrorKind::NotConnected)?;
    if !leads_to_a_pipe(channel) {
        // What the job has put there would swallow the result, and nobody would notice.
        return Err(std::io::Error::other(format!(
            "the result is lost: child_main has closed or replaced descriptor {channel}, which leads to the host"
        )));
    }
    // SAFETY: the number is this process's result channel by convention; whatever the job
    // put there instead is the job's own, and is not closed here.
    let channel = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(channel) });
    match (json, note) {
        (Some(json), note) => {
            note.map_or(Ok(()), |note| write_record(&channel, record::NOTE, note))?;
            write_record(&channel, record::RESULT, json)
        }
        (None, reason) => write_record(&channel, record::NO_FORM, reason.unwrap_or_default()),
    }
}

fn leads_to_a_pipe(number: RawFd) -> bool {
    // SAFETY: the descriptor is only asked about, and the kernel says if there is none.
    let stat = nix::sys::stat::fstat(unsafe { BorrowedFd::borrow_raw(number) });
    stat.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

fn write_record(mut channel: &std::fs::File, tag: u8, payload: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(payload.len())
        .map_err(|_| std::io::Error::other("the result is larger than 4 GiB"))?;
    channel.write_all(&record::header(tag, length))?;
    channel.write_all(payload)
}
