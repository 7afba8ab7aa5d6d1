//! Has a preloaded module that crashes the host leave its stack on standard error.
//!
//! Runs on: the main thread.

use nix::errno::Errno;
use pyo3::prelude::*;

use crate::sys::process::Disposition;

/// What `faulthandler` handles (its documentation, `enable`).
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGILL,
];

/// Python's `faulthandler`, enabled for the time of the imports. Jobs do not inherit it, unless a module wants it itself.
pub(crate) struct CrashStacks {
    /// What the signals do with it; `None` if it was enabled already.
    dispositions: Option<Vec<Disposition>>,
}

impl CrashStacks {
    /// # Errors
    /// Of `faulthandler`, and of `sigaction(2)`.
    pub(crate) fn start(py: Python<'_>) -> PyResult<Self> {
        let was_enabled: bool = module(py)?.call_method0("start")?.extract()?;
        let dispositions = match was_enabled {
            true => None,
            false => Some(dispositions()?),
        };
        Ok(Self { dispositions })
    }

    /// Puts everything back, but for what a module has arranged meanwhile.
    ///
    /// # Errors
    /// As of [`CrashStacks::start`].
    pub(crate) fn end(self, py: Python<'_>) -> PyResult<()> {
        let wanted: bool = module(py)?.call_method0("is_wanted")?.extract()?;
        let Some(at_first) = self.dispositions.filter(|_| !wanted) else {
            return Ok(());
        };
        let now = dispositions()?;
        module(py)?.call_method0("end")?;
        for ((signal, at_first), now) in SIGNALS.into_iter().zip(at_first).zip(now) {
            // A virtual machine's or a compiler's own handler, which `faulthandler` has just replaced.
            if now != at_first {
                now.set(signal).map_err(error)?;
            }
        }
        Ok(())
    }
}

fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("_pyspawner_crash_stacks")
}

fn dispositions() -> PyResult<Vec<Disposition>> {
    let all = SIGNALS.into_iter().map(Disposition::of);
    all.collect::<Result<_, _>>().map_err(error)
}

fn error(errno: Errno) -> PyErr {
    std::io::Error::from(errno).into()
}
