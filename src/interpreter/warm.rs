//! From nothing to a warm interpreter: initialise, import, warm up, freeze.
//!
//! Runs on: the main thread.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::call::Entry;
use super::crash_stacks::CrashStacks;
use super::random_states::RandomStates;
use super::{
    describe, held, host_module, import_guard, imports_module, internals, job_module, settle,
};
use crate::clone::warm_image;
use crate::config::{Callable, HostSettings, Profile};

/// A folder or file that modules are imported from, and on account of what.
#[derive(Clone, Debug)]
pub(crate) struct ImportRoot {
    pub path: PathBuf,
    pub of: String,
}

/// The warm interpreter, and what became of the process on the way.
pub(crate) struct Warm {
    pub entry: Entry,
    /// Fork hooks that the host may call, by module and name.
    fork_hooks: Vec<(&'static str, &'static str)>,
    /// The warm-up function, if there is one, and how long it took.
    pub warm_up: Option<(Py<PyAny>, Duration)>,
    /// Folders and files that a child's interpreter reads: prefixes, `sys.path`.
    pub needed: Vec<PathBuf>,
    /// What it imports from besides.
    pub import_roots: Vec<ImportRoot>,
    pub report: Report,
}

impl Warm {
    /// Does what children do on their way, so that what they look up in types is cached. Comes last: whatever else the
    /// host has Python do takes the places of that.
    pub(crate) fn fill_type_cache(&self, py: Python<'_>) {
        let filled = job_module(py)
            .and_then(|job| job.call_method1("fill_type_cache", (self.fork_hooks.clone(),)));
        if let Err(error) = filled {
            // Each child does it for itself then.
            log::debug!("filling the type cache: {}", describe(py, &error));
        }
    }
}

