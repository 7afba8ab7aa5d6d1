"""The network namespace, and sockets by path, which the root hides."""

import os
import socket
import threading

import pytest
from attacking import Running, attack, attacks
from driving import IN_VM, JOBS

LOOPBACK = '[profile.default]\nnetwork = "loopback"\n'
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
    assert attack(pyspawner, "network.open_socket", "raw") == "ENOSYS"
    assert attack(pyspawner, "network.open_socket", "raw", off=["seccomp"]) == "EPERM"
    assert attack(pyspawner, "network.open_socket", "raw", off=["seccomp", "drop_capabilities"]) == "ok"


def test_seccomp_refuses_other_families_and_netlink_protocols(pyspawner):
    names = ["packet", "vsock", "netlink audit", "netlink netfilter", "netlink uevent", "netlink generic", "alg"]
    tried = [[name] for name in [*names, "netlink sock_diag"]]
    assert set(attacks(pyspawner, "network.open_socket", tried).values()) == {"ENOSYS"}
    control = attacks(pyspawner, "network.open_socket", tried, off=["seccomp", "drop_capabilities"])
    assert "ENOSYS" not in control.values()
    assert control["packet"] == control["netlink uevent"] == control["netlink generic"] == "ok"


def test_seccomp_leaves_three_families_and_one_with_a_network(pyspawner):
    def families(*off, config=""):
        return {tuple(pair) for pair in attack(pyspawner, "network.socket_families", off=off, config=config)}

    assert {family for family, _ in families()} <= {1, 2, 10}
    # Netlink, by which the kernel can be had to load modules, is there only for a job with a network, and routes alone.
    allowed = families(config='network = "loopback"\n')
    assert {family for family, _ in allowed} <= {1, 2, 10, 16}
    assert (16, 0) in allowed and (16, 12) not in allowed
    control = families("seccomp")
    # The virtual machine's kernel has no further family to show.
    assert IN_VM or (16, 12) in control or {family for family, _ in control} - {1, 2, 10, 16}


# ---- a loopback interface of the job's own ---------------------------------------------------


def addresses_of_this_machine():
    """By its name, which not every machine's resolver knows."""
    try:
        return [socket.gethostbyname(socket.gethostname())]
    except socket.gaierror:
        return []


def test_a_loopback_interface_leads_to_nobody_else(pyspawner):
    """Not to the host, by whatever address of its, nor to anybody whom the host reaches."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            for _ in range(2):
                server.accept()[0].sendall(b"host's secret")

        threading.Thread(target=answer, daemon=True).start()
        own = [*addresses_of_this_machine(), "127.0.0.1", "127.9.9.9"]
        targets = [[address, port] for address in own]
        others = [[address, 80] for address in ("192.0.2.1", "10.0.0.1", "169.254.169.254", "2001:db8::1", "fd00::1")]
        found = pyspawner.value("loopback.reach", *targets, *others, config=LOOPBACK)
        assert found[1:3] == ["ECONNREFUSED"] * 2 and "host's secret" not in found
        assert set(found[3:]) == {"ENETUNREACH"}
        # The control: without the namespace it is the host's own.
        config = '[profile.default]\nskip_layers = ["network_namespace"]\n'
        found = pyspawner.value("loopback.reach", *targets[1:], config=config)
        assert found == ["host's secret"] * 2


def test_the_host_reaches_nobody_by_it(pyspawner):
    with Running(pyspawner, "loopback.main", config='network = "loopback"\n', path=JOBS) as running:
        running.send("listen", 45_679, "pyspawner-test-own")
        running.child()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 45_679), timeout=5)


def test_siblings_with_loopback_cannot_meet(pyspawner):
    """Each listens at the same port and the same name, and reaches itself alone."""

    def reached(off=()):
        config = "" if off else 'network = "loopback"\n'
        with Running(pyspawner, "loopback.main", "-j", "2", config=config, off=off, path=JOBS) as running:
            running.send("listen", 45_680, "pyspawner-test-sibling")
            running.child()
            running.send("reach", ["127.0.0.1", 45_680])
            by_port = running.line()["result"]
            running.send("reach_abstract", "pyspawner-test-sibling")
            return by_port, running.line()["result"]

    assert reached() == (["ECONNREFUSED"], "ECONNREFUSED")
    assert reached(NETWORK) == (["a job's"], "ok")


def test_a_namespace_with_loopback_is_used_once(pyspawner):
    """What was sent there shows in its counters. Between are jobs of the same host that have none."""
    done = pyspawner.map("loopback.remember", [[]] * 20, "-j", "2", config=LOOPBACK)
    found = [line["result"] for line in done.lines]
    assert {before for before, _ in found} == {0}, found


def test_a_job_cannot_change_its_loopback_interface(pyspawner):
    assert pyspawner.value("loopback.lower_loopback", config=LOOPBACK) == "EPERM"
    config = LOOPBACK + 'skip_layers = ["drop_capabilities"]\n'
    assert pyspawner.value("loopback.lower_loopback", config=config) == "ok"
