//! A root for one child: the folder that a request names, as it is at that moment.
//!
//! Runs on: the I/O thread, a child.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::fstatfs;

use super::masks::EmptyMounts;
use super::mountinfo::{self, Mounts};
use super::steps::{check_failed, error};
use super::way::{FOLDER, failed, open_kept};
use super::{UNTRUSTED, copy_restricted, enter_tree, is_folder};
use crate::layer::{Layer, Layers, SetupError};
use crate::sys::mounts::{is_remote, mount_id};
use crate::wire::child_spec::Covered;

/// What is found while others mount, unmount and rename is looked at again.
const ATTEMPTS: u32 = 100;

/// A root for one child, taken by a thread that sees the host's tree.
pub(crate) struct OwnRoot {
    /// A detached copy of its mounts.
    pub tree: OwnedFd,
    /// The kernel's file systems in it: children cover them.
    pub covered: Vec<Covered>,
    /// What was copied.
    pub folder: Folder,
}

impl OwnRoot {
    /// Takes what is at `folder` now. Makes system calls only: the C library's `realpath(3)` would use
    /// its heap, whose locks clones inherit.
    ///
    /// # Errors
    /// With the call that failed, and the folder.
    pub(crate) fn take(folder: &Path) -> Result<Self, SetupError> {
        let found = open_kept(folder, FOLDER)?;
        let identity = Folder::of(&found, folder)?;
        let proc =
            open("/proc", FOLDER, Mode::empty()).map_err(|e| error("open /proc".into(), e))?;
        let mut covered = kernel_mounts_in(&found, &identity, &proc, folder)?;
        for _ in 0..ATTEMPTS {
            let tree = copy_restricted(&found, folder, UNTRUSTED)?;
            // The tree itself does not tell what is mounted in it.
            let now = kernel_mounts_in(&found, &identity, &proc, folder)?;
            if now == covered {
                return Ok(Self {
                    tree,
                    covered,
                    folder: identity,
                });
            }
            covered = now;
        }
        let step = format!(
            "copy {}, whose mounts change all the time",
            folder.display()
        );
        Err(check_failed(step))
    }
}

/// The folder behind a path. While anybody holds a copy of its mount, nothing else is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folder {
    device: u64,
    inode: u64,
    mount: u64,
    /// Whether to look at it might take for ever.
    pub is_remote: bool,
}

impl Folder {
    /// What [`OwnRoot::take`] would take now.
    ///
    /// # Errors
    /// With the call that failed, and the folder.
    pub(crate) fn find(folder: &Path) -> Result<Self, SetupError> {
        Self::of(&open_kept(folder, FOLDER)?, folder)
    }

    fn of(found: &OwnedFd, folder: &Path) -> Result<Self, SetupError> {
        let step = |what| failed(what, folder);
        let seen = fstat(found).map_err(step("fstat"))?;
        let kind = fstatfs(found).map_err(step("fstatfs"))?.filesystem_type();
        Ok(Self {
            device: seen.st_dev,
            inode: seen.st_ino,
            mount: mount_id(found).map_err(step("statx"))?,
            is_remote: is_remote(kind),
        })
    }
}

/// The kernel's file systems that a copy of `found` brings along.
fn kernel_mounts_in(
    found: &OwnedFd,
    identity: &Folder,
    proc: &OwnedFd,
    folder: &Path,
) -> Result<Vec<Covered>, SetupError> {
    let step = |what| failed(what, folder);
    // Mounts are told by their paths, so the folder's is needed: what it is now.
    let link = format!("thread-self/fd/{}", found.as_raw_fd());
    let real: PathBuf = readlinkat(proc, &*link)
        .map_err(step("readlink of"))?
        .into();
    let mounts = Mounts::read(proc)?;
    if mounts.is_kernels(identity.device) {
        let step = format!("{}: {}", mountinfo::IN_A_KERNELS, folder.display());
        return Err(check_failed(step));
    }
    let below = mounts
        .kernels_below(identity.mount, &real)
        .into_iter()
        .map(|mount| {
            let path = mount.place.strip_prefix(&real).ok()?;
            (!path.as_os_str().is_empty()).then(|| Covered {
                path: path.into(),
                device: mount.device,
            })
        });
    let below: Option<Vec<_>> = below.collect();
    below.ok_or_else(|| step("copy what is mounted over:")(Errno::EBUSY))
}

/// Makes a tree of the child's own the root, in the child, as the sandbox's user. What is `covered`
/// in it cannot be seen.
pub(crate) fn enter_own(
    tree: RawFd,
    covered: &[Covered],
    layers: &Layers,
) -> Result<(), SetupError> {
    // SAFETY: the child's descriptors were put at their numbers, and nothing else owns this one.
    let tree = unsafe { OwnedFd::from_raw_fd(tree) };
    if !layers.has(Layer::Root) {
        // There is no mount namespace of the child's own then: this would be the host's root.
        let step = "a chroot of its own while the layer root is skipped";
        return Err(check_failed(step));
    }
    enter_tree(&tree, "the chroot")?;
    if covered.is_empty() {
        return Ok(());
    }
    // Copies are taken of what is mounted, so it lies above the root until all is covered.
    let shelf = EmptyMounts::new(Path::new("/"), &[])?;
    covered
        .iter()
        .try_for_each(|mount| mount.cover(&tree, &shelf))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|e| error("detach a tmpfs from /".into(), e))
}

impl Covered {
    fn cover(&self, tree: &OwnedFd, shelf: &EmptyMounts) -> Result<(), SetupError> {
        let step = |what: &str| {
            let step = format!("{what} /{}", Path::new(&self.path).display());
            move |errno| error(step, errno)
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let found = openat2(tree.as_fd(), &*self.path, how).map_err(step("open"))?;
        // A job that can rename the folders above may have put another in its place.
        if fstat(&found).map_err(step("fstat"))?.st_dev != self.device {
            let path = Path::new(&self.path).display();
            return Err(check_failed(format!("cover /{path}: it was moved away")));
        }
        let is_folder = is_folder(&found)?;
        shelf.cover(found.into(), is_folder).map_err(step("cover"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

    use super::*;

    /// Else a spare could have another root than its path leads to when its job comes.
    #[test]
    fn what_is_said_of_a_folder_is_of_the_one_that_was_copied() {
        let base = tempfile::tempdir().expect("a folder");
        let [one, other] = ["one", "other"].map(|name| base.path().join(name));
        for folder in [&one, &other] {
            std::fs::create_dir(folder).expect("writable");
        }
        let is_done = AtomicBool::new(false);
        let mut both = std::collections::HashSet::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    let exchange = RenameFlags::RENAME_EXCHANGE;
                    renameat2(AT_FDCWD, &one, AT_FDCWD, &other, exchange).expect("one file system");
                }
            });
            for _ in 0..500 {
                let root = OwnRoot::take(&one).expect("it is always there");
                let copied = fstat(&root.tree).expect("a folder");
                assert_eq!(root.folder.inode, copied.st_ino);
                both.insert(copied.st_ino);
            }
            is_done.store(true, Ordering::Relaxed);
        });
        assert_eq!(both.len(), 2, "they never changed places");
    }
}
