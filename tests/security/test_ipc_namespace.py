"""System V objects, message queues, shared memory, keyrings: the host's and other jobs'."""

import ctypes
import os

import pytest
from attacking import ATTACKS, attack, verdict, without

KEY = 0x5079_0001
LIBC = ctypes.CDLL(None, use_errno=True)
REMOVE = {
    "shmget": lambda number: LIBC.shmctl(number, 0, None),
    "semget": lambda number: LIBC.semctl(number, 0, 0),
    "msgget": lambda number: LIBC.msgctl(number, 0, None),
}
MAKE = {
    "shmget": lambda: LIBC.shmget(KEY, 4096, 0o1666),
    "semget": lambda: LIBC.semget(KEY, 1, 0o1666),
    "msgget": lambda: LIBC.msgget(KEY, 0o1666),
}
FIND = {
    "shmget": lambda: LIBC.shmget(KEY, 0, 0),
    "semget": lambda: LIBC.semget(KEY, 0, 0),
    "msgget": lambda: LIBC.msgget(KEY, 0),
}


def one_after_the_other(pyspawner, *jobs, off=()):
    config = without(off)
    done = pyspawner.map("ipc.main", jobs, "-j", "1", "--ordered", config=config, path=ATTACKS)
    return [verdict(line) for line in done.lines]


@pytest.mark.parametrize("kind", list(MAKE))
def test_objects_of_the_host_cannot_be_found(pyspawner, kind):
    made = MAKE[kind]()
    assert made >= 0
    try:
        assert attack(pyspawner, "ipc.attach", kind, KEY) == "ENOENT"
        assert attack(pyspawner, "ipc.attach", kind, KEY, off=["ipc_namespace"]) == "ok"
    finally:
        REMOVE[kind](made)


@pytest.mark.parametrize("kind", list(MAKE))
def test_objects_do_not_outlive_the_job(pyspawner, kind):
    jobs = ["leave", kind, KEY], ["attach", kind, KEY]
    try:
        assert one_after_the_other(pyspawner, *jobs) == ["ok", "ENOENT"]
        # The next job is another user, so the object's mode decides: it lets everybody.
        assert one_after_the_other(pyspawner, *jobs, off=["ipc_namespace"]) == ["ok", "ok"]
    finally:
        left = FIND[kind]()
        if left >= 0:
            REMOVE[kind](left)


def test_message_queues_of_the_host_cannot_be_found(pyspawner):
    name = b"/pyspawner-test"
    umask = os.umask(0)
    queue = LIBC.mq_open(name, os.O_RDWR | os.O_CREAT, 0o666, None)
    os.umask(umask)
    assert queue >= 0
    try:
        assert attack(pyspawner, "ipc.open_queue", name.decode()) == "ENOSYS"
        assert attack(pyspawner, "ipc.open_queue", name.decode(), off=["seccomp"]) == "ENOENT"
        assert attack(pyspawner, "ipc.open_queue", name.decode(), off=["seccomp", "ipc_namespace"]) == "ok"
    finally:
        os.close(queue)
        LIBC.mq_unlink(name)


@pytest.mark.parametrize("folder", ["/dev/shm", "/tmp"])
def test_shared_memory_is_each_jobs_own(pyspawner, folder):
    name = f"{folder}/pyspawner-test-{os.getpid()}"
    jobs = ["write_shared", name], ["read_shared", name]
    try:
        assert one_after_the_other(pyspawner, *jobs) == [True, "nothing"]
        assert not os.path.exists(name)
        assert one_after_the_other(pyspawner, *jobs, off=["root"]) == [True, "left behind"]
        assert attack(pyspawner, "ipc.read_shared", name) == "nothing"
    finally:
        if os.path.exists(name):
            os.unlink(name)


def test_keyrings(pyspawner):
    """Seccomp refuses them; without it, the user namespace gives each job keyrings of its own."""
    jobs = ["add_key", "a secret"], ["find_key"]
    assert one_after_the_other(pyspawner, *jobs) == ["ENOSYS", "ENOSYS"]
    assert attack(pyspawner, "ipc.request_key") == "ENOSYS"
    assert one_after_the_other(pyspawner, *jobs, off=["seccomp"]) == ["ok", "ENOKEY"]
    assert one_after_the_other(pyspawner, *jobs, off=["seccomp", "user_namespace"]) == ["ok", "a secret"]
