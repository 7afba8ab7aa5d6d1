//! What children must not see: folders of which they see only chosen parts, and hidden paths.
//!
//! A mount hides a file, not a name. A host that saves a file by renaming another over it shows
//! it again, and so does one that makes a hidden path only later; so [`Covers::renew`] looks at
//! every hidden name before each clone.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::steps::{create_mount_point, detach_top, error, io_error, make_read_only, mount_tmpfs};
use crate::sandbox::layer::SetupError;
use crate::sys::mounts::{attach_tree, copy_tree, set_attributes};

/// The empty folders and files that cover others.
#[derive(Default)]
pub struct Covers {
    /// They stay writable, for mount points to be made, until [`Covers::seal`].
    folders: Vec<PathBuf>,
    /// The names that must stay out of sight, whatever is found there.
    hidden: Vec<PathBuf>,
    /// The file systems that the covers are made of (`st_dev`).
    devices: HashSet<u64>,
}

impl Covers {
    /// Covers a folder by an empty one, in which only the needed paths are bound again.
    pub(super) fn cover(&mut self, closed: &Path, needed: &[PathBuf]) -> Result<(), SetupError> {
        // Both the name that is used and what it leads to are wanted; the latter is bound.
        let mut real: Vec<PathBuf> = Vec::new();
        let mut links: Vec<(&Path, PathBuf)> = Vec::new();
        for path in needed {
            let Ok(target) = fs::canonicalize(path) else {
                continue;
            };
            if target != *path && path.starts_with(closed) {
                links.push((path, target.clone()));
            }
            if target.starts_with(closed) && target != closed {
                real.push(target);
            }
        }
        // One bind shows all below it.
        real.sort();
        real.dedup_by(|path, above| path.starts_with(above));
        let mut trees = Vec::new();
        for path in real {
            let tree = copy_tree(&path, true)
                .map_err(|e| error(format!("open_tree {}", path.display()), e))?;
            trees.push((path.is_dir(), path, tree));
        }

        mount_tmpfs(closed, "mode=755,size=1m")?;
        self.devices.insert(device_of(closed)?);
        for (is_folder, path, tree) in &trees {
            create_mount_point(path, *is_folder)?;
            attach_tree(tree, path)
                .map_err(|e| error(format!("move_mount {}", path.display()), e))?;
        }
        for (path, target) in links {
            if fs::symlink_metadata(path).is_err() {
                let folder = path.parent().expect("a path below a folder");
                fs::create_dir_all(folder)
                    .and_then(|()| symlink(&target, path))
                    .map_err(|e| io_error(format!("symlink {}", path.display()), &e))?;
            }
        }
        self.folders.push(closed.to_owned());
        Ok(())
    }

    /// Takes a path out of sight: a folder becomes empty (but for what is needed of it), a file
    /// reads as empty. A path that does not exist is hidden once it does.
    pub(super) fn hide(&mut self, path: &Path, needed: &[PathBuf]) -> Result<(), SetupError> {
        let real = existing(path)?;
        if let Some(real) = &real
            && needed
                .iter()
                .any(|n| fs::canonicalize(n).ok().as_ref() == Some(real))
        {
            log::warn!(
                "children need {}, so nothing of it is hidden",
                path.display()
            );
            return Ok(());
        }
        self.hidden.push(path.to_owned());
        match real {
            Some(real) if !self.folders.contains(&real) => self.cover_any(&real, needed),
            _ => Ok(()),
        }
    }

    /// Covers a folder or a file. What a link leads to holds the content, under whatever name.
    fn cover_any(&mut self, real: &Path, needed: &[PathBuf]) -> Result<(), SetupError> {
        if real.is_dir() {
            return self.cover(real, needed);
        }
        let folder = real.parent().expect("a file is in a folder");
        // What is mounted on the root itself is not reached by any path.
        let place = if folder == Path::new("/") {
            Path::new("/dev")
        } else {
            folder
        };
        let blank = blank_file(place)?;
        attach_tree(&blank, real).map_err(|e| error(format!("hide {}", real.display()), e))?;
        self.devices.insert(device_of(real)?);
        Ok(())
    }

    /// Makes the needed paths reachable for users whom the folders above them keep out.
    ///
    /// A folder that others may not pass (a home of mode 0700, say) is covered by an empty
    /// one: the needed paths in it become reachable, the rest stays as closed as it was.
    pub(super) fn open_the_way_to(&mut self, needed: &[PathBuf]) -> Result<(), SetupError> {
        while let Some(closed) = needed
            .iter()
            .find_map(|path| closed_folder_above(path, &self.folders))
        {
            self.cover(&closed, needed)?;
        }
        Ok(())
    }

