"""System calls that no honest program makes, and attempts to get around the filter."""

import ctypes
import os
import signal
import stat
import struct

from syscalls import attempt, call, libc, number, outcome, raw


def main(what, *args):
    return globals()[what](*args)


def calls(name, *args):
    return call(name, *args)


def numbers(wanted):
    """For each call by number, in a child process: the errno, or the signal that ended it."""
    found = {}
    for one in wanted:
        pid = os.fork()
        if pid == 0:
            ctypes.set_errno(0)
            raw(one, -1, -1, -1, -1, -1, -1)
            os._exit(ctypes.get_errno())
        status = os.waitpid(pid, 0)[1]
        found[one] = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return found


def install_handler_then_call(name):
    """Put a handler in the way of SIGSYS, then make a blocked call."""
    try:
        signal.signal(signal.SIGSYS, lambda *_: None)
        installed = True
    except OSError:
        installed = False
    return installed, call(name)


def set_action(number_of_signal):
    """rt_sigaction by number: the kernel reads an int, a filter 64 bits."""
    action = (ctypes.c_uint64 * 8)(1)  # SIG_IGN
    return outcome(raw(number("rt_sigaction"), number_of_signal, action, 0, 8))


def block_then_call():
    """With SIGSYS blocked, no handler runs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGSYS})
    return call("unshare", 0)


def call_with_another_result_channel():
    os.dup2(os.open("/dev/null", os.O_WRONLY), 3)
    return call("unshare", 0)


def call_in_thread():
    import threading

    thread = threading.Thread(target=call, args=("unshare", 0))
    thread.start()
    thread.join()
    return "alive"


def call_in_child():
    """A subprocess that makes a blocked call ends alone."""
    pid = os.fork()
    if pid == 0:
        call("unshare", 0)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return [os.WIFSIGNALED(status), os.WTERMSIG(status)]


def own_filter():
    """A filter of its own that would allow all."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    code = (ctypes.c_uint64 * 1)(0x7FFF0000_00000006)
    program = Program(1, ctypes.addressof(code))
    return call("seccomp", 1, 0, ctypes.byref(program)), call("prctl", 22, 2, ctypes.byref(program), 0, 0)


def ioctl(request):
    fd = os.open("/dev/null", os.O_RDONLY)
    return outcome(libc.ioctl(fd, ctypes.c_ulong(request), None))


def run_program(path):
    import subprocess

    done = subprocess.run([path], capture_output=True, text=True, check=False)
    return [done.returncode, done.stdout]


def clone_with(flag):
    pid = raw(number("clone"), flag | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return outcome(pid)


def set_id_bits(folder):
    """Every way to make a file that runs as its owner: what each was told, and what was made."""
    folder = f"{folder}/bits"
    os.mkdir(folder)

    def fresh(name):
        path = f"{folder}/{name}"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o755))
        return path

    def fchmod(mode):
        descriptor = os.open(fresh(f"fchmod{mode:o}"), os.O_RDWR)
        os.fchmod(descriptor, mode)

    def tmpfile(mode):
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, mode)
        os.link(f"/proc/self/fd/{descriptor}", f"{folder}/tmpfile{mode:o}", follow_symlinks=True)

    how = struct.Struct("QQQ")
    ways = {
        "chmod": lambda mode: os.chmod(fresh(f"chmod{mode:o}"), mode),
        "fchmod": fchmod,
        "lchmod": lambda mode: os.chmod(fresh(f"at{mode:o}"), mode, dir_fd=os.open(folder, os.O_RDONLY)),
        "open": lambda mode: os.open(f"{folder}/open{mode:o}", os.O_CREAT | os.O_WRONLY, mode),
        "tmpfile": tmpfile,
        "creat": lambda mode: libc.creat(f"{folder}/creat{mode:o}".encode(), mode),
        "mknod": lambda mode: os.mknod(f"{folder}/mknod{mode:o}", stat.S_IFREG | mode),
        "mkdir": lambda mode: os.mkdir(f"{folder}/mkdir{mode:o}", mode),
        "openat2": lambda mode: raw(
            437, -100, f"{folder}/openat2{mode:o}".encode(), how.pack(os.O_CREAT | os.O_WRONLY, mode, 0), how.size
        ),
    }
    os.umask(0)
    told = {f"{name} {mode:o}": attempt(way, mode) for name, way in ways.items() for mode in (0o4755, 0o2755, 0o6755)}
    made = [name for name in os.listdir(folder) if os.stat(f"{folder}/{name}").st_mode & 0o6000]
    return told, sorted(made)


def modes_that_are_not_read(path):
    """Without O_CREAT an open's mode says nothing; ordinary modes may be given."""
    openat = 257 if os.uname().machine == "x86_64" else 56
    plain = attempt(lambda: os.close(os.open("/tmp/new", os.O_CREAT | os.O_WRONLY, 0o1777)))
    return raw(openat, -100, path.encode(), os.O_RDONLY, 0o7777) >= 0, plain
