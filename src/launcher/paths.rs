//! Paths as they are written by users, made such that they mean the same in children.
//!
//! Runs on: the launcher.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};

use crate::config::Profile;

/// What Python takes for an archive of modules (`zipimport`), by the endings that such files have.
const ARCHIVES: &[&str] = &["zip", "whl", "egg", "pyz"];

/// The absolute path without `..`: a folder before that need not be there in a child. What follows the
/// last of them keeps its name, since programs may ask for it, and a link may lead elsewhere later.
///
/// # Errors
/// If what comes before it does not exist.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let parts: Vec<Component> = path.components().collect();
    let Some(last) = parts.iter().rposition(|part| *part == Component::ParentDir) else {
        return Ok(path);
    };
    let above: PathBuf = parts[..=last].iter().collect();
    let above = above.canonicalize()?;
    Ok(above.join(parts[last + 1..].iter().collect::<PathBuf>()))
}

/// The same for an entry of `sys.path` that the user names.
///
/// # Errors
/// If modules cannot be imported from there, nor children see anything else by its name.
pub(super) fn import_path(path: &Path, profile: &Profile) -> anyhow::Result<PathBuf> {
    let name = || format!("path: {}", path.display());
    let absolute = absolute(path).with_context(name)?;
    let is_binds = |path: &Path| {
        let mut binds = profile.binds.iter();
        binds.any(|bind| path.starts_with(bind.target()))
    };
    if !profile.shows_host_tree() || is_binds(&absolute) {
        return Ok(absolute); // it may be there in children alone
    }
    let found = std::fs::metadata(&absolute).with_context(name)?;
    let is_archive = || {
        let ending = absolute.extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| ARCHIVES.contains(&ending))
    };
    ensure!(
        found.is_dir() || found.is_file() && is_archive(),
        "path: {} is no folder, nor an archive ({})",
        absolute.display(),
        ARCHIVES.join(", ")
    );
    Ok(absolute)
}
