"""What a child sees with all layers on, and what is said of layers that are off."""

import sys

from attacking import INSIDE
from driving import skipping


def test_what_a_child_sees(pyspawner):
    done = pyspawner.map("basic.surroundings", [[]], "--env", "A=B", "--env", "C=d e")
    seen = done.lines[0]["result"]
    # The fourth is the result's.
    assert {"0", "1", "2"} < set(seen["descriptors"]) and len(seen["descriptors"]) == 4
    assert seen["environ"] == {"A": "B", "C": "d e", "HOME": "/tmp/job"}
    assert sorted(seen["environ_file"].rstrip("\0").split("\0")) == ["A=B", "C=d e"]
    assert seen["command_line"] == "pyspawner\0--as-host\0"
    assert seen["processes"] == [1] and seen["pid"] == 1
    assert seen["route"] == ""
    assert (seen["uid"], seen["gid"], seen["groups"]) == (INSIDE, INSIDE, [])
    assert seen["path_start"] == ""
    assert seen["executable"] == sys.executable
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen["status"][capabilities], 16) == 0
    assert seen["status"]["NoNewPrivs"] == "1"
    assert seen["status"]["Seccomp"] == "2"


def test_environment_has_nothing_but_a_home_unless_configured(pyspawner, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "of the host")
    seen = pyspawner.value("basic.surroundings")
    assert seen["environ"] == {"HOME": "/tmp/job"} and seen["environ_file"].strip("\0") == ""


def test_skipped_layers_are_named_on_the_log(pyspawner):
    done = pyspawner.map("basic.nothing", [[]], config=skipping("seccomp", "setuid"))
    assert "layer seccomp is skipped" in done.stderr
    assert "layer setuid is skipped" in done.stderr
