"""The network namespace, and sockets by path, which the root hides."""

import os
import socket
import threading

import pytest
from conftest import IN_VM
from attacking import Running, attack, attacks

NETWORK = ["network_namespace"]


def test_host_is_out_of_reach(pyspawner):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            connection, _ = server.accept()
            connection.sendall(b"host's secret")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert attack(pyspawner, "network.connect", port) == "ENETUNREACH"
        assert attack(pyspawner, "network.connect", port, off=NETWORK) == "host's secret"


def test_no_interface_is_up_and_none_can_be_raised(pyspawner):
    assert attack(pyspawner, "network.interfaces") == []
    assert attack(pyspawner, "network.raise_loopback") == "EPERM"
    assert "lo" in attack(pyspawner, "network.interfaces", off=NETWORK)
    assert attack(pyspawner, "network.raise_loopback", off=["drop_capabilities"]) == "ok"


def meet(pyspawner, kind, name, off=()):
    """What the one job got from a sibling that listens, and what the sibling saw."""
    with Running(pyspawner, "network.main", "-j", "2", off=off) as running:
        running.send("victim", kind, name)
        running.child()
        running.send("connect_by_name" if kind == "unix" else "connect", name)
        return [running.line()["result"] for _ in range(2)]


@pytest.mark.parametrize(
    ("kind", "name", "refused", "layer"),
    [
        ("inet", 45_678, "ENETUNREACH", "network_namespace"),
        ("unix", "@pyspawner-test", "ECONNREFUSED", "network_namespace"),
        ("unix", "/tmp/pyspawner-test", "ENOENT", "root"),
    ],
    ids=["loopback", "abstract", "path"],
)
def test_siblings_cannot_meet(pyspawner, kind, name, refused, layer):
    """Nor pass each other descriptors (SCM_RIGHTS), which is what the control does."""
    gift = ["a descriptor"] if kind == "unix" else "sibling"
    try:
        if kind == "inet":  # the loopback interface of an own namespace is down
            assert attack(pyspawner, "network.connect", name) == refused
        else:
            assert meet(pyspawner, kind, name) == [refused, "nobody came"]
        assert sorted(map(str, meet(pyspawner, kind, name, [layer]))) == sorted([str(gift), "somebody came"])
    finally:
        if str(name).startswith("/") and os.path.exists(name):
            os.unlink(name)


def test_abstract_sockets_of_the_host_are_out_of_reach(pyspawner):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0pyspawner-test-host")
        server.listen()
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        assert attack(pyspawner, "network.connect_by_name", "@pyspawner-test-host") == "ECONNREFUSED"
        assert attack(pyspawner, "network.connect_by_name", "@pyspawner-test-host", off=NETWORK) == "ok"


def test_sockets_of_host_services_are_out_of_reach(pyspawner):
    """Neither a read-only mount nor a network namespace keeps a job from them."""
    path = f"/run/pyspawner-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        try:
            os.chmod(path, 0o777)
            server.listen()
            threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
            assert attack(pyspawner, "network.connect_by_name", path) == "ENOENT"
            assert attack(pyspawner, "network.connect_by_name", path, off=["root"]) == "ok"
        finally:
            os.unlink(path)


def test_raw_sockets_need_a_capability(pyspawner):
    assert attack(pyspawner, "network.open_socket", "raw") == "EPERM"
    assert attack(pyspawner, "network.open_socket", "raw", off=["drop_capabilities"]) == "ok"


def test_seccomp_refuses_other_families_and_netlink_protocols(pyspawner):
    names = ["packet", "vsock", "netlink audit", "netlink netfilter", "netlink uevent", "netlink generic", "alg"]
    tried = [[name] for name in [*names, "netlink sock_diag"]]
    assert set(attacks(pyspawner, "network.open_socket", tried).values()) == {"ENOSYS"}
    control = attacks(pyspawner, "network.open_socket", tried, off=["seccomp", "drop_capabilities"])
    assert "ENOSYS" not in control.values()
    assert control["packet"] == control["netlink uevent"] == control["netlink generic"] == "ok"


def test_seccomp_leaves_four_families(pyspawner):
    def families(*off):
        return {tuple(pair) for pair in attack(pyspawner, "network.socket_families", off=off)}

    allowed = families()
    assert {family for family, _ in allowed} <= {1, 2, 10, 16}
    assert (16, 0) in allowed and (16, 12) not in allowed
    control = families("seccomp")
    # The virtual machine's kernel has no further family to show.
    assert IN_VM or (16, 12) in control or {family for family, _ in control} - {1, 2, 10, 16}
