"""``[pool] concurrency`` and limits that need control groups, for those who ask by a client."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import JOBS, greeted, open_client, serving
from processes import wait_until
from pyspawner import SandboxConfig
from test_hostile_clients import asked, events

HAS_CGROUPS = Path("/sys/fs/cgroup/cgroup.controllers").exists()


def most_at_once(spans):
    steps = sorted([(begun, 1) for begun, _ in spans] + [(ended, -1) for _, ended in spans])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


@pytest.mark.parametrize("concurrency", [None, 2])
def test_no_more_run_at_once_than_the_configuration_says(tmp_path, concurrency):
    """The control: without it all run at once."""
    config = tmp_path / "pool.toml"
    config.write_text(f"[pool]\nconcurrency = {concurrency}\n" if concurrency else "")
    with open_client(child_main="calls.main", config=config) as client, ThreadPoolExecutor(8) as threads:
        spans = list(threads.map(lambda _: client.call("span", 0.3), range(8)))
    assert (most_at_once(spans) == 2) if concurrency else (most_at_once(spans) > 4)


@pytest.fixture
def queue(tmp_path):
    """A host that runs one child at once, and a connection to it."""
    config = tmp_path / "pool.toml"
    config.write_text("[pool]\nconcurrency = 1\n")
    path = tmp_path / "socket"
    with serving(path, "client_jobs.main", JOBS, "--config", config), greeted(path) as connection:
        yield path, connection


def last(control):
    event = events(control)[-1]
    return event["type"], event["outcome"]


def test_whoever_waits_has_his_turn_or_is_told_why_not(queue):
    path, connection = queue
    first = asked(connection, {"args": ["sleep", 1]})
    assert json.loads(first.recv(1000))["type"] == "started"
    killed = asked(connection, {"args": ["sleep", 0]})
    with greeted(path) as other:
        abandoned = asked(other, {"args": ["sleep", 0]})
    third = asked(connection, {"args": ["sleep", 0]})
    killed.send(b'{"type": "kill"}')
    # Both long before the first child's end.
    for control in (killed, abandoned):
        [event] = events(control)
        assert (event["type"], event["outcome"]) == ("refused", "signaled")
        assert "pool.concurrency" in event["detail"]
    assert last(first) == ("ended", "ok")
    assert last(third) == ("ended", "ok")


def test_a_time_limit_begins_with_the_turn(queue):
    """Not with the request; the job's deadline too."""
    _, connection = queue
    first = asked(connection, {"args": ["sleep", 1.5]})
    second = asked(connection, {"args": ["sleep", 0.2], "timeout": 1})
    assert last(first) == ("ended", "ok")
    assert last(second) == ("ended", "ok")


def test_a_host_that_ends_ends_the_queue(tmp_path):
    config = tmp_path / "pool.toml"
    config.write_text("[pool]\nconcurrency = 1\n")
    path = tmp_path / "socket"
    with serving(path, "client_jobs.main", JOBS, "--config", config) as host, greeted(path) as connection:
        controls = [asked(connection, {"args": ["sleep", 60]}) for _ in range(20)]
        assert controls[0].recv(1000)
        host.send_signal(signal.SIGTERM)
        outcomes = [last(control)[1] for control in controls]
        wait_until(lambda: host.poll() is not None, 5)
    assert outcomes == ["cancelled"] * 20


@pytest.mark.skipif(HAS_CGROUPS, reason="NOT TESTED: this machine has control groups; tests/vm has those")
def test_limits_that_are_not_in_force_are_told(tmp_path):
    """Once on the log, and in each outcome."""
    with open_client(child_main="calls.main") as client:
        assert client.spawn_child(["nothing"]).outcome().unenforced == ()
        for limits, names in [({"cpu": 0.25}, ("cpu",)), ({"cpu": 1, "memory": 1 << 30}, ("cpu", "memory"))]:
            child = client.spawn_child(["nothing"], sandbox_config=SandboxConfig(**limits))
            assert child.outcome().unenforced == names


@pytest.mark.skipif(HAS_CGROUPS, reason="NOT TESTED: this machine has control groups; tests/vm has those")
def test_they_are_told_in_results_and_on_the_log(pyspawner):
    config = "[profile.default.limits]\ncpu = 0.5\nmemory = '1G'\n"
    done = pyspawner.map("basic.sleep", [[0], [0]], path=JOBS.parents[1] / "jobs", config=config)
    assert [line["unenforced"] for line in done.lines] == [["cpu", "memory"]] * 2
    assert done.stderr.count("limits.cpu is not in force") == done.stderr.count("limits.memory holds for") == 1
    plain = pyspawner.map("basic.sleep", [[0]], path=JOBS.parents[1] / "jobs")
    assert "unenforced" not in plain.lines[0] and plain.stderr == ""
    required = pyspawner.map(
        "basic.sleep", [[0]], path=JOBS.parents[1] / "jobs", config="[profile.default]\ncgroups = 'required'\n"
    )
    assert (required.status, required.stdout) == (125, "") and "no control group" in required.stderr
