//! The way to what the host shows to children, past the links that others may have made on it.
//!
//! Runs on: the main thread, the I/O thread.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};

use super::steps::{check_failed, error, io_error};
use crate::config::is_kept_from_others;
use crate::layer::{LINKS_HINT, SetupError};

/// What is open for its place alone.
pub(super) const ANYTHING: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
pub(super) const FOLDER: OFlag = ANYTHING.union(OFlag::O_DIRECTORY);

/// The error of a step that concerns a path.
pub(super) fn failed(what: &str, path: &Path) -> impl FnOnce(Errno) -> SetupError {
    let step = format!("{what} {}", path.display());
    move |errno| error(step, errno)
}

/// Opens what a path leads to, with one of the flags above. A link on the way is followed only where nobody but root and the
/// host's user can have put it: what jobs can write to may be on the way, and this thread sees the host's tree.
///
/// Makes system calls only: the C library's `realpath(3)` would use its heap, whose locks clones inherit.
///
/// # Errors
/// With the call that failed, and the path.
pub(super) fn open_kept(path: &Path, wanted: OFlag) -> Result<OwnedFd, SetupError> {
    const MOST_LINKS: u32 = 40;
    let step = |what| failed(what, path);
    if !path.is_absolute() {
        let path = path.display();
        return Err(check_failed(format!(
            "open {path}: the path is not absolute"
        )));
    }
    let root = open("/", FOLDER, Mode::empty()).map_err(step("open / for"))?;
    let mut here = root.try_clone().map_err(|e| io_error("dup".into(), &e))?;
    let mut links = 0;
    let mut way = parts(path);
    while let Some(name) = way.pop() {
        let kind = if way.is_empty() { wanted } else { FOLDER };
        let failed = match openat(&here, &*name, kind | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(next) if !is_link(&next).map_err(step("fstat"))? => {
                here = next;
                continue;
            }
            Ok(_) => step("open")(Errno::ELOOP),
            Err(errno) => step("open")(errno).hinting_if(
                Errno::ENOENT,
                "give an existing folder by its absolute path",
            ),
        };
        let Ok(target) = readlinkat(&here, &*name) else {
            return Err(failed); // no link
        };
        links += 1;
        if links > MOST_LINKS {
            return Err(step("open")(Errno::ELOOP));
        }
        if !is_kept(&here, &root).map_err(step("fstat on the way to"))? {
            let step = format!(
                "open {}: others may have made the link {} on the way",
                path.display(),
                Path::new(&name).display()
            );
            return Err(check_failed(step)
                .known_as(Errno::ELOOP)
                .hinting(LINKS_HINT));
        }
        if Path::new(&target).is_absolute() {
            here = root.try_clone().map_err(|e| io_error("dup".into(), &e))?;
        }
        way.extend(parts(Path::new(&target)));
    }
    Ok(here)
}

fn is_link(found: &OwnedFd) -> Result<bool, Errno> {
    Ok(fstat(found)?.st_mode & libc::S_IFMT == libc::S_IFLNK)
}

/// The names on a path, the first of them last.
fn parts(path: &Path) -> Vec<OsString> {
    let names = path
        .components()
        .rev()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}

/// Whether only root and the host's user make links in a folder.
fn is_kept(folder: &OwnedFd, root: &OwnedFd) -> Result<bool, Errno> {
    let (found, root) = (fstat(folder)?, fstat(root)?);
    Ok(is_kept_from_others(
        found.st_uid,
        found.st_mode,
        root.st_uid,
    ))
}
