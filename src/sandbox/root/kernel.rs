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
use super::steps::{detach_all, detach_top, error, io_error, make_read_only, mount_tmpfs};
use crate::config::Proc;
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
    "xenfs",
    "smackfs",
    "resctrl",
    "ocfs2_dlmfs",
    "nfsd",
    "functionfs",
    "binder",
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
pub(super) fn remove_from_chroot(
    covers: &mut Covers,
    hosts_proc: &OwnedFd,
    proc: Proc,
) -> Result<(), SetupError> {
    let mounts = kernel_mounts(hosts_proc)?;
    if mounts.iter().any(|mount| mount == Path::new("/")) {
        let step = "a chroot in a file system of the kernel's own";
        return Err(error(step.into(), Errno::EINVAL));
    }
    // What takes its place there replaces it: `mount_visible_proc`.
    let is_replaced = |mount: &PathBuf| proc == Proc::Private && mount == Path::new("/proc");
    remove(
        mounts.into_iter().filter(|mount| !is_replaced(mount)),
        covers,
    )
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

/// The inner ones first, so that each still is a mount.
fn remove(
    mounts: impl DoubleEndedIterator<Item = PathBuf>,
    covers: &mut Covers,
) -> Result<(), SetupError> {
    for mount in mounts.rev() {
        if !detach_top(&mount)? {
            covers.cover(&mount, &[])?;
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

/// The mounts of [`KERNEL_FILE_SYSTEMS`] in this root that are in sight (`proc_pid_mountinfo(5)`), as
/// `proc`, a `/proc` that need not be in sight itself, has them.
pub(super) fn kernel_mounts(proc: &OwnedFd) -> Result<Vec<PathBuf>, SetupError> {
    // Not self: that is the main thread's view, and this may be another thread.
    let file = "thread-self/mountinfo";
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = Vec::new();
    openat(proc, file, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(|fd| fs::File::from(fd).read_to_end(&mut text))
        .map_err(|e| io_error(format!("read /proc/{file}"), &e))?;
    Ok(in_sight(&text))
}

fn in_sight(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mut mounts: Vec<(PathBuf, String)> = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let end = fields.iter().position(|field| *field == b"-");
        let (Some(place), Some(end)) = (fields.get(4), end) else {
            continue;
        };
        let kind = fields.get(end + 1).copied().unwrap_or_default();
        let place = unescape(place);
        mounts.retain(|(below, _)| *below != place); // covered by this later one
        mounts.push((place, String::from_utf8_lossy(kind).into_owned()));
    }
    let carries = |place: &Path| {
        let above = |other: &PathBuf| other.starts_with(place) && other != place;
        mounts.iter().any(|(other, _)| above(other))
    };
    // An automount in use is a folder of mounts, which may be wanted.
    let is_wanted = |place: &Path, kind: &str| kind == "autofs" && carries(place);
    mounts
        .iter()
        .filter(|(place, kind)| {
            KERNEL_FILE_SYSTEMS.contains(&kind.as_str()) && !is_wanted(place, kind)
        })
        .map(|(place, _)| place.clone())
        .collect()
}

/// Undoes the octal escapes of mountinfo (`\040` for a space).
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *byte == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/plain\9"), Path::new(r"/plain\9"));
    }

    #[test]
    fn of_what_is_stacked_the_last_counts() {
        let mountinfo = b"1 0 0:1 / / rw - ext4 /dev/x rw
2 1 0:2 / /proc rw shared:1 - proc proc rw
3 1 0:3 / /auto rw - autofs systemd rw
4 3 0:4 / /auto rw - nfs4 server:/ rw
5 1 0:5 / /home rw - autofs map rw
6 5 0:6 / /home/me rw - nfs4 server:/me rw
7 1 0:7 / /idle rw - autofs map rw
8 1 0:8 / /mnt/a\\040b rw - sysfs sys rw
";
        let expected = ["/proc", "/idle", "/mnt/a b"];
        assert_eq!(in_sight(mountinfo), expected.map(PathBuf::from));
    }
}
