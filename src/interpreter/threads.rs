//! Threads of preloaded modules, in words for the operator. `threads.py` is its Python half.

use pyo3::prelude::*;

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

/// A thread by its Python name and module, else by its own name and library.
pub fn name(py: Python<'_>, thread: &ForeignThread) -> String {
    match (ask(py, thread.tid), &thread.library) {
        (Some(known), _) => format!("thread {:?} of module {}", known.name, known.module),
        (None, Some(library)) => format!("thread {:?} of {library}", thread.name),
        (None, None) => format!("thread {:?}", thread.name),
    }
}

/// A thread's name, module and stack, as the end of a message; `None` if Python did not start it.
pub fn stack(py: Python<'_>, tid: libc::pid_t) -> Option<String> {
    let known = ask(py, tid)?;
    Some(format!(
        "\nIt is Python's thread {:?}, of module {}:\n{}",
        known.name,
        known.module,
        known.stack.trim_end()
    ))
}
