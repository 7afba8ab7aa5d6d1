"""What tests see of a host and its children from outside."""

import os
import platform
import subprocess
import time
from pathlib import Path


def host_of(process):
    """The process id of a started command's host: its own, or its child's behind an init."""
    command = ["pgrep", "-f", "--", "--as-host"]
    family = [process.pid, *children_of(process.pid)]
    hosts = [int(pid) for pid in subprocess.run(command, capture_output=True, check=False).stdout.split()]
    return next((pid for pid in family if pid in hosts), None)


def wait_until(condition, seconds=30):
    """Wait for what takes longer on slow machines."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come true"
        time.sleep(0.05)


def children_of(pid):
    """The living children of a process, zombies included."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def parked(process):
    """The children of a host that wait for a job: in their sandbox, at their control socket."""
    recvmsg = {"x86_64": "47", "aarch64": "212"}[platform.machine()]

    def waits(pid):
        try:
            with open(f"/proc/{pid}/status") as status, open(f"/proc/{pid}/syscall") as call:
                return "Seccomp:\t2" in status.read() and call.read().split()[0] == recvmsg
        except (FileNotFoundError, ProcessLookupError):
            return False

    return [pid for pid in children_of(host_of(process)) if waits(pid)]


def _links(host):
    """What the descriptors of all threads of a process lead to. Its main thread has a table of its own."""
    links = []
    for folder in Path(f"/proc/{host}/task").glob("*/fd"):
        for descriptor in folder.iterdir():
            try:
                links.append(os.readlink(descriptor))
            except FileNotFoundError:
                pass
    return links


def slots_of(host):
    """The network namespaces that a host keeps for its children, by name."""
    home = os.readlink(f"/proc/{host}/ns/net")
    return {link for link in _links(host) if link.startswith("net:[")} - {home}


def unslotted(host):
    """How many descriptors a host has open, but for those of slots, which come and go."""
    return sum(not link.startswith("net:[") for link in _links(host))


def name_of(pid):
    """What a process calls itself."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def is_alive(pid):
    """Whether a process runs; one that has ended may wait for an init that is slow to reap."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it is reaped meanwhile
        return False
