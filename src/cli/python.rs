//! Finding the interpreter whose environment to use.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The interpreter that this program was built with and is linked to.
const BUILT_WITH: &str = env!("PYSPAWNER_PYTHON");
/// Its version, `MAJOR.MINOR`.
const LINKED_VERSION: &str = env!("PYSPAWNER_PYTHON_VERSION");

/// The interpreter's own name for itself, after a look at its version.
///
/// # Errors
/// If there is none, it cannot be run, or it is of another version than the linked one.
pub fn find(named: Option<PathBuf>, preferred: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let (None, Some(preferred)) = (&named, preferred) {
        match ask(preferred) {
            Ok(found) => return Ok(found),
            Err(reason) => log::debug!("another interpreter is used: {reason:#}"),
        }
    }
    let path = named
        .or_else(|| std::env::var_os("VIRTUAL_ENV").map(|venv| Path::new(&venv).join("bin/python")))
        .unwrap_or_else(|| BUILT_WITH.into());
    ask(path)
}

fn ask(path: PathBuf) -> anyhow::Result<PathBuf> {
    let path = if path.components().count() > 1 {
        std::path::absolute(&path)?
    } else {
        path // looked up on PATH
    };
    // Executed, since only it knows: a name may be a shim, a link, a venv's.
    let output = Command::new(&path)
        .args(["-I", "-S", "-c"])
        .arg("import sys; print('%d.%d' % sys.version_info[:2]); print(sys.executable)")
        .output()
        .with_context(|| {
            format!(
                "running the interpreter {}; hint: name one with --python",
                path.display()
            )
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (Some(version), Some(executable)) = (text.lines().next(), text.lines().nth(1)) else {
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
    Ok(executable.into())
}
