"""Current Python software runs inside the default sandbox."""

import sys

import pytest

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/jobs")
import software

HEAVY = ["--preload", "numpy,pandas,pyarrow,pyarrow.csv"]


@pytest.mark.parametrize("name", sorted(software.EXPECTED))
def test_software(pyspawner, name):
    assert pyspawner.value("software.main", name, flags=HEAVY) == software.EXPECTED[name]


@pytest.mark.parametrize("method", [None, "spawn", "forkserver"])
def test_multiprocessing_methods(pyspawner, method):
    assert pyspawner.value("software.main", "pool", method) == [1, 2, 3]


REPEATED = ["matrix", "thread", "subprocess_", "pool", "arrow_csv", "group_by"]


def repeat(pyspawner, times):
    jobs = [[name] for _ in range(times) for name in REPEATED]
    done = pyspawner.map("software.main", jobs, *HEAVY, "--ordered", timeout=600)
    for job, line in zip(jobs, done.lines, strict=True):
        assert (line["outcome"], line["result"]) == ("ok", software.EXPECTED[job[0]]), line


def test_again_and_again(pyspawner):
    repeat(pyspawner, 20)


@pytest.mark.soak
def test_two_hundred_times(pyspawner):
    repeat(pyspawner, 200)
