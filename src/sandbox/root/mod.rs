//! The children's root file system.
//!
//! Prepared once, in a mount namespace that only the cloning thread is in: the host's tree
//! read-only, a chroot, or nothing, with what the profile binds into it and without what it
//! hides. A clone inherits it, locked by the kernel since the child's user namespace is a
//! lesser one (`mount_namespaces(7)`), and adds what must be its own: `/proc`, `/tmp`,
//! `/dev/shm`. There is no old root to detach in the child: it was detached before the first
//! clone.

mod covers;
mod kernel;
mod resolver;
mod steps;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir};

pub use self::kernel::DEVICES;

use self::covers::{Covers, closed_folder_above};
use self::kernel::Devices;
use self::resolver::Resolver;
use self::steps::{create_mount_point, error, mount_tmpfs};
use super::layer::SetupError;
use crate::config::{Proc, Profile, Root};
use crate::sys::mounts::{attach_tree, copy_tree, pivot_to_working_directory, set_attributes};
use crate::sys::process::unshare;

/// Where each child has a tmpfs of its own, if the profile gives it one.
pub const PRIVATE_PLACES: &[&str] = &["/tmp", "/dev/shm"];

const UNTRUSTED: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const READ_ONLY: u64 = UNTRUSTED | libc::MOUNT_ATTR_RDONLY;

/// The children's root, prepared, and what each child has still to do in it.
pub struct PreparedRoot {
    proc: Proc,
    /// Where the child mounts a tmpfs, and its options.
    private_places: Vec<PathBuf>,
    tmpfs_options: String,
    /// Paths that a private `/tmp` would hide.
    kept: Vec<PathBuf>,
    /// Where children start.
    working_directory: PathBuf,
    covers: Covers,
}

/// A bind of the profile, taken from the host's tree.
struct BoundTree {
    target: PathBuf,
    is_folder: bool,
    tree: OwnedFd,
}

impl PreparedRoot {
    /// Moves the calling thread, and so all later clones, into the children's root.
    ///
    /// # Errors
    /// With the mount call that failed and its operand.
    pub fn prepare(profile: &Profile, needed: &[PathBuf]) -> Result<Self, SetupError> {
        let working_directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
        leave_host_mount_namespace()?;
        let binds = take_binds(profile)?;
        let resolver = Resolver::take(profile)?;
        let hosts_proc =
            copy_tree(Path::new("/proc"), true).map_err(|e| error("open_tree /proc".into(), e))?;
        let mut covers = Covers::default();
        match &profile.root {
            Root::ReadOnly => {
                let needed = with_working_directory(needed, &working_directory, profile);
                enter_host_tree(profile, &needed, &mut covers, &hosts_proc)?;
            }
            Root::Chroot(folder) => {
                enter_copy_of(folder, UNTRUSTED)?;
                kernel::remove_from_chroot(&mut covers, &hosts_proc)?;
            }
            Root::Empty => enter_empty_tree(&mut covers)?,
        }
        // A chroot is the operator's own folder, and a job may have left links in it.
        let may_create = !matches!(profile.root, Root::Chroot(_));
        if profile.proc() == Proc::Private {
            kernel::mount_visible_proc(&hosts_proc)?;
        }
        mount_binds(&binds, may_create, &mut covers)?;
        resolver.mount(may_create)?;
        let targets: Vec<_> = binds.iter().map(|bind| bind.target.as_path()).collect();
        kernel::remove_from_binds(&targets, &mut covers, &hosts_proc)?;
        hide_in_binds(profile, &mut covers)?;
        if profile.shows_host_tree() && profile.proc() == Proc::None {
            covers.cover(Path::new("/proc"), &[])?;
        }
        covers.seal()?;

        let kept = below_private_places(needed, &binds);
        Ok(Self {
            proc: profile.proc(),
            private_places: private_places(profile)?,
            tmpfs_options: tmpfs_options(profile.tmp().unwrap_or(0)),
            working_directory: match profile.root {
                Root::ReadOnly => reachable_or_root(working_directory, &kept),
                _ => "/".into(),
            },
            kept,
            covers,
        })
    }

    /// Before each clone: hides again what the host has shown since, by replacing a file or
    /// making one.
    pub fn renew(&mut self) -> Result<(), SetupError> {
        self.covers.renew()
    }
}

