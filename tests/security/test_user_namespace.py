"""The user namespace: a host uid for each child, and no way to another."""

import os
import time

import pytest
from attacking import ALL_BUT_PID, INSIDE, Running, attack, attacks
from processes import children_of


def host_uids(pyspawner, *off):
    with Running(pyspawner, "processes.main", "-j", "2", off=off) as running:
        running.send("victim", 60)
        running.child()
        running.send("victim", 60)
        time.sleep(0.5)
        return [os.stat(f"/proc/{child}").st_uid for child in children_of(running.host)]


def test_each_child_has_a_host_uid_of_its_own(pyspawner):
    first, second = host_uids(pyspawner)
    assert first != second and min(first, second) >= 10_000
    assert host_uids(pyspawner, "user_namespace") == [INSIDE, INSIDE]


@pytest.mark.parametrize("name", ["uid_map", "gid_map", "setgroups"])
def test_maps_cannot_be_written(pyspawner, name):
    assert attack(pyspawner, "identity.write_map", name) == "EROFS"
    # They are written once, by the host, so that nothing but a namespace of its own helps.
    assert attack(pyspawner, "identity.write_map", name, off=["root"]) in ("EPERM", "EACCES")


def test_seccomp_against_new_namespaces(pyspawner):
    def make(*off):
        names = [["unshare"], ["clone_new_user_namespace"], ["clone3_new_user_namespace"]]
        return list(attacks(pyspawner, "identity.main", names, off=off).values())

    assert make() == ["blocked unshare", "ENOSYS", "ENOSYS"]
    assert make("seccomp") == ["ok", "ok", "ok"]


def test_a_new_namespace_would_give_capabilities(pyspawner):
    assert attack(pyspawner, "identity.become_root_in_new_namespace") == "blocked unshare"
    assert attack(pyspawner, "identity.become_root_in_new_namespace", off=["seccomp"]) == "ok"


@pytest.mark.parametrize("kind", ["user", "mnt", "net", "ipc", "uts", "cgroup", "pid"])
def test_other_namespaces_cannot_be_entered(pyspawner, kind):
    assert attack(pyspawner, "identity.enter", kind, 1) == "blocked setns"
    # Without seccomp there is only its own to enter, and that takes a capability.
    assert attack(pyspawner, "identity.enter", kind, 1, off=["seccomp"]) in ("EPERM", "EINVAL")
    assert attack(pyspawner, "identity.enter", kind, os.getpid(), off=["seccomp"]) == "EBADF"
    control = attack(pyspawner, "identity.enter", kind, os.getpid(), off=ALL_BUT_PID)
    # A process cannot enter the user namespace it is in, nor a PID namespace above its own.
    assert control == ("EINVAL" if kind in ("user", "pid") else "ok")
