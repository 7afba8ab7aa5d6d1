//! What this program relies on in CPython beyond its documented interfaces, version by version.
//!
//! Runs on: the main thread.
//!
//! `check` compares the running interpreter with its version's entry, once, after the warm-up. What
//! only makes children faster is done without, and the log says so; what a job's end cannot do
//! without is an error. A new version gets an entry here once `make test-pythons` has passed on it.

use anyhow::bail;
use pyo3::ffi;
use pyo3::prelude::*;

/// A function or variable of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    module: &'static str,
    name: &'static str,
}

const fn name(module: &'static str, name: &'static str) -> Name {
    Name { module, name }
}

/// What is relied on in one version.
pub(crate) struct Internals {
    /// 3.`minor`.
    minor: u8,
    /// The size of the arenas that small objects lie in (`Objects/obmalloc.c`, since 3.12
    /// `Include/internal/pycore_obmalloc.h`: ARENA_SIZE), for `clone::warm_image`. The interpreter
    /// gets other memory, of other sizes, through the same functions.
    arena_size: usize,
    /// Called without arguments at a job's end, as `Py_FinalizeEx` does (`Python/pylifecycle.c`).
    end_of_job: &'static [Name],
    /// The functions that modules have registered for a fork's child. The host calls them, once and
    /// without arguments, while it has no other thread; they are then as new as in a child.
    fork_hooks: &'static [Name],
    /// The threads that were made, started or not: what tells whether the hooks may be called.
    thread_registry: Name,
}

const CPYTHON_3_11: Internals = Internals {
    minor: 11,
    arena_size: 1 << 20,
    end_of_job: &[
        // Lib/threading.py. Joins the threads that are no daemons.
        name("threading", "_shutdown"),
        // Modules/atexitmodule.c. Runs the exit handlers.
        name("atexit", "_run_exitfuncs"),
    ],
    fork_hooks: &[
        // Lib/threading.py. Makes new locks, forgets other threads.
        name("threading", "_after_fork"),
        // Lib/logging/__init__.py. Makes the handlers' locks new.
        name("logging", "_after_at_fork_child_reinit_locks"),
    ],
    // Lib/threading.py: a WeakSet of Thread objects.
    thread_registry: name("threading", "_dangling"),
};

/// A version that has nothing different differs in its number.
const KNOWN: &[Internals] = &[
    CPYTHON_3_11,
    Internals {
        minor: 12,
        ..CPYTHON_3_11
    },
    // Since 3.13 `_after_fork` and `_shutdown` work on `_thread._ThreadHandle`.
    Internals {
        minor: 13,
        ..CPYTHON_3_11
    },
    Internals {
        minor: 14,
        ..CPYTHON_3_11
    },
    // 2 MiB arenas if it was built with PYMALLOC_USE_HUGEPAGES: found by their absence.
    Internals {
        minor: 15,
        ..CPYTHON_3_11
    },
];

/// The entry of the linked interpreter's version, or `None` for an unknown one.
fn linked() -> Option<&'static Internals> {
    // SAFETY: a constant of the library (`Include/pyport.h`, PY_VERSION_HEX).
    let [major, minor, ..] = (unsafe { ffi::Py_Version } as u32).to_be_bytes();
    of_version(major, minor)
}

fn of_version(major: u8, minor: u8) -> Option<&'static Internals> {
    let same = |known: &&Internals| (3, known.minor) == (major, minor);
    KNOWN.iter().find(same)
}

/// The size of the linked interpreter's arenas, if it is known.
pub(crate) fn arena_size() -> Option<usize> {
    linked().map(|known| known.arena_size)
}

/// What the host may do with this interpreter, and what it must do without.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usable {
    /// By module and name; empty if they cannot be called safely.
    pub fork_hooks: Vec<(&'static str, &'static str)>,
    /// What is slower than it could be, in words.
    pub slower: Vec<String>,
}

/// Compares the running interpreter with what is known of its version.
///
/// # Errors
/// If a job could not end as it should.
pub(crate) fn check(py: Python<'_>, arenas_are_used: bool) -> anyhow::Result<Usable> {
    check_against(py, linked(), arenas_are_used)
}

fn check_against(
    py: Python<'_>,
    known: Option<&Internals>,
    arenas_are_used: bool,
) -> anyhow::Result<Usable> {
    // What a job cannot do without may well be the same in a version that is not known.
    let last = KNOWN.last().expect("not empty");
    for function in known.unwrap_or(last).end_of_job {
        let callable = function
            .find(py)
            .map_err(|error| error.value(py).to_string());
        if let Err(reason) = callable.and_then(|function| takes_nothing(&function)) {
            bail!(
                "{}.{} of Python {}: {reason}, and jobs could not end without it (waiting for \
                 their threads, running their exit handlers); hint: a preloaded module may have \
                 replaced it; else use one of CPython 3.{} to 3.{}",
                function.module,
                function.name,
                version(py),
                KNOWN[0].minor,
                last.minor,
            );
        }
    }
    let Some(known) = known else {
        let text = "it is newer than this program, which does not rely on its insides";
        return Ok(Usable {
            slower: vec![text.to_owned()],
            ..Usable::default()
        });
    };
    let mut usable = Usable::default();
    if !arenas_are_used {
        usable.slower.push(format!(
            "it asks for no arenas of {} KiB, so its objects are not put into huge pages",
            known.arena_size >> 10
        ));
    }
    match known.hooks(py) {
        Ok(hooks) => usable.fork_hooks = hooks,
        Err(reason) => usable
            .slower
            .push(format!("its fork hooks are left to each child: {reason}")),
    }
    Ok(usable)
}

