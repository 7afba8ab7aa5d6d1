"""Programs that the kernel starts, as root and outside of every limit: none for what a job does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "security"))
from attacking import attack

pytestmark = pytest.mark.root
JOBS = Path(__file__).parent.parent / "jobs"
HELPER = '#!/bin/sh\necho "$@" >> {record}\ncat > /dev/null\n'


@pytest.fixture
def helper(tmp_path):
    """A program that notes that it was started, and the kernel's setting that names it."""
    record, program = tmp_path / "record", tmp_path / "helper"
    program.write_text(HELPER.format(record=record))
    program.chmod(0o755)
    record.touch()
    kept = {}

    def install(setting, value):
        path = Path("/proc/sys/kernel", setting)
        kept[path] = path.read_text()
        path.write_text(value.format(program))
        return record

    yield install
    for path, value in kept.items():
        path.write_text(value)


def started(record):
    time.sleep(1)  # it is started beside what it is for
    return record.read_text().splitlines()


def test_no_core_handler(pyspawner, helper):
    """For one of a pipe the kernel does not look at a limit of 0 (`core(5)`)."""
    record = helper("core_pattern", "|{} %p")
    line = pyspawner.job("basic.die", int(signal.SIGSEGV), path=JOBS)
    assert line["signal"] == signal.SIGSEGV, line
    assert attack(pyspawner, "quotas.crash_processes") == [-signal.SIGABRT] * 2
    assert attack(pyspawner, "quotas.lower_core_limit") == [[1, 1], "(1, 1)"]
    assert started(record) == []
    # The control: of an ordinary process with that limit, it is.
    crash = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()"
    process = subprocess.Popen([sys.executable, "-c", crash])
    assert process.wait() == -signal.SIGABRT
    assert started(record) == [str(process.pid)]


def test_no_module_is_loaded(pyspawner, helper):
    record = helper("modprobe", "{}")
    answers = attack(pyspawner, "quotas.odd_sockets")
    assert "ok" not in json.dumps(answers), answers
    assert started(record) == []
    attack(pyspawner, "quotas.odd_sockets", off=["seccomp"])  # the control
    assert started(record) != []


def test_no_classifier_is_loaded_without_a_network(pyspawner, helper):
    record = helper("modprobe", "{}")
    assert attack(pyspawner, "quotas.ask_for_a_classifier", "flower") == "ENOSYS"
    assert started(record) == []
    # The control: with a network it is asked for, which no filter of system calls can tell apart.
    attack(pyspawner, "quotas.ask_for_a_classifier", "flower", config='network = "loopback"\n')
    assert any("cls" in line for line in started(record))
