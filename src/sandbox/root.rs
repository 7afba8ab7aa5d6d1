//! The children's root file system.
//!
//! Prepared once, in a mount namespace that only the cloning thread is in: the host's tree
//! read-only (or a chroot), pruned of the kernel's own file systems, with a minimal `/dev`.
//! A clone inherits it, locked by the kernel since the child's user namespace is a lesser
//! one (`mount_namespaces(7)`), and adds what must be its own: `/proc`, `/tmp`, `/dev/shm`.
//! There is no old root to detach in the child: it was detached before the first clone.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir};

use super::layer::{Layer, SetupError};
use crate::config::{Proc, Profile, Root};
use crate::sys::mounts::{attach_tree, copy_tree, pivot_to_working_directory, set_attributes};
use crate::sys::process::unshare;

/// Host device nodes that are harmless to share: they hold no state.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];

const DEVICE_SET: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// Where services of the host listen on sockets and FIFOs. Neither a read-only mount nor a
/// network namespace keeps a child from connecting to those that are open to everybody.
const SERVICE_PLACES: &[&str] = &["/run", "/var/run"];

/// Where each child has a tmpfs of its own.
const PRIVATE_PLACES: &[&str] = &["/tmp", "/dev/shm"];

/// File systems of the kernel's own, which show or change the host.
const KERNEL_FILE_SYSTEMS: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

fn error(step: String, errno: Errno) -> SetupError {
    SetupError::new(Layer::Root, step, errno)
}

fn io_error(step: String, source: &std::io::Error) -> SetupError {
    error(
        step,
        Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)),
    )
}

/// The children's root, prepared, and what each child has still to do in it.
pub struct PreparedRoot {
    /// Needed paths that a private `/tmp` would hide.
    kept: Vec<PathBuf>,
    /// Where children start.
    working_directory: PathBuf,
}

impl PreparedRoot {
    /// Moves the calling thread, and so all later clones, into the children's root.
    pub fn prepare(root: &Root, needed: &[PathBuf]) -> Result<Self, SetupError> {
        let working_directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
        leave_host_mount_namespace()?;
        match root {
            Root::ReadOnly => {
                enter_copy_of(Path::new("/"), READ_ONLY)?;
                replace_kernel_file_systems()?;
                for place in SERVICE_PLACES.iter().map(Path::new) {
                    if place.is_dir() && !place.is_symlink() {
                        cover(place, needed)?;
                    }
                }
                open_the_way_to(needed)?;
                let kept = below_private_places(needed);
                Ok(Self {
                    working_directory: reachable_or_root(working_directory, &kept),
                    kept,
                })
            }
            Root::Chroot { chroot } => {
                enter_copy_of(chroot, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)?;
                Ok(Self {
                    kept: Vec::new(),
                    working_directory: "/".into(),
                })
            }
        }
    }
}

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// A mount namespace of this thread alone, cut off from the host's in both directions.
fn leave_host_mount_namespace() -> Result<(), SetupError> {
    unshare(libc::CLONE_NEWNS).map_err(|e| error("unshare(CLONE_NEWNS)".into(), e))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|e| error("mount / private".into(), e))
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
    pivot_to_working_directory().map_err(step("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("detach the old root of"))?;
    chdir("/").map_err(step("chdir"))
}

/// Takes `/sys`, `/dev` and their like out, and puts in a minimal `/dev`, and a `/proc` for
/// the kernel to see: it lets a child mount its own only where one is fully visible.
fn replace_kernel_file_systems() -> Result<(), SetupError> {
    let devices = DEVICES
        .iter()
        .map(|name| {
            let path = Path::new("/dev").join(name);
            copy_tree(&path, false)
                .map(|tree| (path.clone(), tree))
                .map_err(|e| error(format!("open_tree {}", path.display()), e))
        })
        .collect::<Result<Vec<_>, _>>()?;

    for path in ["/dev", "/sys", "/proc"] {
        detach_all(Path::new(path))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
        .map_err(|e| error("mount /proc".into(), e))?;
    for mount in kernel_mounts()? {
        detach_all(&mount)?;
    }
    if Path::new("/sys").is_dir() {
        mount_tmpfs(Path::new("/sys"), "mode=755,size=4k")?;
        make_read_only(Path::new("/sys"))?;
    }

    mount_tmpfs(Path::new("/dev"), "mode=755,size=64k")?;
    for (path, tree) in &devices {
        fs::write(path, "").map_err(|e| io_error(format!("create {}", path.display()), &e))?;
        // Read-only keeps their modes and times as they are; writing to a device does not
        // write to the file system.
        set_attributes(tree, DEVICE_SET, libc::MOUNT_ATTR_NODEV)
            .and_then(|()| attach_tree(tree, path))
            .map_err(|e| error(format!("move_mount {}", path.display()), e))?;
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        symlink(target, Path::new("/dev").join(name))
            .map_err(|e| io_error(format!("symlink /dev/{name}"), &e))?;
    }
    fs::create_dir("/dev/shm").map_err(|e| io_error("mkdir /dev/shm".into(), &e))?;
    make_read_only(Path::new("/dev"))
}

/// Detaches everything that is mounted at `path`, one above the other.
fn detach_all(path: &Path) -> Result<(), SetupError> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()), // not, or no longer, a mount
            Err(e) => return Err(error(format!("detach {}", path.display()), e)),
        }
    }
}

