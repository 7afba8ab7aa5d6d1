//! The kernel's own file systems: taken out of the children's root, but for a minimal `/dev`
//! and a `/proc` that each child mounts its own over.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use super::covers::Covers;
use super::steps::{detach_all, error, io_error, make_read_only, mount_tmpfs};
use crate::sandbox::layer::SetupError;
use crate::sys::mounts::{attach_tree, copy_tree, set_attributes};

/// Host device nodes that are harmless to share: they hold no state.
pub const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];

const DEVICE_SET: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

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
pub(super) fn remove_from_host_tree(covers: &mut Covers, proc: &OwnedFd) -> Result<(), SetupError> {
    let mounts = kernel_mounts(proc)?;
    for path in ["/dev", "/sys"] {
        detach_all(Path::new(path))?;
    }
    if Path::new("/sys").is_dir() {
        covers.cover(Path::new("/sys"), &[])?;
    }
    let elsewhere = |mount: &PathBuf| {
        let made_anew = ["/dev", "/sys", "/proc"];
        !made_anew.iter().any(|place| mount.starts_with(place))
    };
    remove(mounts.into_iter().filter(elsewhere), covers)
}

/// Takes out what a chroot brings with it. An operator who wants a `/proc` there asks for it.
pub(super) fn remove_from_chroot(covers: &mut Covers, proc: &OwnedFd) -> Result<(), SetupError> {
    let mounts = kernel_mounts(proc)?;
    if mounts.iter().any(|mount| mount == Path::new("/")) {
        return Err(error(
            "a chroot in a file system of the kernel's own".into(),
            Errno::EINVAL,
        ));
    }
    remove(mounts.into_iter(), covers)
}

/// Takes out what binds bring with the folders that they show. What is bound itself is meant to
/// be seen.
pub(super) fn remove_from_binds(
    targets: &[&Path],
    covers: &mut Covers,
    proc: &OwnedFd,
) -> Result<(), SetupError> {
    let brought = |mount: &PathBuf| {
        targets.iter().any(|target| mount.starts_with(target))
            && !targets.iter().any(|target| mount == target)
    };
    remove(kernel_mounts(proc)?.into_iter().filter(brought), covers)
}

fn remove(mounts: impl Iterator<Item = PathBuf>, covers: &mut Covers) -> Result<(), SetupError> {
    for mount in mounts {
        if !detach_all(&mount)? {
            covers.hide(&mount, &[])?;
        }
    }
    Ok(())
}

/// Mounts a `/proc` for the kernel to see: it lets a child mount its own only where one is
/// fully visible (`mount_too_revealing`, fs/namespace.c). A host without privilege may not mount
/// one, since its PID namespace is another's; there the host's own stays, or is put in, and
/// each child covers it.
pub(super) fn mount_visible_proc(hosts: &OwnedFd) -> Result<(), SetupError> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if !detach_all(Path::new("/proc"))? {
        return Ok(());
    }
    match mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>) {
        Err(Errno::EPERM) => attach_tree(hosts, Path::new("/proc")),
        other => other,
    }
    .map_err(|e| error("mount /proc".into(), e))
}

/// The mounts of [`KERNEL_FILE_SYSTEMS`] in this root (`proc_pid_mountinfo(5)`), as `proc`, a
/// `/proc` that need not be in sight, has them.
fn kernel_mounts(proc: &OwnedFd) -> Result<Vec<PathBuf>, SetupError> {
    // Not self: that is the main thread's view, and this may be another thread.
    let file = "thread-self/mountinfo";
    let mut text = String::new();
    openat(
        proc,
        file,
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(std::io::Error::from)
    .and_then(|fd| fs::File::from(fd).read_to_string(&mut text))
    .map_err(|e| io_error(format!("read /proc/{file}"), &e))?;
    let mut mounts = Vec::new();
    for line in text.lines() {
        let place = line.split(' ').nth(4).map(unescape);
        let kind = line
            .split(" - ")
            .nth(1)
            .and_then(|end| end.split(' ').next());
        if let (Some(place), Some(kind)) = (place, kind)
            && KERNEL_FILE_SYSTEMS.contains(&kind)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(r"/plain\9"), Path::new(r"/plain\9"));
    }
}
