"""Network namespaces that several jobs have, one after the other: what one leaves, the next must not find."""

import os
import random
import socket
import subprocess
import sys
import threading
import time

import pytest
from attacking import ATTACKS, Running, without
from driving import IN_VM
from processes import children_of, slots_of, unslotted, wait_until

# An ordinary user's host cannot come back from another network namespace, so it has none to reuse.
pytestmark = pytest.mark.skipif(IN_VM and os.getuid() != 0, reason="there are no slots for an ordinary user")

JOB = "network_slots.main"


def in_turn(pyspawner, jobs, off=(), config="", **options):
    """What each of these jobs returned, of which none was made before its predecessor was gone."""
    config = without(off) + config
    done = pyspawner.map(JOB, jobs, "-j", "1", "--ordered", config=config, path=ATTACKS, spares=0, **options)
    assert [line["outcome"] for line in done.lines] == ["ok"] * len(jobs), done
    return [line["result"] for line in done.lines]


def at_once(pyspawner, jobs):
    """The same of jobs that run beside each other."""
    done = pyspawner.map(JOB, jobs, "-j", str(len(jobs)), config=without(["landlock"]), path=ATTACKS, spares=0)
    assert [line["outcome"] for line in done.lines] == ["ok"] * len(jobs), done
    return [line["result"] for line in done.lines]


# ---- who is in which ----------------------------------------------------------------------


def test_quiet_jobs_have_one_namespace_in_turn(pyspawner):
    """All that follows is about it."""
    first, *others = in_turn(pyspawner, [["namespace"]] * 5)
    assert set(others) == {first} != {os.stat("/proc/self/ns/net").st_ino}


def test_a_namespace_in_which_something_happened_is_not_used_again(pyspawner):
    jobs = [["namespace"], ["raise_counter"], ["namespace"], ["namespace"]]
    before, _, after, later = in_turn(pyspawner, jobs)
    assert before != after == later


def test_siblings_never_share_one(pyspawner):
    found = at_once(pyspawner, [["namespace", 1]] * 6)
    assert len(set(found)) == 6


@pytest.mark.parametrize(
    "config",
    [
        '[profile.default]\nbinds = [{ source = "/var/tmp", target = "/var/tmp", writable = true }]\n',
        '[profile.default]\nskip_layers = ["seccomp"]\n',
        '[profile.default]\nskip_layers = ["drop_capabilities"]\n',
    ],
    ids=["common-place", "seccomp", "drop_capabilities"],
)
def test_jobs_that_could_do_more_have_one_each(pyspawner, config):
    """With a place in common, one could hand another an open file of its /proc/net."""
    done = pyspawner.map(JOB, [["namespace"]] * 3, "-j", "1", config=config, path=ATTACKS, spares=0)
    # An inode's number is free again once its namespace has ended, which takes the kernel a while.
    assert len({line["result"] for line in done.lines}) > 1, done


# ---- what is left to the next ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leave", "look", "nothing"),
    [
        ("raise_counter", "counter", 0),
        ("leave_listener", "listener", False),
        ("leave_port", "port", False),
    ],
)
def test_the_next_job_finds_nothing(pyspawner, leave, look, nothing):
    """Nor does Landlock help, which keeps a job from abstract sockets of others."""
    first, left, *found = in_turn(pyspawner, [[look], [leave], [look], [look]], off=["landlock"])
    assert left not in (nothing, first), "the control: it can be seen by who left it"
    assert first == nothing and found == [nothing, nothing]


def test_a_group_that_was_left_is_not_reported_in_the_next_jobs_time(pyspawner):
    """The kernel would do so a second later, when no look at the namespace could have shown it."""
    script = [sys.executable, str(ATTACKS / "network_slots.py"), "leave_group", "reports"]
    control = subprocess.run(["unshare", "-n", *script], capture_output=True, text=True, check=True)
    assert control.stdout == "True\n"
    jobs = [["namespace"], ["leave_group"], ["reports"], ["namespace"]]
    _, _, found, _ = in_turn(pyspawner, jobs, off=["seccomp"])
    assert not found
    # With the filter no job without a network joins a group, and the namespace is used again.
    done = pyspawner.map(JOB, jobs, "-j", "1", "--ordered", path=ATTACKS, spares=0)
    before, joined, reports, after = done.lines
    assert joined["outcome"] == "exited" and "Function not implemented" in joined["stderr"], joined
    assert not reports["result"] and before["result"] == after["result"]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_there_is_no_way_even_to_itself(pyspawner, address):
    """So no connection can be left to time out (TIME_WAIT)."""
    (refused,) = in_turn(pyspawner, [["connect_to_itself", address]])
    (control,) = in_turn(pyspawner, [["connect_to_itself", address]], off=["network_namespace"])
    assert control == 0 != refused


