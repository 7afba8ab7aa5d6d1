"""What the children of test_contract.py do. Imports nothing that a chroot would lack."""

import ctypes
import errno
import os
import socket
import subprocess
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


def own_name():
    name = ctypes.create_string_buffer(16)
    ctypes.CDLL(None).prctl(16, name, 0, 0, 0)
    print(name.value.decode())


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


def write_everywhere():
    print("print")
    sys.__stdout__.write("__stdout__\n")
    os.write(1, b"descriptor\n")
    print("print", file=sys.stderr)
    sys.__stderr__.write("__stderr__\n")
    os.write(2, b"descriptor\n")


def import_missing():
    import no_such_module  # noqa: F401


def write_id_maps():
    """As who has left out all layers, and might be thought to have the power."""
    for name in ("uid_map", "gid_map", "setgroups"):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write("allow" if name == "setgroups" else "0 0 65536")
            print(name, "written")
        except PermissionError:
            print(name, "PermissionError")


def kernel_folders():
    print([path for path in ("/proc", "/sys", "/dev") if os.path.exists(path)], os.getcwd())


def run_program(path):
    done = subprocess.run([path], capture_output=True, check=False)
    print(done.returncode, done.stdout, done.stderr)


def become_root():
    print(os.getuid(), os.getgid())
    for function in (os.setuid, os.setgid):
        try:
            function(0)
            print("root")
        except PermissionError:
            print("PermissionError")


def ambient_capability():
    PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_SYS_CHROOT = 47, 1, 18
    print(ctypes.CDLL(None).prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_SYS_CHROOT, 0, 0))


def connection_error(address, port):
    with socket.socket() as connection:
        try:
            connection.connect((address, port))
            print("connected")
        except OSError as error:
            print(errno.errorcode[error.errno])
