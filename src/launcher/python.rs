//! Finding the interpreter whose environment to use.
//!
//! Runs on: the launcher.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::config::Profile;

/// The interpreter that this program was built with and is linked to.
const BUILT_WITH: &str = env!("PYSPAWNER_PYTHON");
/// Its version, `MAJOR.MINOR`.
const LINKED_VERSION: &str = env!("PYSPAWNER_PYTHON_VERSION");

/// What an interpreter says of itself.
const QUESTION: &str = "\
import sys
print('%d.%d' % sys.version_info[:2])
print(sys.executable)
import importlib.machinery
print(sys.version.split()[0])
print(importlib.machinery.EXTENSION_SUFFIXES[0])
print(*sorted(sys.builtin_module_names))
print(sys.abiflags)";

/// The interpreter's own name for itself, after a look at its version. A preferred one is taken
/// only if its build is the linked one's: nobody has named it to this program.
///
/// # Errors
/// If there is none, it cannot be run, or it is of another version than the linked one, or of a build whose standard library
/// cannot work here.
pub(super) fn find(
    named: Option<PathBuf>,
    preferred: Option<PathBuf>,
    profile: &Profile,
) -> anyhow::Result<PathBuf> {
    // It is run here, as whoever has started this program.
    let ask = |path: PathBuf| {
        if let Some(folder) = profile.folder_of_code_of_jobs(&path) {
            bail!(
                "the interpreter {} lies in {}, which jobs can write to; hint: keep it apart from jobs' data",
                path.display(),
                folder.display()
            );
        }
        ask(path)
    };
    if let (None, Some(preferred)) = (&named, preferred) {
        match ask(preferred) {
            Ok(found) => match found.build.difference_from(&Build::linked(&found)) {
                None => return Ok(found.executable),
                Some(difference) => log::warn!(
                    "{} is not used, but this program's own interpreter: {difference}",
                    found.executable.display()
                ),
            },
            Err(reason) => log::debug!("another interpreter is used: {reason:#}"),
        }
    }
    let path = named
        .or_else(|| std::env::var_os("VIRTUAL_ENV").map(|venv| Path::new(&venv).join("bin/python")))
        .unwrap_or_else(|| BUILT_WITH.into());
    let found = ask(path)?;
    let linked = Build::linked(&found);
    if let Some(reason) = found.build.unusable_with(&linked) {
        bail!(
            "{} is of another build of Python {LINKED_VERSION} than this pyspawner is linked to: {reason}; hint: make the \
             environment with {BUILT_WITH} -m venv, or build pyspawner with PYO3_PYTHON={} cargo build --release",
            found.executable.display(),
            found.executable.display()
        );
    }
    if let Some(difference) = found.build.difference_from(&linked) {
        log::warn!(
            "{}: {difference}; hint: errors of its standard library come from that",
            found.executable.display()
        );
    }
    Ok(found.executable)
}

struct Found {
    executable: PathBuf,
    build: Build,
}

/// What a standard library and its extension modules rely on. They may look into the interpreter
/// itself, which each release may change, and have no file for what their own has built in.
#[derive(PartialEq, Eq)]
struct Build {
    release: String,
    /// The first of its extension modules' names, such as `.cpython-311-x86_64-linux-gnu.so`.
    suffix: Option<String>,
    /// In order of their names.
    builtin_modules: Vec<String>,
}

impl Build {
    /// That of the library which this process has loaded, as far as it must be known beside `other`.
    fn linked(other: &Found) -> Self {
        // SAFETY: a static text, there before Python is initialized (Py_GetVersion).
        let version = unsafe { CStr::from_ptr(pyo3::ffi::Py_GetVersion()) }.to_string_lossy();
        let mut builtin_modules = Vec::new();
        // SAFETY: the library's table, which ends with an entry without a name; this process has
        // not started an interpreter, so nobody changes it.
        unsafe {
            let mut entry = pyo3::ffi::PyImport_Inittab;
            while !(*entry).name.is_null() {
                let name = CStr::from_ptr((*entry).name);
                builtin_modules.push(name.to_string_lossy().into_owned());
                entry = entry.add(1);
            }
        }
        builtin_modules.sort();
        Self {
            release: version.split(' ').next().unwrap_or_default().to_owned(),
            suffix: linked_suffix(other),
            builtin_modules,
        }
    }

