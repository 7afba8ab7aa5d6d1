"""Spares for sandboxes that are otherwise than the profile's."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pyspawner
import pytest
from clients import open_client, said
from conftest import children_of, host_of, parked, wait_until

MOST = 2


@pytest.fixture
def client(tmp_path):
    config = tmp_path / "pyspawner.toml"
    config.write_text(f"[pool]\nspares = {MOST}\n")
    with open_client(config=config) as client:
        yield client


@pytest.fixture
def root(open_folder):
    open_folder.chmod(0o755)
    (open_folder / "first").mkdir()
    return open_folder


def run(client, config, *args):
    """A child's process id, and what it said."""
    child = client.spawn_child(list(args), sandbox_config=config)
    return child.pid, said(child)


def settled(client):
    """The spares, once there is nothing else."""
    host = host_of(client._process)
    wait_until(lambda: len(parked(client._process)) == len(children_of(host)) == MOST)
    return parked(client._process)


def grow(client, config, *args):
    """Has one more spare made for a sandbox, by two jobs that find none."""
    for _ in range(2):
        run(client, config, *args)
    return settled(client)


@contextmanager
def mounted(folder, name="pyspawner-test"):
    subprocess.run(["mount", "-t", "tmpfs", name, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def mounts_of(pid):
    try:
        return Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:  # it has ended
        return ""


def test_jobs_of_the_same_limits_get_spares_and_have_them(client):
    small, large = pyspawner.SandboxConfig(open_files=32), pyspawner.SandboxConfig(open_files=48)
    spares = grow(client, small, "open_files")
    pid, out = run(client, small, "open_files")
    assert pid in spares and out == "32"
    pid, out = run(client, large, "open_files")
    assert pid not in spares and out == "48", "it got none that was made for another"
    assert int(run(client, pyspawner.SandboxConfig(), "open_files")[1]) > 48


def test_a_chroot_has_spares_that_see_what_is_in_it(client, root):
    config = pyspawner.SandboxConfig(chroot_dir=root)
    spares = grow(client, config, "listing", "/")
    (root / "second").mkdir()
    pid, out = run(client, config, "listing", "/")
    assert pid in spares and out == "['first', 'second']"


def test_another_folder_of_the_same_name_is_not_a_spares(client, root):
    chroot = root / "chroot"
    config = pyspawner.SandboxConfig(chroot_dir=chroot)
    (chroot / "old").mkdir(parents=True)
    spares = grow(client, config, "listing", "/")
    chroot.rename(root / "moved")
    (chroot / "new").mkdir(parents=True)
    pid, out = run(client, config, "listing", "/")
    assert pid not in spares and out == "['new']"
    # The control: put back, it is the same.
    spares = grow(client, config, "listing", "/")
    chroot.rename(root / "other")
    (root / "other").rename(chroot)
    pid, out = run(client, config, "listing", "/")
    assert pid in spares and out == "['new']"


def test_what_is_mounted_in_a_chroot_meanwhile_is_seen(client, root):
    config = pyspawner.SandboxConfig(chroot_dir=root)
    (root / "first" / "below").mkdir()
    spares = grow(client, config, "listing", "/first")
    with mounted(root / "first"):
        pid, out = run(client, config, "listing", "/first")
        assert pid not in spares and out == "[]"
        grow(client, config, "listing", "/first")
    assert run(client, config, "listing", "/first")[1] == "['below']"


def test_an_unmounted_chroot_is_let_go_at_once(client, root):
    place = root / "first"
    config = pyspawner.SandboxConfig(chroot_dir=place)
    with mounted(place, "held-by-a-spare"):
        place.chmod(0o755)
        spares = grow(client, config, "listing", "/")
        assert any("held-by-a-spare" in mounts_of(pid) for pid in spares)
    host = host_of(client._process)
    wait_until(lambda: not any("held-by-a-spare" in mounts_of(pid) for pid in children_of(host)), 5)


def test_a_chroot_of_one_job_is_not_kept(client, root):
    """As of a program that makes a folder for each."""
    spares = settled_one(client)
    for number in range(5):
        folder = root / str(number)
        folder.mkdir()
        run(client, pyspawner.SandboxConfig(chroot_dir=folder), "listing", "/")
    assert settled_one(client) == spares


def settled_one(client):
    host = host_of(client._process)
    wait_until(lambda: len(parked(client._process)) == len(children_of(host)) == 1)
    return parked(client._process)


def test_named_interfaces_are_of_no_spare(client):
    config = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig("pyspawn-t0", "pyspawn-t1"))
    for _ in range(3):
        run(client, config, "echo")
    assert len(settled_one(client)) == 1
    assert not os.path.exists("/sys/class/net/pyspawn-t0")


def test_there_are_no_more_than_the_most_of_all_kinds(client):
    host = host_of(client._process)
    configs = [pyspawner.SandboxConfig(open_files=number) for number in range(32, 36)]
    most = 0
    for _ in range(6):
        children = [client.spawn_child(["echo"], sandbox_config=config) for config in configs]
        for child in children:
            said(child)
        wait_until(lambda: len(parked(client._process)) == len(children_of(host)))
        most = max(most, len(parked(client._process)))
    assert most == MOST
