"""System calls by name, without the C library's wrappers."""

import ctypes
import errno
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

_ARM = os.uname().machine == "aarch64"
_NUMBERS = {  # x86-64, aarch64; one number where both have the same
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280),
    "capset": (126, 91), "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "clone": (56, 220), "clone3": 435, "delete_module": (176, 106), "fanotify_init": (300, 262),
    "finit_module": (313, 273), "fsconfig": 431, "fsmount": 432, "fsopen": 430, "fspick": 433,
    "init_module": (175, 105), "inotify_init1": (294, 26), "io_uring_enter": 426,
    "io_uring_register": 427, "io_uring_setup": 425, "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "memfd_secret": 447, "migrate_pages": (256, 238),
    "mount": (165, 40), "mount_setattr": 442, "move_mount": 429, "move_pages": (279, 239),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": 428,
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": 438, "pidfd_open": 434,
    "pidfd_send_signal": 424, "pivot_root": (155, 41), "prctl": (157, 167), "process_madvise": 440,
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "quotactl": (179, 60), "quotactl_fd": 443, "reboot": (169, 142), "request_key": (249, 218),
    "rt_sigaction": (13, 134), "seccomp": (317, 277), "setdomainname": (171, 162), "setfsgid": (123, 152),
    "setfsuid": (122, 151), "setgid": (106, 144), "setgroups": (116, 159), "sethostname": (170, 161),
    "setns": (308, 268), "setregid": (114, 143), "setresgid": (119, 149), "setresuid": (117, 147),
    "setreuid": (113, 145), "settimeofday": (164, 170), "setuid": (105, 146), "shmget": (29, 194),
    "semget": (64, 190), "msgget": (68, 186), "swapoff": (168, 225), "swapon": (167, 224),
    "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
    "vhangup": (153, 58), "setsockopt": (54, 208), "getsockopt": (55, 209), "socket": (41, 198), "ioctl": (16, 29), "mmap": (9, 222),
    "memfd_create": (319, 279), "shmctl": (31, 195), "ioprio_set": (251, 30), "ioprio_get": (252, 31),
    "mlock": (149, 228), "mbind": (237, 235), "unknown": 9999,
    # x86-64 alone
    "arch_prctl": (158, None), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
}  # fmt: skip


def number(name):
    value = _NUMBERS[name]
    return value[_ARM] if isinstance(value, tuple) else value


def call(name, *args):
    """Make a system call; "ok" or the errno's name."""
    return outcome(raw(number(name), *args))


def raw(number, *args):
    values = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return libc.syscall(ctypes.c_long(number), *values)


def outcome(result):
    return errno_name(ctypes.get_errno()) if result == -1 else "ok"


def errno_name(number):
    return errno.errorcode.get(number, str(number))


def attempt(function, *args):
    """Call a Python function; "ok" or the errno's name."""
    try:
        function(*args)
    except OSError as error:
        return errno_name(error.errno)
    return "ok"


def named(name):
    """Name this process: the test waits for that."""
    libc.prctl(15, name.encode(), 0, 0, 0)
