"""What the kernel counts, loads or does for a job outside of the job's own limits."""

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time

from syscalls import attempt, call, errno_name, libc, number, raw


def main(what, *args):
    return globals()[what](*args)


def queue_signals(most):
    """Real-time signals to itself, which nobody takes: how many, and what stopped it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    for count in range(most):
        if libc.sigqueue(os.getpid(), signal.SIGRTMIN, None) != 0:
            return [count, errno_name(ctypes.get_errno())]
    return [most, None]


def limits():
    names = "CORE", "SIGPENDING", "MSGQUEUE", "MEMLOCK", "RTPRIO", "NICE"
    return {name: list(resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))) for name in names}


def raise_limits():
    names = "CORE", "SIGPENDING", "MSGQUEUE", "MEMLOCK", "RTPRIO", "NICE"
    found = {}
    for name in names:
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (1 << 20, 1 << 20))
            found[name] = "ok"
        except (OSError, ValueError) as error:
            found[name] = type(error).__name__
    return found


def attach_filters():
    """A filter that takes each packet, by each option that compiles one."""
    code = (ctypes.c_char * 8).from_buffer_copy(struct.pack("HBBI", 6, 0, 0, 0xFFFFFFFF))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))
    found = {}
    for name, option in {"filter": 26, "lock": 44, "ebpf": 50, "reuseport cbpf": 51, "reuseport ebpf": 52}.items():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            value = program if "cbpf" in name or name == "filter" else struct.pack("i", 1)
            found[name] = attempt(one.setsockopt, socket.SOL_SOCKET, option, value)
            # As the kernel reads it: an int, of which the upper half does not count.
            found[f"{name}, wide"] = call("setsockopt", one.fileno(), 1 | 1 << 32, option, value, len(value))
    return found


def ordinary_options():
    """What programs set: all must work."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(family, socket.SOCK_STREAM) as one:
            for name in (
                "REUSEADDR",
                "KEEPALIVE",
                "SNDBUF",
                "RCVBUF",
                "REUSEPORT",
                "LINGER",
                "RCVTIMEO",
                "BROADCAST",
                "PASSCRED",
            ):
                size = {"LINGER": struct.pack("ii", 0, 0), "RCVTIMEO": struct.pack("qq", 1, 0)}.get(name, 1)
                option = getattr(socket, f"SO_{name}", 20)
                found[f"{family} {name}"] = attempt(one.setsockopt, socket.SOL_SOCKET, option, size)
            found[f"{family} zerocopy"] = attempt(one.setsockopt, socket.SOL_SOCKET, 60, 1)
            if family == socket.AF_INET6:
                for option in range(128):
                    if option not in KEEPING[41] | HOLDING_RTNL:
                        found[f"IPv6 {option}"] = attempt(one.setsockopt, socket.IPPROTO_IPV6, option, 1)
            found[f"{family} nodelay"] = attempt(one.setsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


# Options of IPv6 that join groups, for which the kernel holds the lock of all network configuration.
HOLDING_RTNL = {20, 21, 27, 28, *range(42, 49)}


def hold_locks():
    """What would copy from this process's memory while it holds RTNL, or have a thread be less urgent than others."""
    found = {}
    buffer = ctypes.create_string_buffer(64)
    size = ctypes.c_uint(64)
    for family, level in ((socket.AF_INET, 0), (socket.AF_INET6, 41)):
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            joins = range(35, 49) if level == 0 else HOLDING_RTNL
            for option in joins:
                found[f"{level} set {option}"] = call("setsockopt", one.fileno(), level, option, buffer, 64)
            for option in (41, 48) if level == 0 else (48,):
                found[f"{level} get {option}"] = call(
                    "getsockopt", one.fileno(), level, option, buffer, ctypes.byref(size)
                )
            found[f"{level} ethtool"] = call("ioctl", one.fileno(), 0x8946, buffer)
            found[f"{level} encap"] = call("setsockopt", one.fileno(), 17, 100, ctypes.byref(ctypes.c_int(1)), 4)
            found[f"{level} gro"] = call("setsockopt", one.fileno(), 17, 104, ctypes.byref(ctypes.c_int(1)), 4)
            found[f"{level} reserve"] = call("setsockopt", one.fileno(), 1, 73, ctypes.byref(ctypes.c_int(1 << 20)), 4)
    found["batch"] = attempt(os.sched_setscheduler, 0, os.SCHED_BATCH, os.sched_param(0))
    found["idle"] = attempt(os.sched_setscheduler, 0, os.SCHED_IDLE, os.sched_param(0))
    found["io"] = call("ioprio_set", 1, 0, 3 << 13)
    return found


def be_nice():
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    return os.getpriority(os.PRIO_PROCESS, 0)


# Options that have a socket keep what counts nowhere.
KEEPING = {41: {6, 32, 54, 55, 57, 59}, 6: {14, 32, *range(38, 44)}}


def keep_in_sockets():
    """Each of them, in words."""
    found = {}
    for level, options in KEEPING.items():
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
            for option in options:
                found[f"{level} {option}"] = attempt(one.setsockopt, level, option, bytes(64))
                found[f"{level} {option}, wide"] = call(
                    "setsockopt", one.fileno(), level | 1 << 32, option | 1 << 32, bytes(64), 64
                )
    return found


def large_attribute():
    """A list of rights of 64 KiB, with a file that is memory; and a small one."""
    entries = [(1, 6, 0xFFFFFFFF), *[(2, 6, 1000)] * 8100, (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF)]

    def encoded(entries):
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    file = os.memfd_create("rights")
    small = [(1, 6, 0xFFFFFFFF), (4, 4, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF)]
    name = "system.posix_acl_access"
    return [attempt(os.setxattr, file, name, encoded(entries)), attempt(os.setxattr, file, name, encoded(small))]


def place_memory():
    """mbind(2) with the default policy."""
    return call("mbind", memory_of_its_own(4096), 4096, 0, 0, 0, 0)


def lower_core_limit():
    """Where a program takes core dumps, the kernel does not look at a limit of 0: core(5)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    program = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); print(resource.getrlimit(4))"
    executed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [list(resource.getrlimit(resource.RLIMIT_CORE)), executed.stdout.strip()]


def flow_labels():
    """A label of IPv6, of which all network namespaces share some thousands."""
    request = socket.inet_pton(socket.AF_INET6, "fd00::1234:5678") + struct.pack(">I", 0x12345)
    request += struct.pack("BBHHHI", 0, 255, 1, 0, 6, 0)  # get, anybody's, create; linger
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        return [
            attempt(one.setsockopt, socket.IPPROTO_IPV6, 32, request),
            call("setsockopt", one.fileno(), 41 | 1 << 32, 32 | 1 << 32, request, len(request)),
        ]


def lock_ranges(ranges, seconds, path=None):
    """So many, in each of several processes. Holds them for a while."""
    for process in range(8):
        if os.fork() == 0:
            files = [
                open(path) if path else open(f"/tmp/{process}.{number}", "w") for number in range(1 if path else 4)
            ]
            for place in range(ranges):
                # Next to each other they would become one.
                lock = struct.pack("hhqqi4x", fcntl.F_RDLCK if path else fcntl.F_WRLCK, 0, place * 2, 1, 0)
                fcntl.fcntl(files[place % len(files)], fcntl.F_SETLK, lock)
            time.sleep(1000)
    time.sleep(seconds)
    return "not ended"


def lock_by_others(files, seconds):
    """Open files, in several processes, which others have locked that are gone."""
    for process in range(12):
        if os.fork() == 0:
            opened = [open(f"/tmp/{process}.{number}", "w") for number in range(files)]
            if os.fork() == 0:
                for file in opened:
                    fcntl.flock(file, fcntl.LOCK_SH)
                os._exit(0)
            os.wait()
            time.sleep(1000)
    time.sleep(seconds)
    return "not ended"


def share_descriptors():
    """A process that shares its table of descriptors, and a thread that has one of its own: clone(2)."""
    files, thread = 0x400, 0x10000 | 0x800 | 0x100  # CLONE_FILES; CLONE_THREAD, CLONE_SIGHAND, CLONE_VM
    found = raw(number("clone"), files | signal.SIGCHLD, 0, 0, 0, 0)
    if found == 0:
        os._exit(0)
    words = [errno_name(ctypes.get_errno()) if found == -1 else "ok"]
    # Without a stack of its own it could not live: it is only asked for where it is refused.
    if found == -1:
        words.append(call("clone", thread, 0, 0, 0, 0))
    return words


def odd_sockets():
    """Protocols for which the kernel would look for a module."""
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, 6):
            for protocol in (33, 132, 136, 200, 262):
                found[f"{family} {kind} {protocol}"] = call("socket", family, kind, protocol)
    for request in (0x8940, 0x8982):  # SIOCGIFBR, SIOCGIFVLAN
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            found[hex(request)] = call("ioctl", one.fileno(), request, ctypes.create_string_buffer(64))
    return found


def ordinary_sockets():
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind, protocols in ((socket.SOCK_STREAM, (0, 6)), (socket.SOCK_DGRAM, (0, 17))):
            for protocol in protocols:
                for flags in (0, socket.SOCK_CLOEXEC, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK):
                    found[f"{family} {kind} {protocol} {flags}"] = attempt(
                        lambda *a: socket.socket(*a).close(), family, kind | flags, protocol
                    )
    return found


def huge_pages():
    return {
        "mmap": call("mmap", 0, 2 << 20, 3, 0x22 | 0x40000, -1, 0),
        "memfd": call("memfd_create", b"huge", 4),
        "shmget": call("shmget", 0, 2 << 20, 0o1600 | 0x800),
    }


def lock_shared_memory():
    segment = libc.shmget(0, 4096, 0o1600)
    return call("shmctl", segment, 11, 0)


def memory_of_its_own(size):
    place = libc.mmap
    place.restype = ctypes.c_void_p
    return ctypes.c_void_p(place(None, ctypes.c_size_t(size), 3, 0x22, -1, 0))


def lock_memory(size):
    return call("mlock", memory_of_its_own(size), ctypes.c_size_t(size))


def descriptor_commands():
    with open("/tmp/file", "wb") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0)
        reader, writer = os.pipe()
        return {
            "F_OFD_SETLK": attempt(fcntl.fcntl, file, 37, lock),
            "F_OFD_SETLKW": attempt(fcntl.fcntl, file, 38, lock),
            "F_SETPIPE_SZ": attempt(fcntl.fcntl, writer, 1031, 8192),
            "F_SETLK": attempt(fcntl.fcntl, file, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 9, 1, 0)),
            "F_GETPIPE_SZ": attempt(fcntl.fcntl, reader, 1032),
            "F_DUPFD_CLOEXEC": attempt(lambda: os.close(fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 100))),
        }


def page_cache(path):
    """Whether a file's page can be taken from the page cache, and whether it can be told that it is there."""
    with open(path, "rb") as file:
        buffer = [bytearray(1)]

        def cached():
            try:
                return os.preadv(file.fileno(), buffer, 0, os.RWF_NOWAIT)
            except OSError as error:
                return errno_name(error.errno)

        os.preadv(file.fileno(), buffer, 0)
        before = cached()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return [before, cached()]


def scheduling():
    return [os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), raw(number("ioprio_get"), 1, 0) >> 13]


