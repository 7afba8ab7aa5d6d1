//! The mount calls that this layer is made of, with errors that name it.
//!
//! Runs on: the main thread, a child.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::layer::{Layer, SetupError};

pub(super) fn error(step: String, errno: Errno) -> SetupError {
    SetupError::new(Layer::Root, step, errno)
}

/// The error of a step that makes a `/proc` for children.
pub(super) fn proc_error(step: &str, errno: Errno) -> SetupError {
    error(step.to_owned(), errno).hinting_if(
        Errno::EPERM,
        "this container hides parts of its own /proc, so the kernel refuses a new one (in Docker: \
         --security-opt systempaths=unconfined); or set proc = \"none\"",
    )
}

/// What a check of this layer has found.
pub(super) fn check_failed(what: impl Into<String>) -> SetupError {
    SetupError::found(Layer::Root, what)
}

pub(super) fn io_error(step: String, source: &std::io::Error) -> SetupError {
    SetupError::from_io(Layer::Root, step, source)
}

pub(super) fn mount_tmpfs(path: &Path, options: &str) -> Result<(), SetupError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
        .map_err(|e| error(format!("mount tmpfs on {} ({options})", path.display()), e))
}

pub(super) fn make_read_only(path: &Path) -> Result<(), SetupError> {
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .map_err(|e| error(format!("remount {} read-only", path.display()), e))
}

/// Detaches what was mounted last at `path`. `false` if that is not to be had: mounts that come from
/// a more privileged namespace are locked (`mount_namespaces(7)`), and the kernel calls that EINVAL.
/// What a host without privilege cannot reach, its children cannot either.
pub(super) fn detach_top(path: &Path) -> Result<bool, SetupError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(e) => Err(error(format!("detach {}", path.display()), e)),
    }
}

/// Detaches everything that is mounted at `path`, one above the other. `false` if something is
/// left: mounts that come from a more privileged namespace are locked
/// (`mount_namespaces(7)`), and the kernel calls that EINVAL, as for a path that is no mount.
pub(super) fn detach_all(path: &Path) -> Result<bool, SetupError> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(true),
            Err(Errno::EINVAL) => return Ok(!is_mount(path)),
            Err(e) => return Err(error(format!("detach {}", path.display()), e)),
        }
    }
}

fn is_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()));
    match (device(path), path.parent().map(device)) {
        (Ok(here), Some(Ok(above))) => here.0 != above.0,
        _ => false,
    }
}

/// An empty file or folder, with the folders above it, for something to be mounted on.
pub(super) fn create_mount_point(path: &Path, is_folder: bool) -> Result<(), SetupError> {
    let created = if is_folder {
        fs::create_dir_all(path)
    } else {
        fs::create_dir_all(path.parent().expect("a file is in a folder"))
            .and_then(|()| fs::write(path, ""))
    };
    created.map_err(|e| {
        io_error(format!("create {}", path.display()), &e).hinting_if(
            Errno::EROFS,
            "a bind's target must exist in the host's tree, be below /tmp, or be in an empty root (root = { empty = true })",
        )
    })
}

/// A link, with the folders above it. A name that is there already, in a folder that is shown, is the
/// link itself, or as good as it.
pub(super) fn create_link(path: &Path, target: &Path) -> Result<(), SetupError> {
    let created = fs::create_dir_all(path.parent().expect("a link is in a folder"))
        .and_then(|()| symlink(target, path));
    match created {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(io_error(format!("symlink {}", path.display()), &e))
        }
        _ => Ok(()),
    }
}