/// Modules are imported from the working directory too (`python -c`), so it is needed where others
/// may pass to it; but a path that is hidden itself is not shown because pyspawner was started
/// there.
fn with_working_directory(needed: &[PathBuf], own: &Path, profile: &Profile) -> Vec<PathBuf> {
    let mut needed = needed.to_vec();
    let is_covered = own == Path::new("/")
        || PRIVATE_PLACES.iter().any(|place| own.starts_with(place))
        || profile.hide.iter().any(|hidden| hidden == own);
    if !is_covered && closed_folder_above(&own.join("."), &[]).is_none() {
        needed.push(own.to_owned());
    }
    needed
}

/// A mount namespace of this thread alone, cut off from the host's in both directions.
fn leave_host_mount_namespace() -> Result<(), SetupError> {
    unshare(libc::CLONE_NEWNS).map_err(|e| error("unshare(CLONE_NEWNS)".into(), e))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|e| error("mount / private".into(), e))
}

/// Copies what is to be bound, while the host's tree is in sight.
fn take_binds(profile: &Profile) -> Result<Vec<BoundTree>, SetupError> {
    let mut binds = Vec::new();
    for bind in &profile.binds {
        let step = |what: &str| {
            let step = format!("{what} {}", bind.source.display());
            move |errno| error(step, errno)
        };
        let tree = copy_tree(&bind.source, true).map_err(step("open_tree"))?;
        let attributes = if bind.writable { UNTRUSTED } else { READ_ONLY };
        set_attributes(&tree, attributes, 0).map_err(step("mount_setattr"))?;
        binds.push(BoundTree {
            target: bind.target().to_owned(),
            is_folder: bind.source.is_dir(),
            tree,
        });
    }
    // The outer ones first, or they would cover the inner ones.
    binds.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(binds)
}

/// The host's tree, read-only, without the kernel's file systems and what is hidden.
fn enter_host_tree(
    profile: &Profile,
    needed: &[PathBuf],
    covers: &mut Covers,
    hosts_proc: &OwnedFd,
) -> Result<(), SetupError> {
    let devices = Devices::take()?;
    enter_copy_of(Path::new("/"), READ_ONLY)?;
    // Each child mounts its own over it. Covered here too, the host's is never in sight.
    covers.cover(Path::new("/tmp"), needed)?;
    kernel::remove_from_host_tree(covers, hosts_proc)?;
    devices.mount()?;
    covers.open_the_way_to(needed)?;
    profile
        .hide
        .iter()
        .try_for_each(|path| covers.hide(path, needed))
}

/// An empty tree with `/dev`, `/proc` and `/tmp`.
fn enter_empty_tree(covers: &mut Covers) -> Result<(), SetupError> {
    let devices = Devices::take()?;
    // Mounted where there always is a folder; the place is gone with the old root.
    let place = Path::new("/proc");
    mount_tmpfs(place, "mode=755,size=1m")?;
    chdir(place).map_err(|e| error("chdir /proc".into(), e))?;
    leave_old_root("an empty tree")?;
    for folder in ["/dev", "/proc", "/tmp"] {
        create_mount_point(Path::new(folder), true)?;
    }
    devices.mount()?;
    covers.cover(Path::new("/tmp"), &[])?;
    covers.adopt(Path::new("/"))
}

/// Makes a restricted copy of the tree at `source` the root and detaches the old one.
fn enter_copy_of(source: &Path, attributes: u64) -> Result<(), SetupError> {
    let step = |what: &str| {
        let step = format!("{what} {}", source.display());
        move |errno| error(step, errno)
    };
    let tree = copy_tree(source, true).map_err(step("open_tree"))?;
    set_attributes(&tree, attributes, 0).map_err(step("mount_setattr"))?;
    // Attached where there always is a folder; the place is gone with the old root.
    attach_tree(&tree, Path::new("/proc")).map_err(step("move_mount"))?;
    fchdir(&tree).map_err(step("fchdir"))?;
    leave_old_root(&source.display().to_string())
}

