"""The job's user and group."""

import pytest
from attacking import INSIDE, attack

FREE = ["user_namespace", "seccomp"]


def test_ids(pyspawner):
    assert attack(pyspawner, "identity.ids") == {"uid": [INSIDE] * 3, "gid": [INSIDE] * 3, "groups": []}
    assert attack(pyspawner, "identity.ids", off=["setuid"]) == {"uid": [0] * 3, "gid": [0] * 3, "groups": []}


def test_files_of_root_alone_cannot_be_read(pyspawner, open_folder):
    secret = open_folder / "secret"
    secret.write_text("of root")
    secret.chmod(0o600)

    def read(*off):
        return attack(pyspawner, "identity.read_file", str(secret), off=off)

    assert read() == "EACCES"
    # Root of a user namespace is not the file's owner; root itself is.
    assert read("setuid") == "EACCES"
    assert read("setuid", "user_namespace") == "ok"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("setuid", [0]),
        ("setgid", [0]),
        ("setreuid", [0, 0]),
        ("setregid", [0, 0]),
        ("setresuid", [0, 0, 0]),
        ("setresgid", [0, 0, 0]),
        ("setgroups", [0, 0]),
    ],
)
def test_no_other_id_can_be_taken(pyspawner, name, args):
    assert attack(pyspawner, "identity.become", name, *args) == f"blocked {name}"
    assert attack(pyspawner, "identity.become", name, *args, off=FREE) == "EPERM"
    assert attack(pyspawner, "identity.become", name, *args, off=[*FREE, "drop_capabilities"]) == "ok"
