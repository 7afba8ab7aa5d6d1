"""Attacks that tests outside of tests/security need. All others are in tests/security/jobs."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)

_NUMBERS = {"clone": (56, 220), "unshare": (272, 97)}  # x86-64, aarch64


def call(name, *args):
    """Make a system call by number; return "ok" or the errno's name."""
    return _errno_name(_libc.syscall(_number(name), *args))


def _number(name):
    return _NUMBERS[name][os.uname().machine == "aarch64"]


def _errno_name(result):
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "ok"


def clone_parent():
    """A child of the host's, by CLONE_PARENT, which the host would never reap."""
    pid = _libc.syscall(_number("clone"), 0x8000 | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return _errno_name(pid)


def mark_stdin():
    """Whether an earlier job left its mark on standard input; then leave one."""
    import fcntl

    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_APPEND)
    return bool(flags & os.O_APPEND)


def spoil_terminal():
    """Switch echo and signals off, and waiting."""
    import fcntl
    import termios
    import tty

    tty.setraw(0)
    os.set_blocking(0, False)
    assert not termios.tcgetattr(0)[3] & termios.ECHO
    assert fcntl.fcntl(0, fcntl.F_GETFL) & os.O_NONBLOCK
