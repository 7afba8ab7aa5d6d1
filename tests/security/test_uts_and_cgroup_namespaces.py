"""Host name and control groups."""

import os
import socket

from attacking import attack


def test_host_name_is_hidden(pyspawner):
    assert attack(pyspawner, "identity.host_name") == "sandbox" != socket.gethostname()
    assert attack(pyspawner, "identity.host_name", off=["uts_namespace"]) == socket.gethostname()


def test_host_name_cannot_be_set(pyspawner):
    """Blocked; without that, for want of a capability; without either, only the job's own."""
    before = socket.gethostname()
    assert attack(pyspawner, "identity.set_host_name") == "blocked sethostname"
    assert attack(pyspawner, "identity.set_host_name", off=["seccomp"]) == "EPERM"
    assert attack(pyspawner, "identity.set_host_name", off=["seccomp", "drop_capabilities"]) == "ok"
    assert socket.gethostname() == before


def test_cgroup_is_hidden(pyspawner):
    ours = os.readlink("/proc/self/ns/cgroup")
    assert attack(pyspawner, "identity.namespace", "cgroup") != ours
    assert attack(pyspawner, "identity.namespace", "cgroup", off=["cgroup_namespace"]) == ours
