"""What a job can reach through descriptors."""

import fcntl
import os
import subprocess
import sys

_LIST = "import os; print([n for n in range(1024) if os.path.exists(f'/proc/self/fd/{n}')])"


def mine():
    return [n for n in range(1024) if _is_open(n)]


def _is_open(number):
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def mine_and_a_programs(left_open=None):
    """This process's and a program's that inherits all it can; beside what the host had open."""
    command = [sys.executable, "-S", "-c", _LIST]
    program = subprocess.run(command, close_fds=False, capture_output=True, text=True, check=True)
    import leaving

    return {"job": mine(), "program": eval(program.stdout), "host": leaving.OPEN}


def reopen(number):
    """Which ways a standard stream opens anew, and whether it can be written then."""
    found = {}
    for name, mode in (("r", os.O_RDONLY), ("w", os.O_WRONLY), ("rw", os.O_RDWR)):
        try:
            fd = os.open(f"/proc/self/fd/{number}", mode | os.O_NONBLOCK)
            found[name] = "open"
            if name == "w":
                os.write(fd, b"")
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"changed", 0)
                found[name] = "changed"
        except OSError as error:
            found[name] = error.strerror if name not in found else found[name] + ", " + error.strerror
    return found


def read_then_spoil_stdin():
    """What stdin has, then every change to it that is possible."""
    import contextlib

    text = sys.stdin.read()
    reopen(0)
    for change in (
        lambda: fcntl.fcntl(0, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC),
        lambda: fcntl.fcntl(0, fcntl.F_SETOWN, 1),
        lambda: os.ftruncate(0, 0),
        lambda: os.lseek(0, 5, os.SEEK_SET),
        lambda: os.fchmod(0, 0),
        lambda: fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ):
        with contextlib.suppress(OSError):
            change()
    return text, fcntl.fcntl(0, fcntl.F_GETFL) & (os.O_APPEND | os.O_ASYNC)