def test_cookies_are_counted_by_the_machine(pyspawner):
    """A namespace's own count, as before Linux 5.10, would tell how many sockets others had."""
    (first, here), (second, there) = at_once(pyspawner, [["cookie", 1]] * 2)
    assert here != there and first != second


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_a_socket_that_outlives_its_job_keeps_the_namespace_from_others(pyspawner, open_folder, kind):
    kept = []

    def keep(server):
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            kept.extend(socket.recv_fds(connection, 1, 1)[1])
            connection.send(b"x")

    with socket.socket(socket.AF_UNIX) as server:
        place = str(open_folder / "keeper")
        server.bind(place)
        os.chmod(place, 0o777)
        server.listen()
        threading.Thread(target=keep, args=[server], daemon=True).start()
        look = "listener" if kind == "unix" else "port"
        jobs = [["pass_on", place, "nothing"], ["pass_on", place, kind], ["namespace"], [look]]
        before, its, after, found = in_turn(pyspawner, jobs, off=["landlock"])
        server.shutdown(socket.SHUT_RDWR)
    for number in kept:
        os.close(number)
    assert len(kept) == 1 and before == its, "the control: it was kept, and the namespace was a slot's"
    assert after != its and found is False


def test_whatever_a_job_does_the_next_finds_a_new_namespace(pyspawner):
    """What is in use again must be as it was. Where the kernel shows a change, it must not be in use."""
    seeds = random.sample(range(10**9), 60)
    jobs = [["everything"]]
    for seed in seeds:
        jobs += [["do_anything", seed], ["everything"]]
    new, *results = in_turn(pyspawner, jobs)
    differing = {
        seed: [path for path in new if found[path] != new[path]]
        for seed, found in zip(seeds, results[1::2], strict=True)
        if found != new
    }
    assert not differing
    # The control: many of them stayed, and many did something that had the namespace closed.
    again = sum(one == other for one, other in zip(results[::2], results[2::2]))
    assert 5 < again < len(seeds) - 5


# ---- what the host holds -----------------------------------------------------------------------


def namespaces():
    """All that some process is in."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:  # it has ended
            pass
    return found


def test_nothing_is_left_of_many_jobs_and_of_children_killed_at_any_moment(pyspawner):
    before = namespaces()
    with Running(pyspawner, JOB, "-j", "4") as running:
        running.send("namespace")
        running.line()
        host = running.host
        held = unslotted(host)
        end = threading.Event()

        def kill():
            while not end.is_set():
                time.sleep(random.uniform(0, 0.02))
                for child in children_of(host)[:1]:
                    try:
                        os.kill(child, 9)
                    except ProcessLookupError:
                        pass

        killer = threading.Thread(target=kill)
        killer.start()
        outcomes = []
        for _ in range(40):
            for number in range(10):
                running.send(*(["raise_counter"] if number % 3 == 0 else ["namespace", 0.01]))
            outcomes += [running.line()["outcome"] for _ in range(10)]
        end.set()
        killer.join()
        assert {"ok", "signaled"} <= set(outcomes) <= {"ok", "signaled", "setup_failed"}
        wait_until(lambda: unslotted(host) == held)
        assert 1 <= len(slots_of(host)) <= 4
        wait_until(lambda: namespaces() == before)
    assert not os.path.exists(f"/proc/{host}")


# Starts a command in a user and a network namespace with a limit, with all ids.
LIMITED = """
import ctypes, os, sys
ready, made = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    assert ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) == 0  # user, network
    os.write(made[1], b"x")
    os.read(ready[0], 1)
    with open("/proc/sys/user/max_net_namespaces", "w") as file:
        file.write(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
os.read(made[0], 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{child}/{name}", "w") as file:
        file.write("0 0 4294967295")
os.write(ready[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.root
def test_a_namespace_that_cannot_be_made_is_an_error(pyspawner):
    def run(limit):
        prefix = [sys.executable, "-c", LIMITED, limit]
        return pyspawner.map(JOB, [["namespace"]] * 2, "-j", "1", path=ATTACKS, spares=0, prefix=prefix)

    control = run("3")  # the host is in one, and has looked at a new one
    assert [line["outcome"] for line in control.lines] == ["ok"] * 2, control.stderr
    assert len({line["result"] for line in control.lines}) == 1, "by slot"
    refused = run("1")
    assert refused.status == 125 and not refused.lines
    assert "ENOSPC" in refused.stderr and "namespaces is reached" in refused.stderr