def become_urgent():
    return {
        "fifo": attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
        "nice": attempt(os.setpriority, os.PRIO_PROCESS, 0, -5),
        "io": call("ioprio_set", 1, 0, 1 << 13),
    }


def spin(*_):
    while True:
        pass


def core_filters():
    """What core dumps would hold: of this process, and of a program that it executes."""
    command = "print(open('/proc/self/coredump_filter').read())"
    executed = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    with open("/proc/self/coredump_filter") as file:
        return [int(text, 16) for text in (file.read(), executed.stdout)]


def crash_processes():
    """One that the job forks, and a program that it executes: how they ended."""
    forked = os.fork()
    if forked == 0:
        os.abort()
    _, status = os.waitpid(forked, 0)
    executed = subprocess.run([sys.executable, "-c", "import os; os.abort()"], check=False)
    return [os.waitstatus_to_exitcode(status), executed.returncode]


def sleep(seconds):
    time.sleep(seconds)


def take_epoll_watches():
    """All that the user has left: each counts once for a pair of an epoll and what it looks at."""
    for _ in range(40):
        if os.fork() == 0:
            pairs()
            time.sleep(1000)
    time.sleep(1000)


def pairs():
    """And what others give back, as it becomes free."""
    pipe, _ = os.pipe()
    watched = [os.dup(pipe) for _ in range(480)]
    try:
        while True:
            poll = select.epoll()
            KEPT.append((poll, watched))
            for descriptor in watched:
                while not register(poll, descriptor):
                    time.sleep(0.01)
    except OSError as error:
        assert error.errno == errno.EMFILE, error


def register(poll, descriptor):
    try:
        poll.register(descriptor, select.EPOLLIN)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    return True


KEPT = []


def ask_for_a_classifier(kind):
    """Have the kernel look for a classifier of the traffic control, by a request that asks for no right."""
    import socket
    import struct

    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
            # tcmsg: ifindex TCM_IFINDEX_MAGIC_BLOCK, a priority and ETH_P_ALL; rtnetlink(7), RTM_GETTFILTER.
            message = struct.pack("=BBHiIII", 0, 0, 0, -1, 0, 1, (1 << 16) | socket.htons(3))
            name = kind.encode() + b"\0"
            attribute = struct.pack("=HH", 4 + len(name), 1) + name
            message += attribute + b"\0" * (-len(attribute) % 4)
            route.sendto(struct.pack("=IHHII", 16 + len(message), 46, 5, 1, 0) + message, (0, 0))
            route.settimeout(5)
            route.recv(4096)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