/// What was done, for the log.
pub(crate) struct Report {
    pub imports: Vec<(String, Duration)>,
    pub total: Duration,
    /// Why children start slower than they could, for want of what is known of the interpreter.
    pub slower: Vec<String>,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// Makes the interpreter warm. `tell` hears what comes next: whatever it is may end the process. Errors carry the Python traceback.
pub(crate) fn warm(settings: &HostSettings, tell: &dyn Fn(&str)) -> anyhow::Result<Warm> {
    let start = Instant::now();
    import_guard::start(&settings.profile)?;
    initialise(&settings.python)?;
    Python::attach(|py| {
        extend_path(py, &settings.path)?;
        import_guard::guard_interpreter(py)?;
        refuse_jobs_folders(py, &settings.profile)?;
        let crash_stacks = CrashStacks::start(py).context("faulthandler")?;
        let imports = import_all(py, &settings.preload, tell)?;
        tell(&format!("importing {}", settings.child_main.module));
        let child_main = resolve(py, &settings.child_main, "child_main")?;
        prepare_call(py, &child_main)?;
        let warm_up = match &settings.warm_up {
            Some(warm_up) => Some(call_warm_up(py, warm_up, tell)?),
            None => None,
        };
        tell("preparing the first clone");
        crash_stacks.end(py).context("faulthandler")?;
        // Before the type cache is filled, since it would take up some of that.
        let import_roots = import_roots(py, settings).context("after the warm-up")?;
        let random_states = RandomStates::find(py).context("after the warm-up")?;
        held::prepare(py).context("after the warm-up")?;
        settle::settle(py, &random_states).context("after the warm-up")?;
        let usable = internals::check(py, warm_image::arenas_are_used())?;
        let needed = freeze(py).context("after the warm-up")?;
        Ok(Warm {
            entry: Entry::new(py, child_main, random_states)?,
            fork_hooks: usable.fork_hooks,
            warm_up,
            needed: needed.into_iter().chain(settings.path.clone()).collect(),
            import_roots,
            report: Report {
                imports,
                total: start.elapsed(),
                slower: usable.slower,
                resident: crate::sys::memory::resident(nix::unistd::getpid().as_raw())?,
            },
        })
    })
}

/// Initialises CPython as the `python` at this path would be, for `-u -c`.
///
/// The environment variables of Python count, since the environment is exactly what was
/// configured. Signal handlers are Python's, for the sake of the children.
fn initialise(python: &Path) -> anyhow::Result<()> {
    host_module::register();
    let path = CString::new(python.as_os_str().as_bytes()).context("python")?;
    // SAFETY: the calls are those that the C API prescribes (init_config), in their order,
    // with strings that outlive them; this is the first use of the interpreter, on the main
    // thread.
    unsafe {
        let mut preconfig = std::mem::zeroed::<ffi::PyPreConfig>();
        ffi::PyPreConfig_InitPythonConfig(&raw mut preconfig);
        preconfig.parse_argv = 0;
        // PEP 538 would add LC_CTYPE to the environment, which must stay what was configured;
        // in the C locale PEP 540 makes it UTF-8 all the same.
        preconfig.coerce_c_locale = 0;
        check(ffi::Py_PreInitialize(&raw const preconfig))?;

        let mut config = std::mem::zeroed::<ffi::PyConfig>();
        ffi::PyConfig_InitPythonConfig(&raw mut config);
        config.parse_argv = 0;
        config.buffered_stdio = 0;
        for field in [&raw mut config.executable, &raw mut config.program_name] {
            check(ffi::PyConfig_SetBytesString(
                &raw mut config,
                field,
                path.as_ptr(),
            ))?;
        }
        let argv = c"-c";
        let mut argv = [argv.as_ptr().cast_mut()];
        check(ffi::PyConfig_SetBytesArgv(
            &raw mut config,
            1,
            argv.as_mut_ptr().cast(),
        ))?;
        let status = ffi::Py_InitializeFromConfig(&raw const config);
        ffi::PyConfig_Clear(&raw mut config);
        check(status)?;
        // pyo3 attaches and detaches by itself from here on.
        ffi::PyEval_SaveThread();
    }
    Ok(())
}

fn check(status: ffi::PyStatus) -> anyhow::Result<()> {
    // SAFETY: the status was returned by the interpreter; its texts are static.
    unsafe {
        if ffi::PyStatus_Exception(status) == 0 {
            return Ok(());
        }
        let text = if status.err_msg.is_null() {
            "the interpreter asked to exit".into()
        } else {
            std::ffi::CStr::from_ptr(status.err_msg).to_string_lossy()
        };
        Err(anyhow!("initialising Python: {text}"))
    }
}

/// Puts what `python -c` would, and the configured folders, in front of `sys.path`, and
/// the Python half of this project among the modules.
fn extend_path(py: Python<'_>, folders: &[PathBuf]) -> anyhow::Result<()> {
    let path = py.import("sys")?.getattr("path")?;
    for folder in folders.iter().rev() {
        path.call_method1("insert", (0, folder.as_os_str()))?;
    }
    path.call_method1("insert", (0, ""))?;
    for (name, source) in crate::interpreter::PYTHON_MODULES {
        let source = CString::new(*source).expect("source code without null bytes");
        PyModule::from_code(py, &source, c"<pyspawner>", name)?
            .setattr("__file__", "<pyspawner>")?;
    }
    settle::before_imports(py)?;
    py.import("_pyspawner_fork_handlers")?
        .call_method0("watch")?;
    Ok(())
}

/// Refuses entries of `sys.path` from which nothing would be imported: see [`import_guard`].
fn refuse_jobs_folders(py: Python<'_>, profile: &Profile) -> anyhow::Result<()> {
    let entries: Vec<PathBuf> = py.import("sys")?.getattr("path")?.extract()?;
    for entry in entries {
        let place = match entry.as_os_str().is_empty() {
            true => std::env::current_dir().context("the working directory")?,
            false => entry,
        };
        if let Some(folder) = profile.folder_of_code_of_jobs(&place) {
            anyhow::bail!(
                "sys.path: {} lies in {}, which jobs can write to: the next start would run what one leaves \
                 there; hint: start pyspawner in another folder, and keep modules apart from jobs' data",
                place.display(),
                folder.display()
            );
        }
    }
    Ok(())
}

fn import_all(
    py: Python<'_>,
    modules: &[String],
    tell: &dyn Fn(&str),
) -> anyhow::Result<Vec<(String, Duration)>> {
    let mut imports = Vec::new();
    for module in modules {
        tell(&format!("importing {module}"));
        let start = Instant::now();
        imports_module(py)?
            .call_method1("import_module", (module,))
            .map_err(|error| anyhow!("preload: {}", cannot_use(py, &error)))?;
        imports.push((module.clone(), start.elapsed()));
    }
    Ok(imports)
}

fn call_warm_up(
    py: Python<'_>,
    target: &Callable,
    tell: &dyn Fn(&str),
) -> anyhow::Result<(Py<PyAny>, Duration)> {
    tell(&format!("importing {}", target.module));
    let function = resolve(py, target, "warm_up")?;
    tell(&format!("calling {target}"));
    let start = Instant::now();
    let done = function.call0(py);
    done.map_err(|error| anyhow!("warm_up {target} failed:\n{}", describe(py, &error)))?;
    Ok((function, start.elapsed()))
}

fn resolve(py: Python<'_>, target: &Callable, role: &str) -> anyhow::Result<Py<PyAny>> {
    imports_module(py)?
        .call_method1("resolve", (&target.module, &target.name))
        .map(Bound::unbind)
        .map_err(|error| anyhow!("{role}: {}", cannot_use(py, &error)))
}

/// Imports what the function's call will need besides.
fn prepare_call(py: Python<'_>, function: &Py<PyAny>) -> anyhow::Result<()> {
    let prepared = job_module(py)?.call_method1("prepare", (function,));
    prepared.map_err(|error| anyhow!("child_main:\n{}", describe(py, &error)))?;
    Ok(())
}

/// The words of `imports.py`.
fn cannot_use(py: Python<'_>, error: &PyErr) -> String {
    let is_told = imports_module(py)
        .and_then(|module| module.getattr("CannotUse"))
        .is_ok_and(|told| error.is_instance(py, &told));
    match is_told {
        true => error.value(py).to_string(),
        false => describe(py, error),
    }
}

/// What the interpreter imports from: the entries of `sys.path`, and what `import_roots.py` finds.
fn import_roots(py: Python<'_>, settings: &HostSettings) -> PyResult<Vec<ImportRoot>> {
    let binds = settings.profile.binds.iter();
    let writable = binds.filter(|bind| bind.writable);
    let untrusted: Vec<&Path> = writable.map(|bind| bind.source.as_path()).collect();
    let code = CString::new(include_str!("import_roots.py")).expect("source without null bytes");
    const NAME: &CStr = c"_pyspawner_import_roots";
    let module = PyModule::from_code(py, &code, c"<pyspawner>", NAME)?;
    // It has done its part, and children have no use for it.
    let modules = py.import("sys")?.getattr("modules")?;
    modules.call_method1("pop", (NAME.to_str().expect("ASCII"),))?;
    let found: Vec<(PathBuf, String)> = module
        .call_method1("import_roots", (untrusted,))?
        .extract()?;
    let unbuilt: Vec<String> = module.call_method0("built_at_import")?.extract()?;
    if !unbuilt.is_empty() {
        log::warn!(
            "jobs cannot import {}, which meson-python builds at the first import: hint: --preload it",
            unbuilt.join(", ")
        );
    }
    let entries: Vec<PathBuf> = py.import("sys")?.getattr("path")?.extract()?;
    let entries = entries.into_iter().filter(|path| path.is_absolute());
    let entries = entries.map(|path| (path, "an entry of sys.path".to_owned()));
    let roots = entries.chain(found);
    Ok(roots.map(|(path, of)| ImportRoot { path, of }).collect())
}

/// Takes the collector off the pages that children share, and lists what they will read.
fn freeze(py: Python<'_>) -> PyResult<Vec<PathBuf>> {
    let gc = py.import("gc")?;
    gc.call_method0("collect")?;
    settle::look_through(py, &gc.call_method0("get_objects")?)?;
    gc.call_method0("freeze")?;

    let sys = py.import("sys")?;
    let mut needed: Vec<PathBuf> = sys.getattr("path")?.extract()?;
    for name in [
        "prefix",
        "base_prefix",
        "exec_prefix",
        "base_exec_prefix",
        "executable",
    ] {
        needed.push(sys.getattr(name)?.extract()?);
    }
    needed.retain(|path| path.is_absolute() && path.exists());
    Ok(needed)
}
