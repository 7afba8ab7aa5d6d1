"""What a job costs, in numbers that depend on the machine but little: system calls, page faults, mappings.

A figure that has grown is a regression, unless there is a reason: then the bound follows. Times are
`make bench`'s matter.
"""

import collections
import re
import shutil
import statistics

import pytest
from driving import Driver

PRELOAD = ["--preload", "numpy,pandas,pyarrow"]
JOBS = 20
# Whose number depends on how threads meet.
WAITING = {"futex", "sched_yield", "epoll_wait", "restart_syscall"}


def trace(pyspawner, tmp_path, **options):
    """The system calls of a run of some jobs, one after the other: thread and text."""
    assert shutil.which("strace"), "strace is missing; run make setup"
    file = tmp_path / "calls"
    prefix = ["strace", "-f", "-qq", "-s", "16", "-e", "signal=none", "-o", file]
    command = pyspawner.command("map", "costs.write", "-j", "1", *PRELOAD, prefix=prefix, **options)
    done = pyspawner.finish(command, "[]\n" * JOBS, 300)
    assert [line["outcome"] for line in done.lines] == ["ok"] * JOBS, done
    lines = (line.split(maxsplit=1) for line in file.read_text().splitlines())
    return [(int(thread), text) for thread, text in lines if re.match(r"\w+\(", text)]


def name(text):
    return text.partition("(")[0]


def is_clone(text):
    return text.startswith("clone3(") and "CLONE_NEWPID" in text


def by_child(calls):
    """Of each child that got a job, its calls in their order."""
    found = collections.defaultdict(list)
    for thread, text in calls:
        found[thread].append(text)
    return [texts for texts in found.values() if any(text.startswith('write(1, "x"') for text in texts)]


def counted(texts):
    return sum(name(text) not in WAITING for text in texts)


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cold")
    return trace(Driver(folder), folder, spares=0)


def test_system_calls_of_a_child(cold):
    # Each build of CPython has its own number: 202 to 209 of those tried.
    assert statistics.median(counted(texts) for texts in by_child(cold)) <= 212


def test_system_calls_of_the_host_for_a_child(cold):
    """Of each of its threads, between two clones."""
    cloner = next(thread for thread, text in cold if is_clone(text))
    clones = [place for place, (_, text) in enumerate(cold) if is_clone(text)]
    between = cold[clones[2] : clones[-1]]
    threads = collections.Counter(thread for thread, text in between if name(text) not in WAITING)
    io_thread = next(thread for thread, _ in threads.most_common() if thread != cloner and threads[thread] > JOBS * 20)
    per_job = {role: threads[thread] / (len(clones) - 3) for role, thread in (("main", cloner), ("io", io_thread))}
    assert per_job["main"] <= 45 and per_job["io"] <= 70, per_job


def test_system_calls_between_a_ready_spares_job_and_its_first_byte(pyspawner, tmp_path):
    def since_job(texts):
        job = max(place for place, text in enumerate(texts) if text.startswith("recvmsg("))
        byte = next(place for place, text in enumerate(texts) if text.startswith('write(1, "x"'))
        return counted(texts[job + 1 : byte])

    children = by_child(trace(pyspawner, tmp_path))
    assert statistics.median(since_job(texts) for texts in children) <= 10


def test_page_faults_before_a_childs_code(pyspawner):
    lines = pyspawner.map("costs.faults", [[]] * JOBS, "-j", "1", *PRELOAD, spares=0).lines
    # Each version of CPython has its own number.
    assert statistics.median(line["result"] for line in lines) <= 400


def test_mappings_of_a_child(pyspawner):
    mappings, libraries = pyspawner.value("costs.mappings", flags=PRELOAD, spares=0)
    assert libraries > 90
    assert mappings <= 4 * libraries
    shared, own = pyspawner.value("costs.relocated", flags=PRELOAD, spares=0)
    assert shared > 90 and own == 0
