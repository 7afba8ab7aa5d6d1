"""What preloaded objects hold open, as jobs find it: the table of docs/preloading.md."""

import os
import re
import sys

import pytest
from pyspawner import Client, SandboxConfig

FLAGS = ["--preload", "held"]
USED = {
    # Files: readable, each job from its own place, and not written to.
    "words": "b\n",
    "its duplicate goes on": "c\n",
    "unlinked": "unlinked",
    "zip": "zipped",
    "updated, read": "as it was",
    "updated, written": "Bad file descriptor",
    "database": 7,
    "database, written": "OperationalError",
    "memory": "memory",
    # What would lead further than to one file.
    "directory": "Not a directory",
    "path": "Not a directory",
    "own memory": "Bad file descriptor",
    "null": 1,
    "random": 4,
    # Both ends are the job's own; of half a pair the other end is as if it had been closed.
    "pipe": [2, True, "in"],
    "lonely reader": "",
    "lonely writer": "Broken pipe",
    "pair": [2, "hi"],
    "connected, read": "",
    "connected, written": "Broken pipe",
    "accepted": "",
    "server": "Operation not supported",
    "server is quiet": True,
    "udp": "Network is unreachable",
    "event": 5,
    "timer": True,
    "inotify": True,
    "loop": 7,
}


def test_each_kind_does_the_least_surprising_thing_in_every_job(pyspawner):
    done = pyspawner.map("held.use", [[], [], []], *FLAGS, "--ordered", "-j", "1")
    for line in done.lines:
        assert (line["outcome"], line["result"]) == ("ok", USED), line
        assert line["stdout"] == "to stdout\n"
        assert line["stderr"].splitlines() == ["logged", "1,2", "to stderr"]


def test_the_same_in_ready_spares(pyspawner):
    done = pyspawner.map("held.use", [[]] * 6, *FLAGS, "-j", "1", config="[pool]\nspares = 2\n")
    assert [line["result"] for line in done.lines] == [USED] * 6
    assert {line["stdout"] for line in done.lines} == {"to stdout\n"}


def test_through_the_client(pyspawner, jobs_config):
    with Client(
        child_main="held.use", config=jobs_config, executable=sys.executable, preload_imports=["held"]
    ) as client:
        for _ in range(2):
            child = client.spawn_child([], sandbox_config=SandboxConfig(timeout=20))
            out, err = child.communicate()
            assert child.outcome().name == "ok", err
            # The host's own two streams may be one file, so that what is kept of them cannot be told apart.
            assert sorted((out + err).splitlines()) == [b"1,2", b"logged", b"to stderr", b"to stdout"]


@pytest.fixture
def jobs_config(pyspawner):
    from driving import JOBS

    file = pyspawner.folder / "client.toml"
    file.write_text(f'path = ["{JOBS}"]\n')
    return file


def test_a_jobs_own_files_never_get_a_held_number(pyspawner):
    """Nor do they get what an object of the host's writes; but a number that its owner has closed is free."""
    for line in pyspawner.map("held.own_files", [[], []], *FLAGS).lines:
        assert line["result"] == [True, []], line
        assert line["stderr"] == "a line of the log\na line of the handler\n"


def test_a_rotating_log_is_quiet(pyspawner):
    """Its handler asks for the end of its file, which a pipe has not."""
    line = pyspawner.job("held.rotate", flags=FLAGS)
    assert (line["result"], line["stderr"]) == ("logged", "one line\n")


def test_the_hosts_own_files_are_as_they_were(pyspawner, open_folder):
    (open_folder / "owner.py").write_text("import held, os\ndef main():\n    held.use()\n    return held.FOLDER\n")
    line = pyspawner.job("owner.main", path=open_folder, flags=[*FLAGS, "--path", str(JOBS_FOLDER)])
    folder = line["result"]
    content = {name: open(os.path.join(folder, name)).read() for name in ("updated", "log", "csv", "rotating")}
    assert content == {"updated": "as it was", "log": "", "csv": "", "rotating": ""}


JOBS_FOLDER = os.path.join(os.path.dirname(__file__), "jobs")


def test_one_warning_at_start_names_what_works_otherwise(pyspawner):
    done = pyspawner.map("held.rotate", [[]], *FLAGS)
    [warning] = [line for line in done.stderr.splitlines() if "hold open" in line]
    for words in (
        r"/log \(descriptor \d+, held.LOG\): what is written goes to the job's standard error",
        r"/updated \(descriptor \d+, held.UPDATED\): it can be read, but not written",
        r"socket:\[\d+\] \(descriptor \d+, held.CONNECTED\): as if the other side had closed the connection",
        r"/rotating \(descriptor \d+, held.ROTATING\): what is written goes to the job's standard error",
        r"/etc \(descriptor \d+\): every use fails",
    ):
        assert re.search(words, warning), (words, warning)
    assert "/words" not in warning


def test_what_is_opened_after_the_warm_up_is_held_too(pyspawner, open_folder):
    """By a hook before a clone, and by a thread."""
    (open_folder / "later.py").write_text(
        "import os, pyspawner_host, threading, time\n"
        "HELD = []\n"
        "@pyspawner_host.before_clone\n"
        "def hook():\n"
        "    if len(HELD) < 3: HELD.append(os.pipe()[1])\n"
        "def main():\n"
        "    own = [os.open(f'/tmp/{n}', os.O_CREAT | os.O_RDWR) for n in range(20)]\n"
        "    for number in HELD:\n"
        "        try: os.write(number, b'x')\n"
        "        except OSError: pass\n"
        "    return len(HELD), set(own) & set(HELD) == set(), sum(os.fstat(n).st_size for n in own)\n"
    )
    lines = pyspawner.map("later.main", [[]] * 4, "-j", "1", "--ordered", path=open_folder, spares=0).lines
    assert [line["result"] for line in lines] == [[n, True, 0] for n in (2, 3, 3, 3)]
