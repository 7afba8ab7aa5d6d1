"""Attacks on other processes: the host and a sibling."""

import ctypes
import os
import signal
import time

from syscalls import attempt, call, libc, named, outcome


def main(what, *args):
    return globals()[what](*args)


def victim(seconds):
    named("victim")
    time.sleep(seconds)
    return "unharmed"


def kill(pid):
    return attempt(os.kill, pid, 0)


def kill_group(pid):
    return attempt(os.killpg, pid, 0)


def queue_signal(pid):
    return outcome(libc.sigqueue(pid, 0, None))


def pidfd(pid):
    return attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0))


def priority(pid):
    return attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid)))


def affinity(pid):
    return attempt(lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid)))


def limits(pid):
    import resource

    return attempt(lambda: resource.prlimit(pid, resource.RLIMIT_CORE))


def proc_mem(pid):
    return attempt(lambda: open(f"/proc/{pid}/mem", "rb").close())


def proc_environ(pid):
    return attempt(lambda: open(f"/proc/{pid}/environ", "rb").close())


def proc_root(pid):
    return attempt(os.listdir, f"/proc/{pid}/root")


def ptrace(pid):
    return call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE: does not stop it


def process_vm_readv(pid):
    buffer = ctypes.create_string_buffer(8)
    mine = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    # A clone has its host's address layout.
    theirs = (ctypes.c_void_p * 2)(ctypes.cast(libc.getpid, ctypes.c_void_p).value, 8)
    return call("process_vm_readv", pid, mine, 1, theirs, 1, 0)


def pidfd_getfd(pid):
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        fd = -1
    return call("pidfd_getfd", fd, 0, 0)


def kcmp(pid):
    return call("kcmp", os.getpid(), pid, 0, 0, 0)


def signal_all():
    """SIGKILL to everything that can be seen, to all groups, and to many numbers."""
    for target in (-1, 0, *range(2, 400)):
        attempt(os.kill, target, signal.SIGKILL)
        if target > 1:
            attempt(os.killpg, target, signal.SIGKILL)
    return "alive"


def processes():
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def leave_descendant(seconds):
    """A descendant that is no longer of this session, and whose parent is gone."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            # An orphan that asks not to be ended with its parent.
            libc.prctl(1, 0, 0, 0, 0)
            os.write(write, str(os.getpid()).encode())
            os.close(write)
            time.sleep(seconds)
        os._exit(0)
    os.close(write)
    return int(os.read(read, 20))


def execute_from_thread(seconds):
    """Becomes another program, from a thread that is not the first."""
    import threading

    threading.Thread(target=os.execv, args=("/bin/sleep", ["sleep", seconds])).start()
    threading.Event().wait()
