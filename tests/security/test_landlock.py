"""Landlock alone: the other layers that stop the same attack are off."""

import os
import socket
from pathlib import Path

import pytest
from driving import skipping

JOBS = Path(__file__).parent / "jobs"
SCOPES = "signals and abstract sockets"


@pytest.fixture(scope="module")
def landlock_abi():
    import ctypes

    number = 444  # landlock_create_ruleset, the same on all architectures
    return ctypes.CDLL(None).syscall(number, None, ctypes.c_size_t(0), 1)


def attack(pyspawner, name, *args, off):
    return pyspawner.value(f"files.{name}", *args, path=JOBS, config=skipping(*off))


def test_writing_without_the_root_layer(pyspawner, open_folder):
    """The mount that makes the tree read-only is missing: a mistake, say."""
    changes = attack(pyspawner, "all_of", str(open_folder), off=["root"])
    assert changes.pop("remove") in ("ENOENT", "EACCES")
    assert set(changes.values()) <= {"EACCES", "ENOENT", "EXDEV"}, changes
    assert list(open_folder.iterdir()) == []
    changes = attack(pyspawner, "all_of", str(open_folder), off=["root", "landlock"])
    assert changes["make"] == changes["write"] == changes["fifo"] == changes["socket"] == "ok"


def test_fifos_of_the_host(pyspawner, open_folder):
    """A read-only mount does not stop writing to a FIFO."""
    fifo = open_folder / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert attack(pyspawner, "append", str(fifo), off=[]) == "EACCES"
        assert attack(pyspawner, "append", str(fifo), off=["landlock"]) == "ok"
        assert os.read(reader, 10) == b"owned"
    finally:
        os.close(reader)


def test_abstract_sockets(pyspawner, landlock_abi):
    if landlock_abi < 6:
        return print(f"ABI {landlock_abi} does not know {SCOPES}")
    name = f"pyspawner-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        off = ["network_namespace"]
        assert attack(pyspawner, "connect_abstract", name, off=off) == "EPERM"
        assert attack(pyspawner, "connect_abstract", name, off=[*off, "landlock"]) == "ok"
    assert attack(pyspawner, "own_abstract_socket", off=[]) == "ok"


def test_signals(pyspawner, landlock_abi):
    if landlock_abi < 6:
        return print(f"ABI {landlock_abi} does not know {SCOPES}")
    off = ["pid_namespace", "user_namespace", "setuid", "drop_capabilities", "no_new_privs", "seccomp"]

    def signal_host(*more):
        config = skipping(*off, *more) + 'proc = "none"\n'
        return pyspawner.value("files.send_signal", os.getpid(), path=JOBS, config=config)

    assert signal_host() == "EPERM"
    assert signal_host("landlock") == "ok"
    assert attack(pyspawner, "signal_own_children", off=[]) == 9


def test_honest_work_is_left_alone(pyspawner):
    assert attack(pyspawner, "ordinary_work", off=[]) == [[1, 2], "sub\n"]
