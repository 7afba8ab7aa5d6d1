"""What a clone can find in the memory that it inherits."""

import json
import os
import subprocess

import pytest
from attacking import ATTACKS

NOTHING = {"memory": 0, "files": []}


class Canary:
    """A text that no other run has, and the form in which the scanner is told of it."""

    def __init__(self):
        self.text = "c4nary-" + os.urandom(12).hex()
        self.key = [byte ^ 0x55 for byte in self.text.encode()]


@pytest.fixture
def canary():
    return Canary()


@pytest.fixture
def scanner(open_folder):
    library = open_folder / "scanner.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, ATTACKS / "scanner.c"], check=True)
    open_folder.chmod(0o755)
    return str(library)


@pytest.mark.parametrize("log", ["-q", "-vvv"])
def test_nothing_of_fifty_earlier_jobs_is_found(pyspawner, canary, scanner, log):
    text = canary.text
    earlier = [{"id": f"{text}-{n}", "args": [text * 50], "kwargs": {"k": text}, "stdin": text * 50} for n in range(50)]
    jobs = [*earlier, {"id": "scan", "args": [canary.key, scanner]}]
    done = pyspawner.map("private_memory.main", jobs, "-j", "1", "--ordered", log, path=ATTACKS)
    for line in done.lines[:50]:
        assert line["outcome"] == "ok"
        assert all(text in str(line[key]) for key in ("id", "result", "stdout", "stderr"))
    assert done.lines[50]["result"] == NOTHING


def test_the_scan_finds_the_jobs_own_argument(pyspawner, canary, scanner):
    job = [canary.key, scanner, canary.text * 50]
    found = pyspawner.value("private_memory.scan", *job, path=ATTACKS)
    assert found["memory"] >= 50


def test_the_scan_finds_the_jobs_own_stdin(pyspawner, canary, scanner):
    job = {"args": [canary.key, scanner], "stdin": canary.text}
    found = pyspawner.map("private_memory.scan", [job], path=ATTACKS).lines[0]["result"]
    assert "/proc/self/fd/0" in found["files"] or any(path.endswith("/fd/0") for path in found["files"])


def test_the_scan_finds_what_a_preloaded_module_holds(pyspawner, canary, scanner, open_folder):
    open_folder.chmod(0o755)
    (open_folder / "planted.py").write_text(f"CANARY = {canary.text!r}\n")
    flags = ["--preload", "planted", "--path", open_folder]
    assert pyspawner.value("private_memory.scan", canary.key, scanner, path=ATTACKS, flags=flags)["memory"] > 0


def test_nothing_of_the_hosts_environment_and_command_line_is_found(
    pyspawner, canary, scanner, open_folder, monkeypatch
):
    """Of the files that it names, what they hold: their names are in the folder that a job may list, and in its mounts."""
    monkeypatch.setenv("SECRET_TOKEN", canary.text)
    jobs, results = open_folder / "jobs", open_folder / "results"
    jobs.write_text(f'{{"args": [{canary.key}, "{scanner}"]}}\n' * 2)
    config = f"# {canary.text}\n[profile.default]\n[profile.{canary.text}]\n"
    flags = ["-j", "1", "-i", jobs, "-o", results]
    done = pyspawner.map("private_memory.scan", "", *flags, config=config, path=ATTACKS)
    assert done.status == 0, done.stderr
    for line in map(json.loads, results.read_text().splitlines()):
        assert line["result"] == NOTHING


def test_the_scan_finds_the_childrens_own_environment(pyspawner, canary, scanner):
    flags = ["--env", f"A={canary.text}"]
    found = pyspawner.value("private_memory.scan", canary.key, scanner, path=ATTACKS, flags=flags)
    assert found["memory"] > 0 and "/proc/1/environ" in found["files"]


@pytest.mark.parametrize("change", ["change_text", "change_host_objects"])
def test_what_a_job_changes_in_memory_is_its_own(pyspawner, change):
    """The control is in the job: it sees its own change."""
    done = pyspawner.map(f"private_memory.{change}", [[], []], "-j", "1", "--ordered", path=ATTACKS)
    first, second = (line["result"] for line in done.lines)
    assert first == second and first in (False, [False, False])


def test_memory_that_a_clone_would_share_is_each_jobs_own(pyspawner, open_folder):
    """As a preloaded module may leave it. (The control is in test_shared_memory: forked copies do share it.)"""
    (open_folder / "shared.py").write_text("import mmap\nSHARED = mmap.mmap(-1, 4096)\n")
    (open_folder / "job.py").write_text(
        "import shared\n\n"
        "def main(data):\n"
        "    before = shared.SHARED[:6].decode()\n"
        "    shared.SHARED[: len(data)] = data.encode()\n"
        "    return [before, shared.SHARED[:6].decode()]\n"
    )
    jobs = [["secret"], ["other!"]]
    done = pyspawner.map("job.main", jobs, "-j", "1", "--ordered", "--strict", "--preload", "shared", path=open_folder)
    assert [line["result"] for line in done.lines] == [["\0" * 6, "secret"], ["\0" * 6, "other!"]]