/// Makes the working directory the root and detaches the old one.
fn leave_old_root(new: &str) -> Result<(), SetupError> {
    let step = |what: &str| {
        let step = format!("{what} {new}");
        move |errno| error(step, errno)
    };
    pivot_to_working_directory().map_err(step("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("detach the old root of"))?;
    chdir("/").map_err(step("chdir"))
}

/// Hides once more what a bind shows with a folder that it lies in. What is bound itself is
/// meant to be seen.
fn hide_in_binds(profile: &Profile, covers: &mut Covers) -> Result<(), SetupError> {
    for bind in &profile.binds {
        for path in &profile.hide {
            match path.strip_prefix(&bind.source) {
                Ok(rest) if rest.as_os_str().is_empty() => {}
                Ok(rest) => covers.hide(&bind.target().join(rest), &[])?,
                Err(_) => {}
            }
        }
    }
    Ok(())
}

fn mount_binds(
    binds: &[BoundTree],
    may_create: bool,
    covers: &mut Covers,
) -> Result<(), SetupError> {
    for bind in binds {
        covers.reveal(&bind.target);
        if may_create && !bind.target.exists() {
            create_mount_point(&bind.target, bind.is_folder)?;
        }
        attach_tree(&bind.tree, &bind.target)
            .map_err(|e| error(format!("bind on {}", bind.target.display()), e))?;
    }
    Ok(())
}

/// The kernel counts files apart from bytes (`tmpfs(5)`): one for each page, at least 1,024.
fn tmpfs_options(size: u64) -> String {
    let files = (size / 4096).max(1024);
    format!("mode=1777,size={size},nr_inodes={files}")
}

/// Where children mount a tmpfs. A chroot that is to have one must have the folder.
fn private_places(profile: &Profile) -> Result<Vec<PathBuf>, SetupError> {
    if profile.tmp().is_none() {
        return Ok(Vec::new());
    }
    let places: Vec<PathBuf> = PRIVATE_PLACES
        .iter()
        .map(PathBuf::from)
        .filter(|place| place.is_dir())
        .collect();
    if places.is_empty() {
        return Err(error("tmpfs on /tmp".into(), Errno::ENOENT));
    }
    Ok(places)
}

/// The paths that lie in a place which each child mounts anew.
fn below_private_places(needed: &[PathBuf], binds: &[BoundTree]) -> Vec<PathBuf> {
    let mut kept: Vec<PathBuf> = needed
        .iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .chain(binds.iter().map(|bind| bind.target.clone()))
        .filter(|path| PRIVATE_PLACES.iter().any(|place| path.starts_with(place)))
        .collect();
    kept.sort();
    kept.dedup_by(|path, above| path.starts_with(above));
    kept
}

/// The caller's working directory where children can reach it, else `/`.
fn reachable_or_root(directory: PathBuf, kept: &[PathBuf]) -> PathBuf {
    let hidden = PRIVATE_PLACES
        .iter()
        .any(|place| directory.starts_with(place))
        && !kept.iter().any(|path| directory.starts_with(path));
    if !hidden && directory.is_dir() && closed_folder_above(&directory.join("."), &[]).is_none() {
        return directory;
    }
    log::info!(
        "children cannot reach the working directory {} and start in /; modules that they \
         import later must be in a --path",
        directory.display()
    );
    "/".into()
}

/// Mounts what must be a child's own: in the child, as the sandbox's user, while it still
/// holds its capabilities.
pub fn mount_private_places(root: &PreparedRoot) -> Result<(), SetupError> {
    let mut kept = Vec::new();
    for path in &root.kept {
        let tree =
            copy_tree(path, true).map_err(|e| error(format!("open_tree {}", path.display()), e))?;
        kept.push((path, tree));
    }
    if root.proc == Proc::Private {
        mount_own_proc()?;
    }
    for place in &root.private_places {
        mount_tmpfs(place, &root.tmpfs_options)?;
    }
    for (path, tree) in kept {
        create_mount_point(path, is_folder(&tree)?)?;
        attach_tree(&tree, path).map_err(|e| error(format!("move_mount {}", path.display()), e))?;
    }
    // By its path: the folder itself may be one that was just mounted over, through which the
    // host's files would be in reach.
    let directory = &root.working_directory;
    chdir(directory).map_err(|e| error(format!("chdir {}", directory.display()), e))
}

fn is_folder(tree: &OwnedFd) -> Result<bool, SetupError> {
    let stat = nix::sys::stat::fstat(tree).map_err(|e| error("fstat".into(), e))?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Read-only: nothing in it needs writing, and much in it has been written to in attacks
/// (/proc/sys, /proc/self/attr, uid_map).
fn mount_own_proc() -> Result<(), SetupError> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
        .map_err(|e| error("mount /proc".into(), e))
}
