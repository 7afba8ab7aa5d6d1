//! The file-descriptor mount interface (Linux 5.2, `mount_setattr` 5.12).
//!
//! Runs on: any process.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statfs::FsType;

use super::check;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

/// Where a look may take for ever (`statfs(2)`).
const REMOTE: &[libc::c_long] = &[
    0x6969,      // NFS
    0x517B,      // SMB
    0xFE53_4D42, // SMB2
    0xFF53_4D42, // CIFS
    0x6573_5546, // FUSE
    0x0187,      // autofs
    0x00C3_6400, // Ceph
    0x5346_414F, // AFS
    0x0102_1997, // 9P
];

/// File systems whose files are interfaces of the kernel's: to open one is to ask the kernel something,
/// often about the very process that opened it (`statfs(2)`, `linux/magic.h`).
const KERNELS: &[libc::c_long] = &[
    0x9FA0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0x0027_E0EB, // cgroup
    0x6367_7270, // cgroup2
    0xCAFE_4A11, // bpf
    0x6E73_6673, // namespaces
    0x5049_4446, // pidfd
    0x0904_1934, // anonymous inodes
    0x5345_434D, // secretmem
    0x444D_4142, // dma-buf
    0x6165_676C, // pstore
    0xDE5E_81E4, // efivarfs
    0xF97C_FF8C, // selinux
    0x4341_5D53, // smack
    0x5A3C_69F0, // AppArmor
    0x4249_4E4D, // binfmt_misc
    0x1CD1,      // devpts
    0x1980_0202, // mqueue
    0x6573_5543, // fusectl
    0x6759_6969, // rpc_pipefs
    0x6E66_7364, // nfsd
    0x0765_5821, // resctrl
    0xABBA_1974, // xenfs
];

/// Whether the kernel answers for a file system's files.
pub(crate) fn is_kernels(kind: FsType) -> bool {
    KERNELS.contains(&kind.0)
}

/// Whether another machine or program answers for a file system: perhaps never.
pub(crate) fn is_remote(kind: FsType) -> bool {
    REMOTE.contains(&kind.0)
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// A detached copy of the mount at `path`, and with `recursive` of every mount below it
/// (`open_tree(2)`, `OPEN_TREE_CLONE`).
pub(crate) fn copy_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    clone_tree(libc::AT_FDCWD, &c_path(path)?, flags)
}

/// A detached copy of the very file or folder that `found` is open on, with every mount below it.
pub(crate) fn copy_found(found: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    clone_tree(found.as_raw_fd(), c"", flags)
}

/// A detached copy of the file or folder `name` in an open folder of an attached mount, or of the
/// folder itself if it has no name.
pub(crate) fn copy_within(mount: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    clone_tree(mount.as_raw_fd(), name, libc::AT_EMPTY_PATH)
}

/// A detached copy of the mount of an open file, of which that file is the root.
pub(crate) fn copy_of_file(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    clone_tree(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

fn clone_tree(folder: RawFd, path: &CStr, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags as libc::c_uint;
    // SAFETY: `path` is a C string that outlives the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, folder, path.as_ptr(), flags) })?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The number of the mount that a file or folder is open on, as in `proc_pid_mountinfo(5)`
/// (`statx(2)`, STATX_MNT_ID, Linux 5.8).
pub(crate) fn mount_id(found: &OwnedFd) -> Result<u64, Errno> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    let (fd, path) = (found.as_raw_fd(), c"".as_ptr());
    let wanted = libc::STATX_MNT_ID;
    // SAFETY: the path is a C string, and the answer has room for the structure.
    let done = unsafe { libc::statx(fd, path, libc::AT_EMPTY_PATH, wanted, answer.as_mut_ptr()) };
    check(done.into())?;
    // SAFETY: it was zeroed, and all its fields are numbers.
    let answer = unsafe { answer.assume_init() };
    if answer.stx_mask & wanted == 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(answer.stx_mnt_id)
}

/// A new, detached tmpfs, nosuid and nodev, with these options (`tmpfs(5)`, `fsopen(2)`).
pub(crate) fn new_tmpfs(options: &[(&CStr, &CStr)]) -> Result<OwnedFd, Errno> {
    // SAFETY: all strings are C strings that outlive the calls; each descriptor is new.
    unsafe {
        let context = check(libc::syscall(
            libc::SYS_fsopen,
            c"tmpfs".as_ptr(),
            FSOPEN_CLOEXEC,
        ))?;
        let context = OwnedFd::from_raw_fd(context as RawFd);
        let configure =
            |command: libc::c_uint, key: *const libc::c_char, value: *const libc::c_char| {
                check(libc::syscall(
                    libc::SYS_fsconfig,
                    context.as_raw_fd(),
                    command,
                    key,
                    value,
                    0,
                ))
            };
        for (key, value) in options {
            configure(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
        }
        configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
        let mount = check(libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        ))?;
        Ok(OwnedFd::from_raw_fd(mount as RawFd))
    }
}

/// Attaches a detached tree to the very file or folder that `target` is open on.
pub(crate) fn attach_to(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: both paths are C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Makes one mount read-only, and none of those in it.
pub(crate) fn make_read_only(mount: &OwnedFd) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        ..NO_CHANGE
    };
    change(mount, &attributes, libc::AT_EMPTY_PATH)
}

/// Attaches a detached tree at `target` (`move_mount(2)`).
pub(crate) fn attach_tree(tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
    let target = c_path(target)?;
    // SAFETY: both paths are C strings that outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Sets and clears mount attributes (`libc::MOUNT_ATTR_*`) of a detached tree and of all in it
/// (`mount_setattr(2)`), and cuts it off from what it was copied from: a copy of a shared mount is
/// its peer, so that what is mounted in one comes to be in the other (`mount_namespaces(7)`).
pub(crate) fn set_attributes(tree: &OwnedFd, set: u64, clear: u64) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: libc::MS_PRIVATE,
        ..NO_CHANGE
    };
    change(tree, &attributes, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)
}

const NO_CHANGE: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

fn change(mount: &OwnedFd, attributes: &libc::mount_attr, flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: `attributes` is valid for its size, the path is a C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of_val(attributes),
        )
    })
    .map(drop)
}

/// `pivot_root(".", ".")`: makes the working directory the root and stacks the old root on
/// the same place, to be detached next (`pivot_root(2)`, "pivot_root(".", ".")").
pub(crate) fn pivot_to_working_directory() -> Result<(), Errno> {
    // SAFETY: both arguments are C strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}
