"""Whose interpreter a host runs, if the client names none."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_lifetime import run


def builds():
    """Interpreters of this one's version on this machine that are other builds."""
    ask = "import sys; print(sys.version_info[:2]); print(sys.version.split()[0], sorted(sys.builtin_module_names))"
    own = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    for python in [*Path("/usr/bin").glob("python3"), *Path.home().glob(".pyenv/versions/3.*/bin/python3")]:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.splitlines()[0] == own.splitlines()[0] and done.stdout != own:
            yield str(python)


def test_a_caller_of_the_same_version_and_another_build():
    others = list(builds())
    if not others:
        pytest.skip("NOT TESTED: no other build of this interpreter's version is here, as /usr/bin/python3 may be")
    for python in others:
        status, out, err = run("print(client.spawn_child(['echo', 1]).communicate())", python)
        assert (status, out) == (0, "(b'1\\n', b'')\n")
        assert "is not used, but this program's own" in err


def test_a_caller_of_the_same_build_is_used():
    status, out, err = run("print(client._process.args); print(client.spawn_child(['echo', 1]).communicate())")
    assert (status, err) == (0, "") and f"'--prefer-python', '{sys.executable}'" in out
