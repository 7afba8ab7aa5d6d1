//! Folders of which children see only chosen parts, and none that is not chosen.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::steps::{create_mount_point, error, io_error, make_read_only, mount_tmpfs};
use crate::sandbox::layer::SetupError;
use crate::sys::mounts::{attach_tree, copy_tree, set_attributes};

/// The empty file that hidden files become; `/tmp` is covered before anything is hidden.
const BLANK: &str = "/tmp/.blank";

/// The empty folders that cover others. They stay writable, for mount points to be made,
/// until [`Covers::seal`].
#[derive(Default)]
pub(super) struct Covers(Vec<PathBuf>);

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
        self.0.push(closed.to_owned());
        Ok(())
    }

    /// Takes a path out of sight: a folder becomes empty (but for what is needed of it), a file
    /// reads as empty. A path that does not exist is hidden as it is.
    pub(super) fn hide(&mut self, path: &Path, needed: &[PathBuf]) -> Result<(), SetupError> {
        // What a link leads to holds the content, under whatever name.
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io_error(format!("hide {}", path.display()), &e)),
        };
        let is_empty = || fs::read_dir(&real).is_ok_and(|mut entries| entries.next().is_none());
        if self.0.contains(&real) && is_empty() {
            return Ok(()); // under another name
        }
        if real.is_dir() {
            return self.cover(&real, needed);
        }
        fs::write(BLANK, "").map_err(|e| io_error(format!("create {BLANK}"), &e))?;
        copy_tree(Path::new(BLANK), false)
            .and_then(|blank| {
                set_attributes(&blank, libc::MOUNT_ATTR_RDONLY, 0)?;
                attach_tree(&blank, &real)
            })
            .map_err(|e| error(format!("hide {}", real.display()), e))
    }

    /// Makes the needed paths reachable for users whom the folders above them keep out.
    ///
    /// A folder that others may not pass (a home of mode 0700, say) is covered by an empty
    /// one: the needed paths in it become reachable, the rest stays as closed as it was.
    pub(super) fn open_the_way_to(&mut self, needed: &[PathBuf]) -> Result<(), SetupError> {
        while let Some(closed) = needed
            .iter()
            .find_map(|path| closed_folder_above(path, &self.0))
        {
            self.cover(&closed, needed)?;
        }
        Ok(())
    }

    /// Counts a folder that is one already among them.
    pub(super) fn adopt(&mut self, folder: &Path) {
        self.0.push(folder.to_owned());
    }

    /// Makes them read-only: nothing is to be mounted in them any more.
    pub(super) fn seal(self) -> Result<(), SetupError> {
        match fs::remove_file(BLANK) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error(format!("remove {BLANK}"), &e));
            }
            _ => {}
        }
        for folder in &self.0 {
            // One within a folder that was covered later is gone with it.
            if folder.is_dir() {
                make_read_only(folder)?;
            }
        }
        Ok(())
    }
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
