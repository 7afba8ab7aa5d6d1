"""What the children of test_contract.py do. Imports nothing that a chroot would lack."""

import ctypes
import os
import socket
import sys
import threading  # noqa: F401  (imported here, since a chroot has no standard library)


def main(name, *args):
    globals()[name](*args)


def talk():
    print("to stdout")
    print("to stderr", file=sys.stderr)


def echo():
    sys.stdout.write(sys.stdin.read().upper())


def fail(text):
    raise ValueError(text)


def environment():
    print(sorted(os.environ.items()))


def arguments(*args):
    print(args)


def descriptors():
    found = []
    for descriptor in range(512):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.append(descriptor)
    print(found)


def identity():
    print(os.getpid(), os.getuid(), os.getgid())


def path():
    print(repr(sys.path[0]))


def set_uid():
    # The call itself: the C library would refuse it without making it.
    ctypes.CDLL(None).syscall(105 if os.uname().machine == "x86_64" else 146, 0)
    print("still here")


def no_new_privs():
    print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))


def chroot():
    try:
        os.chroot("/")
    except PermissionError:
        print("PermissionError")


def surroundings():
    print(sorted(os.listdir("/")), os.getcwd())


def execute(program):
    os.execv(program, [program, "argument"])


def write_uid_map():
    for file in ("/proc/self/uid_map", "/proc/1/uid_map"):
        try:
            with open(file, "w") as opened:
                opened.write("0 0 4294967295")
        except OSError:
            continue
        print("written")
    print("done")


def connect(address, port):
    try:
        with socket.socket() as connection:
            connection.connect((address, port))
            print(connection.recv(100).decode())
    except OSError as error:
        print(type(error).__name__)


def sleep(seconds):
    import time

    print("here", flush=True)
    time.sleep(seconds)