    /// Why its standard library cannot work with the linked library, if it cannot.
    fn unusable_with(&self, linked: &Self) -> Option<String> {
        let has = |name: &&String| !linked.builtin_modules.contains(*name);
        let missing: Vec<&str> = self
            .builtin_modules
            .iter()
            .filter(has)
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return Some(format!(
                "{} of its modules are built into its own interpreter, and not into the linked library ({}, …)",
                missing.len(),
                missing[0]
            ));
        }
        match (&self.suffix, &linked.suffix) {
            (Some(theirs), Some(ours)) if theirs != ours => Some(format!(
                "its extension modules end in {theirs}, and not in {ours}"
            )),
            _ => None,
        }
    }

    /// In words, if there is one.
    fn difference_from(&self, linked: &Self) -> Option<String> {
        if self.release != linked.release {
            let (theirs, ours) = (&self.release, &linked.release);
            return Some(format!("it is Python {theirs}, and {ours} is linked"));
        }
        if let (Some(theirs), Some(ours)) = (&self.suffix, &linked.suffix)
            && theirs != ours
        {
            return Some(format!("its modules end in {theirs}, and not in {ours}"));
        }
        (self.builtin_modules != linked.builtin_modules)
            .then(|| "it has other modules built in".to_owned())
    }
}

/// The library does not say, but the interpreter that came with it, unless that is the other one
/// itself, or not on this machine.
fn linked_suffix(other: &Found) -> Option<String> {
    let resolved = |path: &Path| path.canonicalize().ok();
    if resolved(&other.executable) == resolved(BUILT_WITH.as_ref()) {
        return other.build.suffix.clone();
    }
    ask(BUILT_WITH.into()).ok()?.build.suffix
}

fn ask(path: PathBuf) -> anyhow::Result<Found> {
    let path = if path.components().count() > 1 {
        super::paths::absolute(&path)
            .with_context(|| format!("the interpreter {}", path.display()))?
    } else {
        path // looked up on PATH
    };
    // Executed, since only it knows: a name may be a shim, a link, a venv's.
    let output = Command::new(&path)
        .args(["-I", "-S", "-c", QUESTION])
        .output()
        .with_context(|| {
            format!(
                "running the interpreter {}; hint: name one with --python",
                path.display()
            )
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let (Some(version), Some(executable)) = (lines.next(), lines.next()) else {
        bail!(
            "{} is not a Python interpreter: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    };
    if version != LINKED_VERSION {
        bail!(
            "{} is Python {version}, but this pyspawner is linked to Python {LINKED_VERSION}; \
             hint: name a {LINKED_VERSION} with --python, or build pyspawner with \
             PYO3_PYTHON={} cargo build --release",
            path.display(),
            path.display()
        );
    }
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let build = Build {
        release: next(),
        suffix: Some(next()),
        builtin_modules: next().split(' ').map(str::to_owned).collect(),
    };
    // Its library is another one than the linked, and its extension modules fit only that.
    if next().contains('t') {
        bail!(
            "{} is a free-threaded build of Python {version}, and pyspawner needs the global \
             interpreter lock: no other thread of Python may run while it clones; hint: name an \
             ordinary {LINKED_VERSION} with --python",
            path.display()
        );
    }
    Ok(Found {
        executable: executable.into(),
        build,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_told_apart() {
        let build = |release: &str, suffix: &str, modules: &[&str]| Build {
            release: release.to_owned(),
            suffix: (!suffix.is_empty()).then(|| suffix.to_owned()),
            builtin_modules: modules.iter().map(|&name| name.to_owned()).collect(),
        };
        let linked = build("3.11.7", ".cpython-311.so", &["_io", "sys"]);
        assert_eq!(linked.difference_from(&linked), None);
        for (other, words) in [
            (
                build("3.11.2", ".cpython-311.so", &["_io", "sys"]),
                "3.11.2",
            ),
            (build("3.11.7", ".cpython-311d.so", &["_io", "sys"]), "311d"),
            (
                build("3.11.7", ".cpython-311.so", &["_io", "_struct", "sys"]),
                "built in",
            ),
        ] {
            let difference = other.difference_from(&linked).expect("a difference");
            assert!(difference.contains(words), "{difference}");
        }
        // What may go wrong, and what must.
        let newer = build("3.11.9", ".cpython-311.so", &["_io"]);
        assert_eq!(newer.unusable_with(&linked), None);
        let debians = build("3.11.2", ".cpython-311.so", &["_io", "_struct", "sys"]);
        let reason = debians.unusable_with(&linked).expect("a reason");
        assert!(reason.contains("(_struct, …)"), "{reason}");
        let debug = build("3.11.7", ".cpython-311d.so", &["_io", "sys"]);
        assert!(debug.unusable_with(&linked).is_some());
        let unknown = build("3.11.7", "", &["_io", "sys"]);
        assert_eq!(linked.difference_from(&unknown), None);
    }

    #[test]
    fn the_linked_interpreter_is_the_linked_build() {
        let found = ask(BUILT_WITH.into()).expect("the interpreter that this was built with");
        assert_eq!(found.build.difference_from(&Build::linked(&found)), None);
    }
}
