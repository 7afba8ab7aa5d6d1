"""Small jobs for the tests."""

import ctypes
import os
import sys
import time


def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


def nothing(*_):
    return None


def greet(*names):
    print("hello", *names)
    print("warning", file=sys.stderr)


def copy_stdin():
    return sys.stdin.read()


def cat():
    sys.stdout.write(sys.stdin.read().upper())


def fail(text="no"):
    raise ValueError(text)


def leave(status):
    sys.exit(int(status) if str(status).lstrip("-").isdigit() else status)


def leave_at_once(status):
    os._exit(status)


def die(signal):
    import ctypes

    # PID 1 ignores a signal from inside; a fault is not ignored.
    assert signal == 11
    ctypes.string_at(0)


def sleep(seconds):
    time.sleep(float(seconds))
    return seconds


def sleep_as(name, seconds):
    """Sleep under a name that others can see."""
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
    return sleep(seconds)


def write(count, stream="stdout", text="x"):
    getattr(sys, stream).write(text * count)


def write_bytes(values):
    os.write(1, bytes(values))


def not_json():
    return object()


def not_a_number():
    return float("nan")


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def _channel():
    """The number of the result channel: the highest that is open."""
    return max(int(number) for number in os.listdir("/proc/self/fd"))


def forge(data):
    os.write(_channel(), data.encode("latin-1"))


def forge_or_not(data):
    if data is None:
        return "honest"
    forge(data)
    os._exit(0)


def unprintable():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    raise Unprintable


def after_exit_handler():
    import atexit

    atexit.register(print, "handler ran")


def leave_thread_running():
    import threading

    threading.Thread(target=lambda: (time.sleep(0.2), print("thread ended"))).start()


def host_facts():
    import pyspawner_host

    pyspawner_host.progress(0.5, "half")
    return {"id": pyspawner_host.job_id(), "deadline": pyspawner_host.deadline(), "now": time.time()}


def surroundings():
    """All that a child sees of where it is."""
    with open("/proc/self/environ") as file:
        environ_file = file.read()
    with open("/proc/self/cmdline") as file:
        command_line = file.read()
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    with open("/proc/net/route") as file:
        route = file.read()
    with open("/proc/net/ipv6_route") as file:
        # Each namespace has an entry that refuses (RTF_REJECT): no way anywhere.
        route += "".join(line for line in file if not int(line.split()[8], 16) & 0x200)
    return {
        "descriptors": {n: _target(n) for n in os.listdir("/proc/self/fd") if _target(n)},
        "environ": dict(os.environ),
        "environ_file": environ_file,
        "command_line": command_line,
        "processes": [int(n) for n in os.listdir("/proc") if n.isdigit()],
        "route": route,
        "status": status,
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "path_start": sys.path[0],
        "executable": sys.executable,
        "cwd": os.getcwd(),
    }


def _target(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:  # of the listing itself
        return None


def terminal_modes():
    """Read the modes of the terminal on standard input, and set them in each of the three ways."""
    import fcntl

    modes = fcntl.ioctl(0, 0x802C542A, bytes(44))  # TCGETS2
    for request in (0x402C542B, 0x402C542C, 0x402C542D):  # TCSETS2, TCSETSW2, TCSETSF2
        fcntl.ioctl(0, request, modes)
    print(os.isatty(0))


def recurse():
    """What too deep a recursion ends as: in Python, and in two C functions."""
    import json

    nested = []
    for _ in range(100_000):
        nested = [nested]

    def call():
        call()

    ends = []
    for function in (call, lambda: repr(nested), lambda: json.dumps(nested)):
        try:
            function()
        except RecursionError:
            ends.append("RecursionError")
    return ends
