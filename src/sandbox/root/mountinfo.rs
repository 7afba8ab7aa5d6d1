//! What is mounted where, as `proc_pid_mountinfo(5)` tells it, and which of it is the kernel's own.
//!
//! Runs on: the main thread, the I/O thread, a child.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::steps::io_error;
use crate::layer::SetupError;

/// The step that fails where a root would be one of them.
pub(super) const IN_A_KERNELS: &str = "a chroot in a file system of the kernel's own";

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

/// The mounts of this thread's root.
pub(super) struct Mounts(Vec<Mount>);

pub(super) struct Mount {
    pub(super) id: u64,
    parent: u64,
    /// As `stat(2)` tells it of what lies there.
    pub(super) device: u64,
    pub(super) place: PathBuf,
    kind: String,
}

impl Mounts {
    /// Reads them. `proc` is a `/proc` that need not be in sight itself.
    pub(super) fn read(proc: &OwnedFd) -> Result<Self, SetupError> {
        // Not self: that is the main thread's view, and this may be another thread.
        let file = "thread-self/mountinfo";
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut text = Vec::new();
        openat(proc, file, flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|fd| fs::File::from(fd).read_to_end(&mut text))
            .map_err(|e| io_error(format!("read /proc/{file}"), &e))?;
        Ok(Self::parse(&text))
    }

    fn parse(mountinfo: &[u8]) -> Self {
        let lines = mountinfo.split(|byte| *byte == b'\n');
        Self(lines.filter_map(Mount::parse).collect())
    }

    /// The unwanted ones of [`KERNEL_FILE_SYSTEMS`] that are in sight, and not within another such.
    pub(super) fn kernels(&self, unwanted: impl Fn(&Path) -> bool) -> Vec<&Mount> {
        let listed = |id| self.0.iter().any(|mount| mount.id == id);
        let tops = |mount: &&Mount| mount.parent == mount.id || !listed(mount.parent);
        let mut found = Vec::new();
        self.visit(self.0.iter().filter(tops).collect(), &unwanted, &mut found);
        found
    }

    /// The same of those that lie on the mount `top` below `folder`, in sight or not.
    pub(super) fn kernels_below(&self, top: u64, folder: &Path) -> Vec<&Mount> {
        let within = |mount: &&Mount| mount.parent == top && mount.place.starts_with(folder);
        let mut found = Vec::new();
        self.visit(
            self.0.iter().filter(within).collect(),
            &|_| true,
            &mut found,
        );
        found
    }

    /// Whether one of [`KERNEL_FILE_SYSTEMS`] has this device.
    pub(super) fn is_kernels(&self, device: u64) -> bool {
        let mut mounts = self.0.iter();
        mounts.any(|mount| mount.device == device && mount.is_kernels())
    }

    /// Goes through mounts that lie on one and the same.
    fn visit<'a>(
        &'a self,
        mut siblings: Vec<&'a Mount>,
        unwanted: &impl Fn(&Path) -> bool,
        found: &mut Vec<&'a Mount>,
    ) {
        // What lies below another's place, and not on it, is out of sight.
        siblings.sort_by(|a, b| a.place.cmp(&b.place));
        siblings.dedup_by(|below, above| {
            below.place != above.place && below.place.starts_with(&above.place)
        });
        for mount in siblings {
            let is_on = |other: &&Mount| other.parent == mount.id && other.id != mount.id;
            let on_it: Vec<_> = self.0.iter().filter(is_on).collect();
            let is_covered = on_it.iter().any(|other| other.place == mount.place);
            // An automount in use is a folder of mounts, which may be wanted.
            let is_in_use = mount.kind == "autofs" && !on_it.is_empty();
            if mount.is_kernels() && unwanted(&mount.place) && !is_covered && !is_in_use {
                found.push(mount);
            } else {
                self.visit(on_it, unwanted, found);
            }
        }
    }
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let text = |field: usize| std::str::from_utf8(fields.get(field)?).ok();
        let (major, minor) = text(2)?.split_once(':')?;
        let end = fields.iter().position(|field| *field == b"-")?;
        Some(Self {
            id: text(0)?.parse().ok()?,
            parent: text(1)?.parse().ok()?,
            device: libc::makedev(major.parse().ok()?, minor.parse().ok()?),
            place: unescape(fields.get(4)?),
            kind: text(end + 1)?.to_owned(),
        })
    }

    fn is_kernels(&self) -> bool {
        KERNEL_FILE_SYSTEMS.contains(&self.kind.as_str())
    }
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
        let mounts = Mounts::parse(
            b"1 0 0:1 / / rw - ext4 /dev/x rw
2 1 0:2 / /proc rw shared:1 - proc proc rw
3 1 0:3 / /auto rw - autofs systemd rw
4 3 0:4 / /auto rw - nfs4 server:/ rw
5 1 0:5 / /home rw - autofs map rw
6 5 0:6 / /home/me rw - nfs4 server:/me rw
7 1 0:7 / /idle rw - autofs map rw
8 1 0:8 / /mnt/a\\040b rw - sysfs sys rw
9 1 0:9 / /covered/proc rw - proc proc rw
10 1 0:10 / /covered rw - tmpfs t rw
11 10 0:11 / /covered/sys rw - sysfs sys rw
12 1 0:12 / /covered-not rw - proc proc rw
",
        );
        let places = |found: Vec<&Mount>| -> Vec<PathBuf> {
            found.into_iter().map(|mount| mount.place.clone()).collect()
        };
        let expected = ["/covered/sys", "/covered-not", "/idle", "/mnt/a b", "/proc"];
        assert_eq!(
            places(mounts.kernels(|_| true)),
            expected.map(PathBuf::from)
        );
        let below: Vec<_> = mounts.kernels_below(1, Path::new("/mnt"));
        assert_eq!(below[0].place, Path::new("/mnt/a b"));
        assert_eq!((below.len(), below[0].device), (1, libc::makedev(0, 8)));
    }

    #[test]
    fn what_lies_in_an_unwanted_one_goes_with_it() {
        let mounts = Mounts::parse(
            b"1 0 0:1 / / rw - ext4 /dev/x rw
2 1 0:2 / /dev rw - devtmpfs d rw
3 2 0:3 / /dev/pts rw - devpts d rw
4 3 0:4 / /dev/pts/x rw - tmpfs d rw
5 4 0:5 / /dev/pts/x/proc rw - proc d rw
",
        );
        let ids = |wanted: &str| -> Vec<u64> {
            let found = mounts.kernels(|place| place != Path::new(wanted));
            found.into_iter().map(|mount| mount.id).collect()
        };
        assert_eq!(ids(""), [2]);
        assert_eq!(ids("/dev"), [3]);
        assert_eq!(ids("/dev/pts"), [2]);
    }
}
