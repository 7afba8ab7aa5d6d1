"""Attacks on one layer each. They return what they got, or raise what stopped them."""

import ctypes
import errno
import os
import socket

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWUSER = 0x10000000
_NUMBERS = {  # x86-64, aarch64
    "unshare": (272, 97),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "setns": (308, 268),
    "setuid": (105, 146),
    "swapon": (167, 224),
    "unknown": (9999, 9999),
    "clone3": (435, 435),
    "userfaultfd": (323, 282),
}


def _errno_name(result):
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "ok"


def call(name, *args):
    """Make a system call by number; return "ok" or the errno's name."""
    number = _NUMBERS[name][os.uname().machine == "aarch64"]
    return _errno_name(_libc.syscall(number, *args))


def call_twice_with_handler(name):
    """Put a handler in the way of SIGSYS, then make a blocked call."""
    import signal

    try:
        signal.signal(signal.SIGSYS, lambda *_: None)
        installed = True
    except OSError:
        installed = False
    return installed, call(name)


def mount_tmpfs():
    return _errno_name(_libc.mount(b"x", b"/tmp", b"tmpfs", 0, None))


def new_user_namespace():
    return _errno_name(_libc.unshare(CLONE_NEWUSER))


def clone_new_user_namespace():
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    pid = _libc.syscall(number, CLONE_NEWUSER | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return _errno_name(pid)


def write_file(path):
    try:
        with open(path, "w") as file:
            file.write("owned")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def read_file(path):
    try:
        return open(path).read()
    except OSError as error:
        return errno.errorcode[error.errno]


def signal_process(pid):
    try:
        os.kill(pid, 0)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def connect(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(100).decode()
    except OSError as error:
        return errno.errorcode[error.errno]


def attach_shared_memory(key):
    number = {"x86_64": 29, "aarch64": 194}[os.uname().machine]
    return _errno_name(_libc.syscall(number, key, 0, 0))


def hostname():
    return socket.gethostname()


def namespace(kind):
    return os.readlink(f"/proc/self/ns/{kind}")


def ids():
    return {"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups()}


def run_program(path):
    import subprocess

    return subprocess.run([path], capture_output=True, text=True, check=False).stdout


def set_ids():
    """glibc's own set-id calls, which signal every thread that glibc knows."""
    results = []
    for change in (lambda: _libc.setgroups(0, None), lambda: _libc.setresuid(1000, 1000, 1000)):
        results.append(_errno_name(change()))
    return results


def type_into_terminal():
    import fcntl

    try:
        fcntl.ioctl(0, 0x5412, b"x")  # TIOCSTI
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def socket_families():
    """The address families of which a socket can be had."""
    families = []
    for family in range(46):
        for protocol in (0, 12):
            try:
                socket.socket(family, socket.SOCK_RAW if family == 16 else socket.SOCK_DGRAM, protocol).close()
            except OSError:
                continue
            families.append((family, protocol))
    return families


def writable_places():
    """Every folder and device that this process may write to, links not followed."""
    found = []
    for folder, folders, files in os.walk("/"):
        if folder == "/proc":
            folders[:] = ["self", "sys"]
        if folder in ("/proc/self", "/proc/sys"):
            folders[:] = []
        if _can_create(folder):
            found.append(folder)
            folders[:] = []
            continue
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path) and os.access(path, os.W_OK) and _can_open(path):
                found.append(path)
    return sorted(found)


def _can_create(folder):
    if not os.access(folder, os.W_OK):
        return False
    try:
        os.mkdir(os.path.join(folder, "attack"))
    except OSError:
        return False
    os.rmdir(os.path.join(folder, "attack"))
    return True


def _can_open(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def escape_by_working_directory():
    """What lies beside the working directory, without naming it."""
    return sorted(os.listdir("."))[:5], sorted(os.listdir(".."))


def clone_parent():
    """A child of the host's, by CLONE_PARENT, which the host would never reap."""
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    pid = _libc.syscall(number, 0x8000 | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return _errno_name(pid)


def mark_stdin():
    """Whether an earlier job left its mark on standard input; then leave one."""
    import fcntl

    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_APPEND)
    return bool(flags & os.O_APPEND)


def connect_by_path(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError as error:
            return errno.errorcode[error.errno]
    return "ok"


def spoil_terminal():
    """Switch echo and signals off, and waiting."""
    import fcntl
    import termios
    import tty

    tty.setraw(0)
    os.set_blocking(0, False)
    assert not termios.tcgetattr(0)[3] & termios.ECHO
    assert fcntl.fcntl(0, fcntl.F_GETFL) & os.O_NONBLOCK
