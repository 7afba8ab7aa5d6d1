"""Programs that promise more: set-uid and set-gid. Those with capabilities: test_capabilities.py."""

import os
import shutil

import pytest
from attacking import attack

ALONE = ["no_new_privs", "seccomp"]  # without capabilities, a filter needs it
# What else is in the way of such a program: another view of ids, "nosuid", an empty bounding set.
OTHERS = ["user_namespace", "root", "seccomp", "drop_capabilities"]


@pytest.fixture
def program(open_folder):
    open_folder.chmod(0o755)

    def make(source, mode):
        program = open_folder / "program"
        shutil.copy(source, program)
        os.chown(program, 0, 0)
        program.chmod(mode)
        return program

    return make


@pytest.mark.parametrize(("mode", "gained"), [(0o4755, "euid=0(root)"), (0o2755, "egid=0(root)")])
def test_set_id_programs(pyspawner, program, mode, gained):
    path = str(program("/usr/bin/id", mode))
    for off in ([], ALONE, OTHERS):
        assert gained not in attack(pyspawner, "identity.run_program", path, off=off)
    assert gained in attack(pyspawner, "identity.run_program", path, off=[*OTHERS, "no_new_privs"])


def test_no_new_privs_cannot_be_taken_back(pyspawner):
    assert attack(pyspawner, "identity.drop_no_new_privs") == "EINVAL"
    assert attack(pyspawner, "identity.drop_no_new_privs", off=["seccomp"]) == "EINVAL"