fn version(py: Python<'_>) -> String {
    let info = py.version_info();
    format!("{}.{}.{}", info.major, info.minor, info.patch)
}

impl Internals {
    /// The fork hooks of the modules that are imported, or why they are not to be called.
    fn hooks(&self, py: Python<'_>) -> Result<Vec<(&'static str, &'static str)>, String> {
        let registry = self.thread_registry;
        let is_registry = registry.find(py).is_ok_and(|set| set.try_iter().is_ok());
        if !is_registry {
            return Err(format!("there is no {}.{}", registry.module, registry.name));
        }
        let mut hooks = Vec::new();
        for hook in self.fork_hooks {
            if !hook.is_imported(py) {
                continue;
            }
            hook.is_as_known(py)
                .map_err(|reason| format!("{}.{}: {reason}", hook.module, hook.name))?;
            hooks.push((hook.module, hook.name));
        }
        Ok(hooks)
    }
}

impl Name {
    fn is_imported(&self, py: Python<'_>) -> bool {
        let modules = py.import("sys").and_then(|sys| sys.getattr("modules"));
        modules.is_ok_and(|modules| modules.contains(self.module).unwrap_or(false))
    }

    fn find<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import(self.module)?.getattr(self.name)
    }

    /// Whether it is the module's own function, and can be called without arguments. The error says
    /// what it is instead.
    fn is_as_known(&self, py: Python<'_>) -> Result<(), String> {
        let function = self.find(py).map_err(|error| error.value(py).to_string())?;
        takes_nothing(&function)?;
        let module = function.getattr("__module__").and_then(|m| m.extract());
        match module.unwrap_or_else(|_| String::new()) {
            module if module == self.module => Ok(()),
            module => Err(format!("it comes from module {module:?}")),
        }
    }
}

/// Whether it can be called without arguments, as far as that can be told. Of functions that are not
/// written in Python it cannot.
fn takes_nothing(function: &Bound<'_, PyAny>) -> Result<(), String> {
    if !function.is_callable() {
        return Err("it is no function".to_owned());
    }
    let count = |object: &Bound<'_, PyAny>, name| {
        let found = object.getattr(name).ok()?;
        found.extract::<usize>().or_else(|_| found.len()).ok()
    };
    let Ok(code) = function.getattr("__code__") else {
        return Ok(());
    };
    let taken = count(&code, "co_argcount").zip(count(&code, "co_kwonlyargcount"));
    let filled = ["__defaults__", "__kwdefaults__"].map(|name| count(function, name).unwrap_or(0));
    match taken {
        Some((plain, named)) if plain + named > filled.iter().sum() => {
            Err("it takes arguments instead of none".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order_and_without_a_gap() {
        let minors: Vec<_> = KNOWN.iter().map(|known| known.minor).collect();
        assert_eq!(minors, (11..=15).collect::<Vec<u8>>());
    }

    #[test]
    fn the_linked_version_is_known() {
        assert!(linked().is_some());
        for (major, minor) in [(3, 10), (3, 16), (4, 11)] {
            assert!(of_version(major, minor).is_none());
        }
    }

    #[test]
    fn the_linked_version_is_as_known() {
        Python::attach(|py| {
            py.import("logging").expect("logging");
            let usable = check(py, true).expect("what jobs need");
            assert_eq!(usable.slower, [""; 0]);
            assert_eq!(usable.fork_hooks.len(), 2);
        });
    }

    #[test]
    fn an_unknown_version_does_without() {
        Python::attach(|py| {
            let usable = check_against(py, None, true).expect("what jobs need");
            assert_eq!(usable.fork_hooks, []);
            assert_eq!(usable.slower.len(), 1);
        });
    }

    #[test]
    fn a_wrong_entry_is_noticed() {
        let wrong = [
            (name("threading", "_no_such"), "_no_such"),
            (name("threading", "TIMEOUT_MAX"), "no function"),
            (name("threading", "setprofile"), "takes arguments"),
        ];
        let elsewhere = (name("threading", "get_ident"), "module \"_thread\"");
        Python::attach(|py| {
            let against = |wrong: Internals| check_against(py, Some(&wrong), false);
            for (wrong, words) in wrong {
                let error = against(Internals {
                    end_of_job: vec![wrong].leak(),
                    ..CPYTHON_3_11
                });
                let error = format!("{:#}", error.expect_err(words));
                assert!(error.contains(words), "{error}");
            }
            for (wrong, words) in wrong.into_iter().chain([elsewhere]) {
                let usable = against(Internals {
                    fork_hooks: vec![wrong].leak(),
                    ..CPYTHON_3_11
                });
                let usable = usable.expect("slower, and nothing else");
                assert_eq!(usable.fork_hooks, []);
                assert!(usable.slower[0].contains("1024 KiB"), "{usable:?}");
                assert!(usable.slower[1].contains(words), "{usable:?}");
            }
            let usable = against(Internals {
                thread_registry: name("threading", "_no_such"),
                ..CPYTHON_3_11
            });
            let usable = usable.expect("slower, and nothing else");
            assert_eq!(usable.fork_hooks, []);
        });
    }

    #[test]
    fn what_can_be_called_without_arguments() {
        Python::attach(|py| {
            let eval = |text: &std::ffi::CStr| py.eval(text, None, None).expect("an expression");
            for fits in [
                c"lambda: 0",
                c"lambda *a, **k: 0",
                c"lambda a=1, *, b=2: 0",
                c"len",
            ] {
                takes_nothing(&eval(fits)).expect("as such");
            }
            for other in [c"lambda a: 0", c"lambda *, a: 0", c"lambda a, b=1: 0", c"7"] {
                takes_nothing(&eval(other)).expect_err("as such");
            }
        });
    }
}
