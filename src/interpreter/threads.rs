//! Threads of preloaded modules, in words for the operator. `threads.py` is its Python half.
//!
//! Runs on: the main thread, a child.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::IntoPyDict;

use crate::clone::foreign_threads::ForeignThread;

/// What Python knows of a thread.
struct Known {
    name: String,
    module: String,
    stack: String,
}

fn ask(py: Python<'_>, tid: libc::pid_t) -> Option<Known> {
    let module = py.import("_pyspawner_threads").ok()?;
    let known = module.call_method1("describe", (tid,)).ok()?;
    let (name, module, stack) = known.extract().ok()?;
    Some(Known {
        name,
        module,
        stack,
    })
}

/// Threads by their Python name and module, those of one library together.
pub(crate) fn names(py: Python<'_>, threads: &[ForeignThread]) -> Vec<String> {
    let mut names = Vec::new();
    let mut of_libraries = BTreeMap::<&str, Vec<&str>>::new();
    for thread in threads {
        match (ask(py, thread.tid), &thread.library) {
            (Some(known), _) => names.push(format!(
                "thread {:?} of module {}",
                known.name, known.module
            )),
            (None, Some(library)) => of_libraries.entry(library).or_default().push(&thread.name),
            (None, None) => names.push(format!("thread {:?}", thread.name)),
        }
    }
    names.extend(of_libraries.into_iter().map(|(library, mut threads)| {
        let count = threads.len();
        threads.sort_unstable();
        threads.dedup();
        let named = threads.join(", ");
        match count {
            1 => format!("thread {named:?} of {library}"),
            _ => format!("{count} threads of {library} ({named})"),
        }
    }));
    names
}

/// A thread's name, module and stack, as the end of a message; `None` if Python did not start it.
pub(crate) fn stack(py: Python<'_>, tid: libc::pid_t) -> Option<String> {
    let known = ask(py, tid)?;
    Some(format!(
        "\nIt is Python's thread {:?}, of module {}:\n{}",
        known.name,
        known.module,
        known.stack.trim_end()
    ))
}

/// Has every thread's stack printed to a descriptor if this process is still there then.
///
/// # Errors
/// Of `faulthandler`.
pub(crate) fn print_stack_later(py: Python<'_>, after: Duration, to: RawFd) -> PyResult<()> {
    let options = [("file", to)].into_py_dict(py)?;
    let faulthandler = py.import("faulthandler")?;
    let arguments = (after.as_secs_f64(),);
    faulthandler
        .call_method("dump_traceback_later", arguments, Some(&options))
        .map(drop)
}
