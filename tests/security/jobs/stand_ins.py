"""What a job can leave at a number that a preloaded object holds, and what a later job sees there."""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
F_SETSIG, F_GETSIG = 10, 11


def attempt(action):
    try:
        result = action()
    except (OSError, ValueError) as error:
        return errno.errorcode.get(getattr(error, "errno", None), type(error).__name__)
    return result.hex() if isinstance(result, bytes) else result


def works(action):
    try:
        action()
    except (OSError, TypeError, ValueError):
        return False  # TypeError: an address of another family
    return True


def numbers():
    import held

    return sorted({*held.NUMBERS.values(), held.LOOP._selector.fileno(), held.LOOP._ssock.fileno()})


def look(number):
    """Everything that can be read of a number without changing it."""
    status = attempt(lambda: os.fstat(number))
    owner = ctypes.create_string_buffer(8)
    return {
        # Anonymous objects are new each time, and so are their numbers and times.
        "status": [status.st_mode, status.st_size, status.st_uid, status.st_gid, status.st_nlink]
        if not isinstance(status, str)
        else status,
        "times": [status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns]
        if not isinstance(status, str) and os.path.isabs(os.readlink(f"/proc/self/fd/{number}"))
        else None,
        "flags": attempt(lambda: fcntl.fcntl(number, fcntl.F_GETFL)),
        "close-on-exec": attempt(lambda: fcntl.fcntl(number, fcntl.F_GETFD)),
        "owner": attempt(lambda: fcntl.fcntl(number, fcntl.F_GETOWN)),
        "signal": attempt(lambda: fcntl.fcntl(number, F_GETSIG)),
        "owner of any kind": libc.fcntl(number, 16, owner) or owner.raw.hex(),
        "lease": attempt(lambda: fcntl.fcntl(number, fcntl.F_GETLEASE)),
        "seals": attempt(lambda: fcntl.fcntl(number, 1034)),
        "hint": attempt(lambda: fcntl.fcntl(number, 1035, struct.pack("Q", 0))),
        "pipe size": attempt(lambda: fcntl.fcntl(number, 1032)),
        "offset": attempt(lambda: os.lseek(number, 0, os.SEEK_CUR)),
        "unread": attempt(lambda: fcntl.ioctl(number, 0x541B, b"\0" * 4)),
        "attributes": attempt(lambda: os.listxattr(number)),
        "attribute": attempt(lambda: os.getxattr(number, "user.left")),
        "content": attempt(lambda: os.pread(number, 64, 0)),
        "ready": attempt(lambda: select.select([number], [], [], 0)[0] == [number]),
        "receive buffer": _option(number, socket.SO_RCVBUF),
        "peek offset": _option(number, 42),
        "mark": _option(number, 36),
        "low water": _option(number, 18),
        "what it tells": _told(number),
        "a lock of the whole file": attempt(lambda: fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    }


def _told(number):
    """What the kernel says of it, but for the numbers of the machine's own counters."""
    try:
        lines = open(f"/proc/self/fdinfo/{number}").read().splitlines()
    except OSError as error:
        return errno.errorcode[error.errno]
    counters = ("ino:", "eventfd-id:", "mnt_id:", "it_value:", "tfd:", "lock:")
    return [line for line in lines if not line.startswith(counters)]


def _option(number, option):
    value, length = ctypes.c_int(-1), ctypes.c_uint32(4)
    result = libc.getsockopt(number, socket.SOL_SOCKET, option, ctypes.byref(value), ctypes.byref(length))
    return value.value if result == 0 else errno.errorcode[ctypes.get_errno()]


def look_at_all():
    found = {number: look(number) for number in numbers()}
    # Reading changes these; what another left in them shows now.
    for number in numbers():
        attempt(lambda number=number: os.set_blocking(number, False))
        found[number]["read"] = attempt(lambda number=number: os.read(number, 64))
    # /dev/urandom gives something else each time.
    return [
        {key: value for key, value in seen.items() if key not in ("content", "read") or not _is_random(number)}
        for number, seen in found.items()
    ]


def _is_random(number):
    return os.fstat(number).st_rdev == os.makedev(1, 9)


def spoil(number):
    """Every change that can be tried. Returns those that seemed to work."""
    attacks = {
        "write": lambda: os.write(number, b"left behind"),
        "write at": lambda: os.pwrite(number, b"left behind", 0),
        "seek": lambda: os.lseek(number, 3, os.SEEK_SET),
        "truncate": lambda: os.ftruncate(number, 0),
        "allocate": lambda: os.posix_fallocate(number, 0, 4096),
        "flags": lambda: fcntl.fcntl(number, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK | os.O_ASYNC),
        "owner": lambda: fcntl.fcntl(number, fcntl.F_SETOWN, 1),
        "signal": lambda: libc.fcntl(number, F_SETSIG, 10),
        "lease": lambda: fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK),
        "seals": lambda: fcntl.fcntl(number, 1033, 0xF),
        "hint": lambda: fcntl.fcntl(number, 1036, struct.pack("Q", 2)),
        "pipe size": lambda: fcntl.fcntl(number, 1031, 4096),
        "mode": lambda: os.fchmod(number, 0o777),
        "owner of the file": lambda: os.fchown(number, 1000, 1000),
        "times": lambda: os.utime(number, ns=(1, 1)),
        "touch": lambda: os.utime(number),
        "attribute": lambda: os.setxattr(number, "user.left", b"behind"),
        "lock": lambda: fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "record lock": lambda: fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "send": lambda: socket.socket(fileno=os.dup(number)).send(b"left behind"),
        "receive buffer": lambda: socket.socket(fileno=os.dup(number)).setsockopt(1, socket.SO_RCVBUF, 5000),
        "peek offset": lambda: socket.socket(fileno=os.dup(number)).setsockopt(1, 42, 3),
        "shut down": lambda: socket.socket(fileno=os.dup(number)).shutdown(socket.SHUT_RDWR),
        "bind": lambda: socket.socket(fileno=os.dup(number)).bind("\0left-behind"),
        "listen": lambda: socket.socket(fileno=os.dup(number)).listen(),
        "watch": lambda: select.epoll.fromfd(os.dup(number)).register(0, select.EPOLLIN),
        "map and write": lambda: _write_mapped(number),
        "open anew and write": lambda: _write_anew(number),
        "remove": lambda: os.unlink(os.readlink(f"/proc/self/fd/{number}")),
    }
    return sorted(name for name, action in attacks.items() if works(action))