/// The mounts of [`KERNEL_FILE_SYSTEMS`] in this root, besides `/proc`
/// (`proc_pid_mountinfo(5)`).
fn kernel_mounts() -> Result<Vec<PathBuf>, SetupError> {
    // Not /proc/self: that is the main thread's view, and this may be another thread.
    let text = fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(|e| io_error("read /proc/thread-self/mountinfo".into(), &e))?;
    let mut mounts = Vec::new();
    for line in text.lines() {
        let place = line.split(' ').nth(4).map(unescape);
        let kind = line
            .split(" - ")
            .nth(1)
            .and_then(|end| end.split(' ').next());
        if let (Some(place), Some(kind)) = (place, kind)
            && KERNEL_FILE_SYSTEMS.contains(&kind)
            && place != Path::new("/proc")
        {
            mounts.push(place);
        }
    }
    Ok(mounts)
}

/// Undoes the octal escapes of mountinfo (`\040` for a space).
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let digits = field.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        if let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            plain.push(byte);
            i += 4;
        } else {
            plain.push(bytes[i]);
            i += 1;
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<(), SetupError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
        .map_err(|e| error(format!("mount tmpfs on {} ({options})", path.display()), e))
}

fn make_read_only(path: &Path) -> Result<(), SetupError> {
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .map_err(|e| error(format!("remount {} read-only", path.display()), e))
}

/// Makes each needed path reachable for users whom the folders above it keep out.
///
/// A folder that others may not pass (a home of mode 0700, say) is covered by an empty one,
/// in which only the needed paths are bound again: they become reachable, and the rest of
/// the covered folder stays as closed as it was.
fn open_the_way_to(needed: &[PathBuf]) -> Result<(), SetupError> {
    let mut open: Vec<PathBuf> = Vec::new();
    while let Some(closed) = needed
        .iter()
        .find_map(|path| closed_folder_above(path, &open))
    {
        cover(&closed, needed)?;
        open.push(closed);
    }
    Ok(())
}

/// The uppermost folder above `path` that others may not pass, in the root as it is now.
fn closed_folder_above(path: &Path, already_open: &[PathBuf]) -> Option<PathBuf> {
    const OTHERS_MAY_PASS: u32 = 0o001;
    let real = fs::canonicalize(path).ok()?;
    let above: Vec<&Path> = real.ancestors().skip(1).collect();
    for folder in above.into_iter().rev() {
        let mode = fs::metadata(folder).ok()?.mode();
        if mode & OTHERS_MAY_PASS == 0 && !already_open.iter().any(|open| open == folder) {
            return Some(folder.to_owned());
        }
    }
    None
}

fn cover(closed: &Path, needed: &[PathBuf]) -> Result<(), SetupError> {
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
        create_mount_point(path, *is_folder)
            .map_err(|e| io_error(format!("create {}", path.display()), &e))?;
        attach_tree(tree, path).map_err(|e| error(format!("move_mount {}", path.display()), e))?;
    }
    for (path, target) in links {
        if fs::symlink_metadata(path).is_err() {
            let folder = path.parent().expect("a path below a folder");
            fs::create_dir_all(folder)
                .and_then(|()| symlink(&target, path))
                .map_err(|e| io_error(format!("symlink {}", path.display()), &e))?;
        }
    }
    make_read_only(closed)
}

fn create_mount_point(path: &Path, is_folder: bool) -> std::io::Result<()> {
    if is_folder {
        return fs::create_dir_all(path);
    }
    fs::create_dir_all(path.parent().expect("a file is in a folder"))?;
    fs::write(path, "")
}

/// The needed paths that lie in a place which each child mounts anew.
fn below_private_places(needed: &[PathBuf]) -> Vec<PathBuf> {
    let mut kept: Vec<PathBuf> = needed
        .iter()
        .filter_map(|path| fs::canonicalize(path).ok())
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
pub fn mount_private_places(root: &PreparedRoot, profile: &Profile) -> Result<(), SetupError> {
    if profile.shows_host_tree() {
        let trees = root
            .kept
            .iter()
            .map(|path| Ok((path, copy_tree(path, true)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| error("open_tree of a folder in /tmp".into(), e))?;
        mount_proc(profile.proc)?;
        let options = format!("mode=1777,size={}", profile.tmp);
        for place in PRIVATE_PLACES {
            mount_tmpfs(Path::new(place), &options)?;
        }
        for (path, tree) in trees {
            create_mount_point(path, path_is_folder(&tree)?)
                .map_err(|e| io_error(format!("create {}", path.display()), &e))?;
            attach_tree(&tree, path)
                .map_err(|e| error(format!("move_mount {}", path.display()), e))?;
        }
    }
    // By its path: the folder itself may be one that was just mounted over, through which the
    // host's files would be in reach.
    let directory = &root.working_directory;
    chdir(directory).map_err(|e| error(format!("chdir {}", directory.display()), e))
}

fn path_is_folder(tree: &std::os::fd::OwnedFd) -> Result<bool, SetupError> {
    let stat = nix::sys::stat::fstat(tree).map_err(|e| error("fstat".into(), e))?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn mount_proc(proc: Proc) -> Result<(), SetupError> {
    let place = Path::new("/proc");
    match proc {
        Proc::Private => {
            // Read-only: nothing in it needs writing, and much in it has been written to
            // in attacks (/proc/sys, /proc/self/attr, uid_map).
            let flags =
                MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("proc"), place, Some("proc"), flags, None::<&str>)
                .map_err(|e| error("mount /proc".into(), e))
        }
        Proc::None => {
            mount_tmpfs(place, "mode=555,size=4k")?;
            make_read_only(place)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(r"/plain\9"), Path::new(r"/plain\9"));
    }
}
