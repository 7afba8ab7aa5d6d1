"""Users, groups, capabilities, and programs that promise more of them."""

import os
import socket
import subprocess

from syscalls import attempt, call, errno_name, libc, number, outcome, raw


def main(what, *args):
    return globals()[what](*args)


def ids():
    return {"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups()}


def host_name():
    return socket.gethostname()


def set_host_name():
    return call("sethostname", b"owned", 5)


def namespace(kind):
    return os.readlink(f"/proc/self/ns/{kind}")


def cgroup():
    return open("/proc/self/cgroup").read()


def run_program(path, *args):
    try:
        return subprocess.run([path, *args], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        return errno_name(error.errno)


def become(name, *args):
    """Change an id, and say whether it worked."""
    return call(name, *args)


def read_file(path):
    return attempt(lambda: open(path).read())


def capabilities():
    lines = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    return {name: int(value, 16) for name, value in lines.items() if name.startswith("Cap")}


def raise_ambient():
    return call("prctl", 47, 2, 13, 0, 0)


def drop_no_new_privs():
    return call("prctl", 38, 0, 0, 0, 0)


def clear_securebits():
    return call("prctl", 28, 0, 0, 0, 0)


def unshare():
    return call("unshare", 0x10000000)


def clone_new_user_namespace():
    pid = raw(number("clone"), 0x10000000 | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return outcome(pid)


def clone3_new_user_namespace():
    import ctypes

    arguments = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17, 0, 0, 0)
    pid = raw(number("clone3"), arguments, 64)
    if pid == 0:
        os._exit(0)
    return outcome(pid)


def enter(kind, pid):
    """A namespace of another process, if its file can be opened."""
    try:
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
    except OSError:
        fd = -1
    return call("setns", fd, 0)


def write_map(name):
    """Another host id, or the right to give one."""

    def write():
        with open(f"/proc/self/{name}", "w") as file:
            file.write("allow" if name == "setgroups" else "0 0 1")

    return attempt(write)


def become_root_in_new_namespace():
    """The usual first step: capabilities over a namespace of one's own, then a mount."""
    if libc.unshare(0x10000000 | 0x00020000) == -1:
        return outcome(-1)
    return call("mount", b"x", b"/tmp", b"tmpfs", 0, 0)
