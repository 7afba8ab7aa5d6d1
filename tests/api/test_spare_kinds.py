"""Spares for sandboxes that are otherwise than the profile's."""

import ctypes
import os
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pyspawner
import pytest
from clients import open_client, said
from processes import children_of, host_of, parked, wait_until

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


def settled(client, count=MOST):
    """The spares, once there are so many and nothing else."""
    host = host_of(client._process)
    wait_until(lambda: len(parked(client._process)) == len(children_of(host)) == count)
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


@pytest.fixture
def hooked(root):
    """A client whose children do what is told by files in their root before they are ready."""
    (root / "hooked.py").write_text(
        "import os, time, pyspawner_host, client_jobs\n"
        "main = client_jobs.main\n"
        "@pyspawner_host.after_clone\n"
        "def look():\n"
        "    if os.path.exists('/fail'): raise OSError('told to')\n"
        "    if os.path.exists('/slow'): time.sleep(3)\n"
    )
    config = root / "pyspawner.toml"
    config.write_text(f"path = ['{root}']\n[pool]\nspares = {MOST}\n")
    with open_client(child_main="hooked.main", preload_imports=["hooked"], config=config) as client:
        yield client


def test_an_unmounted_chroot_is_let_go_while_another_job_starts(hooked, root):
    place, slow = root / "first", root / "slow-ones"
    slow.mkdir()
    (slow / "slow").touch()
    host = host_of(hooked._process)
    with mounted(place, "held-by-a-spare"):
        place.chmod(0o755)
        grow(hooked, pyspawner.SandboxConfig(chroot_dir=place), "listing", "/")
        starting = threading.Thread(target=run, args=(hooked, pyspawner.SandboxConfig(chroot_dir=slow), "echo"))
        starting.start()
        wait_until(lambda: len(children_of(host)) > MOST)
        assert any("held-by-a-spare" in mounts_of(pid) for pid in children_of(host))
    wait_until(lambda: not any("held-by-a-spare" in mounts_of(pid) for pid in children_of(host)), 1.5)
    assert starting.is_alive()
    starting.join()


def test_what_fails_on_its_way_is_not_tried_again_and_again(hooked, root):
    """Another for each that failed would keep a processor busy, with no job there."""
    failing = root / "failing"
    failing.mkdir()
    (failing / "fail").touch()
    for _ in range(3):
        with pytest.raises(pyspawner.SandboxSetupError, match="told to"):
            run(hooked, pyspawner.SandboxConfig(chroot_dir=failing), "echo")
    settled(hooked, 1)
    before = last_pid()
    time.sleep(1)
    assert last_pid() - before < 20
    assert run(hooked, pyspawner.SandboxConfig(), "echo", "x")[1] == "x"


def last_pid():
    return int(Path("/proc/loadavg").read_text().split()[-1])


def test_a_spare_is_of_the_very_folder_that_its_path_led_to(client, root):
    """Folders that change places while a spare is made, and are back before the job comes."""
    libc = ctypes.CDLL(None)
    good, evil = root / "good", root / "evil"
    for folder in (good, evil):
        (folder / f"is-{folder.name}").mkdir(parents=True)
    config = pyspawner.SandboxConfig(chroot_dir=good)
    paths = [os.fsencode(good), os.fsencode(evil)]

    def exchange():
        at_working_directory, renameat2_exchange = -100, 2
        assert libc.renameat2(at_working_directory, paths[0], at_working_directory, paths[1], renameat2_exchange) == 0

    def exchange_for(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            exchange()
            exchange()

    grow(client, config, "listing", "/")
    of_spares = 0
    for _ in range(4):
        busy = threading.Thread(target=exchange_for, args=(0.03,))
        busy.start()
        run(client, config, "listing", "/")
        busy.join()
        spares = settled(client)
        pid, out = run(client, config, "listing", "/")
        assert out == "['is-good']"
        of_spares += pid in spares
    assert of_spares > 0


def test_chroots_of_one_job_each_are_not_kept_and_displace_none(client, root):
    """As of a program that makes a folder for each."""
    config = pyspawner.SandboxConfig(open_files=32)
    spares = grow(client, config, "echo")
    for number in range(20):
        folder = root / str(number)
        folder.mkdir()
        run(client, pyspawner.SandboxConfig(chroot_dir=folder), "listing", "/")
    assert settled(client) == spares
    assert run(client, config, "open_files")[0] in spares


def test_a_chroot_on_a_remote_file_system_is_of_no_spare(client, remote_folder):
    """To look whether it is the same may take for ever."""
    (remote_folder / "here").mkdir()
    for _ in range(4):
        assert run(client, pyspawner.SandboxConfig(chroot_dir=remote_folder), "listing", "/")[1] == "['here']"
    assert "fuse" not in mounts_of(settled(client, 1)[0])
    # The control: the same folder, as it is served.
    local = pyspawner.SandboxConfig(chroot_dir=remote_folder.parent / "served")
    spares = grow(client, local, "listing", "/")
    assert run(client, local, "listing", "/")[0] in spares


def test_named_interfaces_are_of_no_spare(client):
    config = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig("pyspawn-t0", "pyspawn-t1"))
    for _ in range(3):
        run(client, config, "echo")
    assert len(settled(client, 1)) == 1
    assert not os.path.exists("/sys/class/net/pyspawn-t0")


def test_there_are_no_more_than_the_most_of_all_kinds(client):
    configs = [pyspawner.SandboxConfig(open_files=number) for number in range(32, 36)]
    most = 0
    for _ in range(6):
        children = [client.spawn_child(["echo"], sandbox_config=config) for config in configs]
        for child in children:
            said(child)
        # While more are alive than that, some are at their end.
        for _ in range(30):
            most = max(most, len(parked(client._process)))
            time.sleep(0.01)
    assert most == MOST