def _write_mapped(number):
    with mmap.mmap(number, 1, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[0] = 33


def _write_anew(number):
    fd = os.open(f"/proc/self/fd/{number}", os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"left behind")
    os.fchmod(fd, 0o777)


def spoil_all():
    return {number: spoil(number) for number in numbers() if _may_be_spoiled(number)}


def _may_be_spoiled(number):
    """A job may try all it can. The control runs as root: not on what is the machine's."""
    import held

    path = os.readlink(f"/proc/self/fd/{number}")
    # A stand-in of a file is the root of a mount of its own.
    is_ours = not path.startswith("/") or path == "/" or path.startswith((held.FOLDER, "/memfd:"))
    return is_ours or os.getuid() != 0


def main(what):
    return globals()[what]()


OWN = ctypes.create_string_buffer(b"own memory")


def _read_memory(number):
    if os.pread(number, 10, ctypes.addressof(OWN)) != OWN.value:
        raise ValueError("not this process's memory")


def escape(number):
    """What lies beyond a number: other files of its folder, the host's root, the host's memory."""
    ways = {
        "its folder": lambda: os.listdir(number),
        "a file beside it": lambda: os.open("passwd", os.O_RDONLY, dir_fd=number),
        "a file above it": lambda: os.open("../etc/passwd", os.O_RDONLY, dir_fd=number),
        "to go there": lambda: os.fchdir(number),
        "its memory": lambda: _read_memory(number),
        "opened anew": lambda: os.listdir(f"/proc/self/fd/{number}"),
        "above, opened anew": lambda: os.open(f"/proc/self/fd/{number}/..", os.O_RDONLY),
        "linked": lambda: os.link(f"/proc/self/fd/{number}", "/tmp/link", follow_symlinks=True),
    }
    return [name for name, action in ways.items() if works(action)]


def escape_all():
    import held

    return {name: escape(number) for name, number in held.NUMBERS.items()}


# ---- the control ------------------------------------------------------------------------------


def as_plain_forks(*jobs):
    """The same jobs one after the other in forked copies of a process that has imported `held`."""
    results = []
    for job in jobs:
        read, write = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            os.dup2(write, 250)
            os.write(250, repr(globals()[job]()).encode())
            os._exit(0)
        os.close(write)
        os.wait()
        with open(read) as answer:
            results.append(eval(answer.read(), {"nan": float("nan")}))
    return results


if __name__ == "__main__":
    import json

    import held  # noqa: F401  as a host preloads it

    path, *names = sys.argv[1:]
    found = as_plain_forks(*names)
    with open(path, "w") as file:  # what the jobs have done to standard output is theirs
        json.dump(found, file)
