"""A job's own folder: another job sees nothing of it, and it has no more room than its /tmp."""

import os
import subprocess

import pytest
from attacking import ATTACKS, Running
from driving import skipping

NOTHING = [[], ["job"], [], []]


@pytest.mark.parametrize("spares", [0, 2])
def test_what_a_job_leaves_no_other_job_finds(pyspawner, spares):
    names = [[f"left-{number}"] for number in range(6)]
    done = pyspawner.map("working_folder.leave", names, "-j", "2", spares=spares)
    assert [line["result"] for line in done.lines] == [NOTHING] * 6, done
    assert not [name for name in os.listdir("/tmp") if name.startswith("left-")]


def test_without_the_layer_a_job_finds_what_another_has_left(pyspawner, open_folder):
    """The control: the same jobs, where these places are the host's."""
    folder = open_folder / "home"
    folder.mkdir()
    folder.chmod(0o777)
    name = f"left-{os.getpid()}"
    command = pyspawner.command(
        "map", "working_folder.leave", "-j", "1", "--env", f"HOME={folder}",
        config=skipping("root", "landlock"), spares=0,
    )  # fmt: skip
    try:
        done = subprocess.run(
            command, input=f'["{name}"]\n["{name}-2"]\n', cwd=folder, capture_output=True, text=True, check=True
        )
        assert f'"{name}"' in done.stdout.splitlines()[1], done
    finally:
        for place in ("/tmp", "/dev/shm"):
            for left in (name, f"{name}-2"):
                if os.path.exists(f"{place}/{left}"):
                    os.unlink(f"{place}/{left}")


def test_two_jobs_at_once_have_two_folders(pyspawner):
    """Of one name, each in a mount of its own: what one holds open, the other cannot name."""
    with Running(pyspawner, "private_folder.main", "-j", "2") as running:
        running.send("keep", "secret")
        child = running.child()
        assert os.listdir(f"/proc/{child}/root/tmp/job") == ["secret"]  # the host may look
        running.send("look_for", "secret")
        assert running.line()["result"] == ["ENOENT", []]
    assert not os.path.exists("/tmp/job")


@pytest.mark.parametrize("place", [".", "/tmp/job", "/tmp"])
def test_the_folder_has_the_size_of_tmp(pyspawner, place):
    def room(size):
        config = f'[profile.default]\ntmp = "{size}"\n'
        return pyspawner.value("working_folder.fill", place, 3 << 20, config=config)

    assert (1 << 20) - 65536 <= room("1M") <= 1 << 20
    assert room("4M") == 3 << 20  # the control


def test_the_folder_has_the_files_of_tmp(pyspawner):
    config = '[profile.default]\ntmp = "1M"\n'
    assert pyspawner.value("working_folder.fill_with_files", config=config) == ["ENOSPC", True]


def test_what_others_plant_on_the_host_no_job_finds(pyspawner):
    """The name is known; but a job's own tmpfs is new, and so is the folder in it."""
    os.mkdir("/tmp/job")
    try:
        with open("/tmp/job/sitecustomize.py", "w") as file:
            file.write("raise SystemExit('planted')\n")
        os.chmod("/tmp/job", 0o777)
        assert pyspawner.value("working_folder.leave", "x") == NOTHING
        assert os.listdir("/tmp/job") == ["sitecustomize.py"]
    finally:
        os.unlink("/tmp/job/sitecustomize.py")
        os.rmdir("/tmp/job")


def test_accounts_cannot_be_changed(pyspawner):
    for path in ("/etc/passwd", "/etc/group"):
        for config in ("", "[profile.default]\nroot = { empty = true }\n"):
            assert pyspawner.value("root.write_file", path, config=config, path=ATTACKS) in ("EROFS", "EACCES")
