//! The call of `child_main` in a child.
//!
//! Runs on: the main thread, a child.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use super::random_states::RandomStates;
use super::{describe, host_module, job_module, settle};
use crate::wire::payload::{Call, ClientForm};
use crate::wire::result_channel;

/// The functions that a child needs, resolved in the host.
pub(crate) struct Entry {
    pub child_main: Py<PyAny>,
    random_states: RandomStates,
    renew: Py<PyAny>,
    /// Other threads may have undone in the host what [`settle::settle`] did.
    may_be_unsettled: bool,
    decode: Py<PyAny>,
    unpickle: Py<PyAny>,
    parse: Py<PyAny>,
    call: Py<PyAny>,
    rehearse: Py<PyAny>,
    check_clone: Py<PyAny>,
    /// The host's state of `random` when this was made.
    random_state: Py<PyAny>,
}

/// The pickle of an empty list, `pickle.dumps([], protocol=4)`.
const NO_ARGUMENTS: &[u8] = b"\x80\x04]\x94.";

/// A job, ready to be called. Its arguments are a function that returns them, since to unpickle
/// them is to run code.
pub(crate) struct PreparedJob {
    arguments: Py<PyAny>,
}

impl Entry {
    pub(crate) fn new(
        py: Python<'_>,
        child_main: Py<PyAny>,
        random_states: RandomStates,
    ) -> PyResult<Self> {
        let job = job_module(py)?;
        Ok(Self {
            child_main,
            random_states,
            renew: py
                .import("_pyspawner_randomness")?
                .getattr("renew")?
                .unbind(),
            may_be_unsettled: settle::may_be_unsettled(py)?,
            decode: job.getattr("decode")?.unbind(),
            unpickle: job.getattr("unpickle")?.unbind(),
            parse: job.getattr("parse")?.unbind(),
            call: job.getattr("call")?.unbind(),
            rehearse: job.getattr("rehearse")?.unbind(),
            check_clone: job.getattr("check_clone")?.unbind(),
            random_state: job.call_method0("random_state")?.unbind(),
        })
    }

    /// Whether CPython's hooks have done what a clone is made with. Comes first in a child.
    pub(crate) fn check_clone(&self, py: Python<'_>) -> Result<(), String> {
        let arguments = (&self.random_state, nix::unistd::gettid().as_raw());
        let checked = self.check_clone.call1(py, arguments);
        checked
            .map(drop)
            .map_err(|error| format!("Python's fork hooks: {}", error.value(py)))
    }

    /// Makes the interpreter's state the child's own: randomness, then the operator's hooks.
    /// The error is the hook's traceback.
    pub(crate) fn become_own(&self, py: Python<'_>) -> Result<(), String> {
        self.random_states
            .renew()
            .map_err(|errno| format!("getrandom: {errno}"))?;
        self.settle_again(py)
            .and_then(|()| self.renew.call0(py))
            .and_then(|_| host_module::run_after_clone(py))
            .map_err(|error| describe(py, &error))
    }

    /// Does once more what was done after the warm-up, if code has run in the host since.
    fn settle_again(&self, py: Python<'_>) -> PyResult<()> {
        if self.may_be_unsettled || host_module::has_before_clone() {
            settle::settle(py, &self.random_states)?;
        }
        Ok(())
    }

    /// Decodes a job's payload as far as that runs no code of the job's, and makes the job known to
    /// `pyspawner_host`. The error says what is wrong with the payload.
    pub(crate) fn prepare(
        &self,
        py: Python<'_>,
        call: Call,
        payload: &[u8],
    ) -> Result<PreparedJob, String> {
        let payload = PyBytes::new(py, payload);
        let prepared = match call {
            Call::Json => self.decode.call1(py, (payload,)),
            Call::Client { form, id, deadline } => {
                let read = match form {
                    ClientForm::Pickle => &self.unpickle,
                    ClientForm::Json => &self.parse,
                };
                read.call1(py, (payload, id, deadline))
            }
        }
        .map_err(|error| error.value(py).to_string())?;
        let (id, deadline, arguments) = prepared
            .extract::<(String, Option<f64>, Py<PyAny>)>(py)
            .map_err(|error| error.to_string())?;
        host_module::set_job(id, deadline);
        Ok(PreparedJob { arguments })
    }

    /// Prepares and calls a job that does nothing, as far as the call of `child_main`.
    pub(crate) fn rehearse(&self, py: Python<'_>) -> Result<(), String> {
        let call = Call::Client {
            form: ClientForm::Pickle,
            id: String::new(),
            deadline: None,
        };
        let job = self.prepare(py, call, NO_ARGUMENTS)?;
        let rehearsed = self.rehearse.call1(py, (&job.arguments,));
        host_module::forget_job();
        rehearsed.map(drop).map_err(|error| describe(py, &error))
    }

    /// Calls `child_main(*args, **kwargs)` and ends as an interpreter ends. Returns the exit
    /// status.
    pub(crate) fn call(&self, py: Python<'_>, job: &PreparedJob) -> i32 {
        let status = result_sender(py).and_then(|sender| {
            let arguments = (&self.child_main, &job.arguments, sender);
            self.call.call1(py, arguments)?.extract(py)
        });
        status.unwrap_or_else(|error: PyErr| {
            error.print(py);
            1
        })
    }
}

/// The Python function that writes what `results.encode` returned to the result channel, or `None` if nobody asks for
/// a result.
fn result_sender(py: Python<'_>) -> PyResult<Py<PyAny>> {
    if result_channel::number().is_none() {
        return Ok(py.None());
    }
    Ok(wrap_pyfunction!(send_result, py)?.into_any().unbind())
}

#[pyfunction]
fn send_result(
    py: Python<'_>,
    json: Option<PyBackedBytes>,
    note: Option<PyBackedBytes>,
) -> PyResult<()> {
    // A reader that is slow must not stop this process's other threads.
    py.detach(|| host_module::send_result(json.as_deref(), note.as_deref()))?;
    Ok(())
}
