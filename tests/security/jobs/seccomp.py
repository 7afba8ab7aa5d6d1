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
    answer = outcome(raw(number("rt_sigaction"), number_of_signal, action, 0, 8))
    ignored = int(open("/proc/self/status").read().split("SigIgn:\t")[1].split()[0], 16)
    return [answer, "ignored" if ignored & 1 << 30 else "a handler"]


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


def debug():
    """Have another Python process run a script, through what debuggers use (``sys.remote_exec``)."""
    import subprocess
    import sys
    import time

    with open("/tmp/script.py", "w") as script:
        script.write("open('/tmp/ran', 'w').close()")
    other = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(0.05)"])
    time.sleep(0.5)  # until it is a Python process
    sys.remote_exec(other.pid, "/tmp/script.py")
    for _ in range(100):
        if os.path.exists("/tmp/ran"):
            return True
        time.sleep(0.05)
    return False


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
        descriptor = os.open(fresh(f"fchmod-{mode:o}"), os.O_RDWR)
        os.fchmod(descriptor, mode)

    def tmpfile(mode):
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, mode)
        source, target, follow = f"/proc/self/fd/{descriptor}", f"{folder}/tmpfile-{mode:o}", 0x400
        libc.linkat(-100, source.encode(), -100, target.encode(), follow)

    def call(intel, arm, *args):
        """By number, since the C library has its own ways; None where there is no such call."""
        number = intel if os.uname().machine == "x86_64" else arm
        if number is not None and raw(number, *args) < 0:
            raise OSError(ctypes.get_errno(), "")

    def path(way, mode):
        return f"{folder}/{way}-{mode:o}".encode()

    how = struct.Struct("QQQ")
    make = os.O_CREAT | os.O_WRONLY
    ways = {
        "chmod": lambda mode: call(90, None, fresh(f"chmod-{mode:o}").encode(), mode),
        "fchmod": fchmod,
        "fchmodat": lambda mode: call(268, 53, -100, fresh(f"fchmodat-{mode:o}").encode(), mode),
        "fchmodat2": lambda mode: call(452, 452, -100, fresh(f"fchmodat2-{mode:o}").encode(), mode, 0),
        "open": lambda mode: call(2, None, path("open", mode), make, mode),
        "openat": lambda mode: call(257, 56, -100, path("openat", mode), make, mode),
        "creat": lambda mode: call(85, None, path("creat", mode), mode),
        "mknod": lambda mode: call(133, None, path("mknod", mode), stat.S_IFREG | mode, 0),
        "mknodat": lambda mode: call(259, 33, -100, path("mknodat", mode), stat.S_IFREG | mode, 0),
        "tmpfile": tmpfile,
        "openat2": lambda mode: call(437, 437, -100, path("openat2", mode), how.pack(make, mode, 0), how.size),
        "mkdir": lambda mode: os.mkdir(path("mkdir", mode), mode),
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
