//! The kernel's own file systems: taken out of the children's root, but for a minimal `/dev`
//! and a `/proc` that each child mounts its own over.
//!
//! Runs on: the main thread.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::masks::Masks;
use super::mountinfo::{self, Mounts};
use super::steps::{
    check_failed, detach_all, detach_top, error, io_error, make_read_only, mount_tmpfs, proc_error,
};
use crate::config::Proc;
use crate::layer::SetupError;
use crate::sys::mounts::{attach_tree, copy_tree, set_attributes};

/// Host device nodes that are harmless to share: they hold no state.
pub(crate) const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];

const DEVICE_SET: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// The host's device nodes, taken while they are in sight.
pub(super) struct Devices(Vec<(PathBuf, OwnedFd)>);

impl Devices {
    pub(super) fn take() -> Result<Self, SetupError> {
        let devices = DEVICES.iter().map(|name| {
            let path = Path::new("/dev").join(name);
            let tree = copy_tree(&path, false)
                .map_err(|e| error(format!("open_tree {}", path.display()), e))?;
            Ok((path, tree))
        });
        devices.collect::<Result<_, _>>().map(Self)
    }

    /// Makes a `/dev` of these and of the usual links.
    pub(super) fn mount(self) -> Result<(), SetupError> {
        mount_tmpfs(Path::new("/dev"), "mode=755,size=64k")?;
        for (path, tree) in &self.0 {
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
}

/// Takes `/sys`, `/dev` and their like out of the host's tree.
pub(super) fn remove_from_host_tree(masks: &mut Masks, proc: &OwnedFd) -> Result<(), SetupError> {
    for path in ["/dev", "/sys"] {
        detach_all(Path::new(path))?;
    }
    if Path::new("/sys").is_dir() {
        masks.cover(Path::new("/sys"), &[])?;
    }
    remove(masks, proc, |mount| {
        let made_anew = ["/dev", "/sys", "/proc"];
        !made_anew.iter().any(|place| mount.starts_with(place))
    })
}

/// Takes out what a chroot brings with it. An operator who wants a `/proc` there asks for it.
pub(super) fn remove_from_chroot(
    masks: &mut Masks,
    hosts_proc: &OwnedFd,
    proc: Proc,
) -> Result<(), SetupError> {
    let is_root = |mount: &Path| mount == Path::new("/");
    if !Mounts::read(hosts_proc)?.kernels(is_root).is_empty() {
        return Err(check_failed(mountinfo::IN_A_KERNELS));
    }
    // What takes its place there replaces it: `mount_visible_proc`.
    let is_replaced = |mount: &Path| proc == Proc::Private && mount == Path::new("/proc");
    remove(masks, hosts_proc, |mount| !is_replaced(mount))
}

/// Takes out what binds bring with the folders that they show. What is bound itself is meant to
/// be seen.
pub(super) fn remove_from_binds(
    targets: &[&Path],
    masks: &mut Masks,
    proc: &OwnedFd,
) -> Result<(), SetupError> {
    remove(masks, proc, |mount| {
        targets.iter().any(|target| mount.starts_with(target)) && !targets.contains(&mount)
    })
}

/// Takes unwanted mounts out of sight, with all that is in them.
fn remove(
    masks: &mut Masks,
    proc: &OwnedFd,
    unwanted: impl Fn(&Path) -> bool,
) -> Result<(), SetupError> {
    let mut before = Vec::new();
    loop {
        let mounts = Mounts::read(proc)?;
        let found = mounts.kernels(&unwanted);
        let numbers: Vec<u64> = found.iter().map(|mount| mount.id).collect();
        // Below what is detached there may be another. What a host without privilege cannot reach
        // stays, and its children cannot reach it either.
        if numbers.is_empty() || numbers == before {
            return Ok(());
        }
        for mount in found {
            if !detach_top(&mount.place)? {
                masks.cover_mount(&mount.place)?;
            }
        }
        before = numbers;
    }
}

/// Mounts a `/proc` for the kernel to see: it lets a child mount its own only where one is
/// fully visible (`mount_too_revealing`, fs/namespace.c), and a writable one only where that is
/// writable. A host without privilege may not mount
/// one, since its PID namespace is another's; there the host's own stays, or is put in, and
/// each child covers it.
pub(super) fn mount_visible_proc(hosts: &OwnedFd) -> Result<(), SetupError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if !detach_all(Path::new("/proc"))? {
        return Ok(());
    }
    match mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>) {
        Err(Errno::EPERM) => attach_tree(hosts, Path::new("/proc")),
        other => other,
    }
    .map_err(|e| proc_error("mount /proc", e))
}