    /// Counts a folder that is one already among them.
    pub(super) fn adopt(&mut self, folder: &Path) -> Result<(), SetupError> {
        self.devices.insert(device_of(folder)?);
        self.folders.push(folder.to_owned());
        Ok(())
    }

    /// Forgets the hidden names that now lead into `shown`: what is there is meant to be seen.
    pub(super) fn reveal(&mut self, shown: &Path) {
        self.hidden.retain(|path| !path.starts_with(shown));
    }

    /// Makes them read-only: nothing is to be mounted in them any more.
    pub(super) fn seal(&mut self) -> Result<(), SetupError> {
        for folder in &self.folders {
            // One within a folder that was covered later is gone with it.
            if folder.is_dir() {
                make_read_only(folder)?;
            }
        }
        // Below a cover nothing can come to be any more.
        let devices = &self.devices;
        self.hidden.retain(|path| {
            let above = path.ancestors().skip(1).find_map(|a| fs::metadata(a).ok());
            above.is_none_or(|above| !devices.contains(&above.dev()))
        });
        Ok(())
    }

    /// Hides again what the host has shown since, by replacing or making it.
    pub(super) fn renew(&mut self) -> Result<(), SetupError> {
        for path in self.hidden.clone() {
            if self.is_out_of_sight(&path)? {
                continue;
            }
            if let Some(real) = existing(&path)? {
                log::info!(
                    "hiding {} again, which was replaced or made",
                    path.display()
                );
                self.cover_any(&real, &[])?;
                if real.is_dir() {
                    make_read_only(&real)?;
                }
            }
        }
        Ok(())
    }

    fn is_out_of_sight(&self, path: &Path) -> Result<bool, SetupError> {
        match fs::metadata(path) {
            Ok(found) => Ok(self.devices.contains(&found.dev())),
            Err(e) if is_absence(&e) => Ok(true),
            Err(e) => Err(io_error(format!("stat {}", path.display()), &e)),
        }
    }
}

/// What a path leads to, if anything.
fn existing(path: &Path) -> Result<Option<PathBuf>, SetupError> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(Some(real)),
        Err(e) if is_absence(&e) => Ok(None),
        Err(e) => Err(io_error(format!("hide {}", path.display()), &e)),
    }
}

/// Whether nothing can be reached by that name. A host without privilege may be kept out
/// itself, and then its children, who are the same user or less, are too.
fn is_absence(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
    )
}

/// A detached mount of an empty file that cannot be written.
fn blank_file(place: &Path) -> Result<OwnedFd, SetupError> {
    small_file(place, b"")
}

/// A detached mount of a file that cannot be written. For a moment a file system is
/// mounted on `place`, which is a folder, since mounts can only be copied from where they are.
pub(super) fn small_file(place: &Path, content: &[u8]) -> Result<OwnedFd, SetupError> {
    mount_tmpfs(place, "mode=755,size=64k")?;
    let path = place.join("blank");
    let tree = fs::write(&path, content)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o444)))
        .map_err(|e| io_error(format!("create {}", path.display()), &e))
        .and_then(|()| {
            let tree = copy_tree(&path, false)
                .map_err(|e| error(format!("open_tree {}", path.display()), e))?;
            set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, 0)
                .map_err(|e| error(format!("mount_setattr {}", path.display()), e))?;
            Ok(tree)
        });
    detach_top(place)?;
    tree
}

fn device_of(path: &Path) -> Result<u64, SetupError> {
    fs::metadata(path)
        .map(|found| found.dev())
        .map_err(|e| io_error(format!("stat {}", path.display()), &e))
}

/// The uppermost folder above `path` that others may not pass, in the root as it is now.
pub(super) fn closed_folder_above(path: &Path, open: &[PathBuf]) -> Option<PathBuf> {
    const OTHERS_MAY_PASS: u32 = 0o001;
    let real = fs::canonicalize(path).ok()?;
    let above: Vec<&Path> = real.ancestors().skip(1).collect();
    for folder in above.into_iter().rev() {
        let mode = fs::metadata(folder).ok()?.mode();
        if mode & OTHERS_MAY_PASS == 0 && !open.iter().any(|path| path == folder) {
            return Some(folder.to_owned());
        }
    }
    None
}
