"""Limits that hold on every machine. Those of control groups: tests/vm/test_cgroups.py."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from processes import children_of, host_of, is_alive, wait_until

JOBS = Path(__file__).parent / "jobs"


def limited(**limits):
    lines = "".join(f"{key} = {value!r}\n" for key, value in limits.items())
    return "[profile.default]\n[profile.default.limits]\n" + lines


@pytest.fixture
def bomb(pyspawner):
    """What a job of jobs/limits.py returned, under these limits."""

    def run(name, *args, config=""):
        return pyspawner.value(f"limits.{name}", *args, path=JOBS, config=config)

    return run


def test_fork_bomb(bomb):
    assert bomb("fork_bomb", 40, config=limited(pids=8)) == [7, "EAGAIN"]
    assert bomb("fork_bomb", 40) == [40, None]


def test_thread_bomb(bomb):
    threads, stopped = bomb("thread_bomb", 60, config=limited(pids=16))
    assert stopped and threads < 16
    assert bomb("thread_bomb", 60) == [60, None]


def test_a_fork_bomb_ends_with_its_job_and_harms_no_sibling(pyspawner):
    config = limited(pids=32)
    bombs = [{"id": "bomb", "args": ["fork_for_ever"], "timeout": 2}]
    jobs = bombs + [["quick"]] * 20
    done = pyspawner.map("limits.main", jobs, "-j", "2", path=JOBS, config=config)
    outcomes = {line["id"]: line["outcome"] for line in done.lines}
    assert outcomes.pop("bomb") == "timed_out"
    assert set(outcomes.values()) == {"ok"}


def test_descriptor_bomb(bomb):
    held, stopped = bomb("descriptor_bomb", 500, config=limited(open_files=64))
    assert stopped == "EMFILE" and held < 64
    assert bomb("descriptor_bomb", 500, config=limited(open_files=1000)) == [500, None]


def test_memory_bomb_without_control_groups(bomb, has_control_groups):
    if has_control_groups:
        return  # the memory is counted exactly there: tests/vm/test_cgroups.py
    assert bomb("allocate", 200, config=limited(memory="64M")) == "MemoryError"
    assert bomb("allocate", 200, config=limited(memory="512M")) == 200


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_disk_bomb(bomb, folder):
    small, large = ('[profile.default]\ntmp = "4M"\n', '[profile.default]\ntmp = "40M"\n')
    written, stopped = bomb("disk_bomb", folder, 20, config=small)
    assert (written, stopped) == (4, "ENOSPC")
    assert bomb("disk_bomb", folder, 20, config=large) == [20, None]


def test_inode_bomb(bomb):
    """A tmpfs limits files as well as bytes; each costs the kernel memory."""
    count, stopped = bomb("inode_bomb", 50_000, config='[profile.default]\ntmp = "1M"\n')
    assert stopped == "ENOSPC" and count < 10_000
    assert bomb("inode_bomb", 2_000) == [2_000, None]


def test_file_size(bomb):
    assert bomb("big_file", 2 << 20, config=limited(file_size="1M")) == "EFBIG"
    assert bomb("big_file", 2 << 20) == "ok"


@pytest.mark.parametrize("stream", [1, 2, "result"])
def test_endless_output(pyspawner, stream):
    line = pyspawner.job("limits.flood", stream, path=JOBS, config=limited(output="1M"))
    assert line["outcome"] == "output_limit"
    assert len(line["stdout"]) + len(line["stderr"]) <= 1 << 20


def test_limits_cannot_be_raised(bomb):
    refused = bomb("raise_limits", config=limited(open_files=64, file_size="1M"))
    assert set(refused.values()) == {"refused"}
    # The control: a limit that is not set is infinite, and may be set to that again.
    assert bomb("raise_limits")["RLIMIT_FSIZE"] == "raised"


def test_children_are_the_first_victims_of_a_machine_out_of_memory(bomb):
    assert bomb("oom_score") == 1000
    with open("/proc/self/oom_score_adj") as file:
        assert int(file.read()) < 1000


def test_a_job_cannot_outlive_a_host_that_is_killed(pyspawner, bomb):
    answers = bomb("outlive_host")
    assert answers == [-1, -1, 0]
    command = pyspawner.command("map", "basic.sleep", "-j", "1", spares=0)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    process.stdin.write(b"[60]\n")
    process.stdin.flush()
    wait_until(lambda: (host := host_of(process)) and children_of(host))
    host = host_of(process)
    children = children_of(host)
    os.kill(host, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(is_alive(child) for child in children))


def test_required_control_groups_are_refused_where_there_are_none(pyspawner, has_control_groups):
    config = '[profile.default]\ncgroups = "required"\n'
    done = pyspawner.map("basic.nothing", [[]], config=config)
    if has_control_groups:
        assert done.status == 0, done.stderr
    else:
        assert (done.status, done.stdout) == (125, "")
        assert "cgroup v2" in done.stderr


def test_what_is_not_in_force_is_said(pyspawner, has_control_groups):
    done = pyspawner.map("basic.nothing", [[]], config=limited(memory="1G", cpu=0.5))
    assert done.status == 0
    assert ("limits.cpu is not in force" in done.stderr) == (not has_control_groups)


@pytest.mark.parametrize(
    "text, words",
    [
        ("memory = '1K'", "at least"),
        ("cpu = 0.0", "processors"),
        ("cpu = 'all'", "f64"),
        ("pids = 0", "at least 1"),
        ("open_files = 3", "at least 16"),
        ("memry = '1M'", "unknown field"),
    ],
)
def test_limits_that_cannot_be_are_refused(pyspawner, text, words):
    done = pyspawner.map("basic.nothing", [[]], config=f"[profile.default.limits]\n{text}\n")
    assert done.status == 125 and words in done.stderr, done.stderr
