//! Which of the folders and files that the host imports from are shown to jobs where they lie hidden.
//!
//! Runs on: the main thread.
//!
//! The interpreter, `path` and the entries of `sys.path` are shown as a matter of course. Editable
//! installs import from further places, mostly in homes, and exactly these are shown too; but nobody has
//! named them to pyspawner, so nothing that is hidden for another reason is, and no home as a whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::config::{HostSettings, Profile};
use crate::interpreter::warm::ImportRoot;
use crate::layer::Layer;
use crate::sandbox::root;

/// The paths that are to be shown besides those that children `need`.
///
/// # Errors
/// If one of them is a home: it holds all kinds of things besides modules.
pub(crate) fn to_show(
    roots: &[ImportRoot],
    needed: &[PathBuf],
    settings: &HostSettings,
) -> anyhow::Result<Vec<PathBuf>> {
    let profile = &settings.profile;
    if !profile.shows_host_tree() || !profile.layers().has(Layer::Root) {
        return Ok(Vec::new());
    }
    let real = |paths: &[PathBuf]| paths.iter().flat_map(fs::canonicalize).collect::<Vec<_>>();
    let of_environment = std::env::var_os("PYTHONPATH").unwrap_or_default();
    let of_environment: Vec<_> = std::env::split_paths(&of_environment).collect();
    let named = real(&[&settings.path[..], &of_environment].concat());
    let homes = real(&settings.homes);
    let is_shown = [needed.to_vec(), real(needed)].concat();
    let hidden = root::by_all_names(profile);
    let mut shown = Vec::new();
    for root in roots {
        let Ok(path) = fs::canonicalize(&root.path) else {
            continue;
        };
        ensure!(
            !homes.contains(&path) || named.contains(&path),
            "{} would show jobs the whole of {}, which is a home; hint: move what is to be imported \
             into a folder of its own, or name that home with --path if jobs may see all of it",
            root.of,
            path.display()
        );
        let around = hidden_around(&path, &hidden, &is_shown);
        let is_home = |hidden: &Path| {
            homes
                .iter()
                .chain(&settings.homes)
                .any(|home| home == hidden)
        };
        if let Some(hidden) = around.iter().find(|hidden| !is_home(hidden)) {
            log::warn!(
                "jobs cannot import {} from {}, since {} is hidden from them",
                root.of,
                path.display(),
                hidden.display()
            );
            continue;
        }
        let is_known = |path: &Path| {
            is_shown.iter().any(|shown| path.starts_with(shown))
                && hidden_around(path, &hidden, &is_shown).is_empty()
        };
        if !(is_known(&path) && is_known(&root.path) || is_jobs(profile, &path)) {
            shown.push(root.path.clone());
        }
    }
    Ok(shown)
}

/// The hidden folders that a path lies in, with nothing between them that is shown and has it.
fn hidden_around<'a>(path: &Path, hidden: &'a [PathBuf], shown: &[PathBuf]) -> Vec<&'a Path> {
    let hides = |hidden: &Path| {
        let mut inner = shown.iter().filter(|shown| shown.starts_with(hidden));
        path.starts_with(hidden) && !inner.any(|shown| path.starts_with(shown))
    };
    let hidden = hidden.iter().map(PathBuf::as_path);
    hidden.filter(|hidden| hides(hidden)).collect()
}

/// Whether it lies where jobs can write, and a bind shows it.
fn is_jobs(profile: &Profile, path: &Path) -> bool {
    let mut binds = profile.binds.iter();
    binds.any(|bind| bind.writable && path.starts_with(&bind.source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_within_something_hidden_is_not_hidden_by_it() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let hidden = paths(&["/home", "/home/me", "/home/me/.ssh"]);
        let around = |path: &str, shown: &[&str]| {
            let around = hidden_around(Path::new(path), &hidden, &paths(shown));
            let around = around.iter().map(|path| path.to_str().expect("ASCII"));
            around.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(around("/srv/x", &["/"]), [""; 0]);
        assert_eq!(around("/home/me/x", &[]), ["/home", "/home/me"]);
        assert_eq!(around("/home/me/x", &["/"]), ["/home", "/home/me"]);
        assert_eq!(around("/home/me/x/y", &["/home/me/x"]), [""; 0]);
        assert_eq!(around("/home/me/.ssh/x", &["/home/me"]), ["/home/me/.ssh"]);
    }
}
