//! The files that this program opens, or was given: what they hold is for no job to read by their names.
//!
//! Runs on: the launcher.
//!
//! Jobs' arguments, their input and their results are in them, and the configuration may hold what is not for jobs. At the
//! socket of `serve` a job could pass for a client, where it has no user of its own. A folder that jobs can write to is no place
//! for them either: a link that a job leaves there would lead the host, as root, anywhere, and a socket of a job's own would have
//! the host's clients.

use std::fs::FileType;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::paths;
use crate::config::Profile;
use crate::sys::files::{self, FileId};

/// The names that jobs must not find, of files that the user has named and of what the standard streams are redirected to.
///
/// # Errors
/// If a named file lies where jobs can write.
pub(super) fn names(named: &[(&str, &Path)], profile: &Profile) -> anyhow::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    let mut descriptors = vec![0, 1, 2];
    for (role, path) in named {
        let step = || format!("{role} {}", path.display());
        let path = paths::absolute(path).with_context(step)?;
        if let Some(number) = files::number_in_name(&path) {
            descriptors.push(number);
            continue;
        }
        if !may_hold_data(&path) {
            continue;
        }
        if let Some(folder) = profile.folder_of_jobs(&path) {
            ensure!(
                false,
                "{}: it lies in {}, which jobs can write to; hint: a link there would lead this program \
                 anywhere: choose another folder",
                step(),
                folder.display()
            );
        }
        names.push(path);
    }
    names.extend(descriptors.into_iter().filter_map(redirected_to));
    names.retain(|name| !is_bound(name, profile));
    Ok(names)
}

/// A regular file or a socket, or one that is still to be made; not a device, a pipe or a terminal.
fn may_hold_data(path: &Path) -> bool {
    let is_one = |kind: FileType| kind.is_file() || kind.is_socket();
    std::fs::metadata(path).map_or(true, |found| is_one(found.file_type()))
}

/// The name of the regular file that an open descriptor leads to, if that is its name still.
fn redirected_to(stream: RawFd) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{stream}");
    let (name, open) = (
        std::fs::read_link(&link).ok()?,
        std::fs::metadata(&link).ok()?,
    );
    let is_same = FileId::at(&name).ok()? == FileId::from(&open);
    (open.is_file() && is_same).then_some(name)
}

/// Whether the operator shows just this file to jobs.
fn is_bound(name: &Path, profile: &Profile) -> bool {
    profile.binds.iter().any(|bind| bind.source == name)
}
