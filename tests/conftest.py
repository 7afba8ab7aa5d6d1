"""Fixtures, and which tests are run where."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from driving import IN_VM, PYSPAWNER, ROOT, Driver

# A shell has what it starts in the background, and so a CI may have all this, ignore the key's signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The client package of this checkout, and the program that it starts.
sys.path.insert(0, str(ROOT / "python"))
os.environ["PYSPAWNER"] = str(PYSPAWNER)

# They need what only the virtual machine is known to have: see tests/vm/run.
collect_ignore = [] if IN_VM else ["vm"]


def pytest_configure(config):
    config.addinivalue_line("markers", "soak: longer than an ordinary test run")
    config.addinivalue_line("markers", "root: arranges its scene as root")
    if os.getuid() != 0 and not IN_VM:
        pytest.exit("the tests need root: they make sandboxes and look at them from outside", 2)
    if not PYSPAWNER.exists():
        pytest.exit(f"{PYSPAWNER} is missing; run make setup", 2)
    # Not where the checkout lies, which may be out of children's sight, as a home is.
    os.chdir("/")


def pytest_collection_modifyitems(config, items):
    """Leave out what takes too long, unless asked for, and what an ordinary user cannot do."""
    out = set() if config.getoption("-m") else {"soak"}
    if os.getuid() != 0:
        out.add("root")
    left_out = [item for item in items if out & set(item.keywords)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and os.environ.get("PYSPAWNER_CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"


@pytest.fixture
def pyspawner(tmp_path):
    return Driver(tmp_path)


@pytest.fixture
def open_folder():
    """A folder that every user may read and write, outside of /tmp."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.fixture
def remote_folder(open_folder):
    """A folder on a file system that a program serves (FUSE), in :func:`open_folder`."""
    served, folder = open_folder / "served", open_folder / "remote"
    for path in (served, folder):
        path.mkdir()
        path.chmod(0o755)
    subprocess.run(["bindfs", served, folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def has_control_groups():
    """Whether jobs get control groups here by themselves (cgroup v2 with its controllers)."""
    if os.getuid() != 0:
        return False  # a user's must be delegated, and named
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            controllers = Path(line.split()[4], "cgroup.controllers").read_text().split()
            return {"cpu", "memory", "pids"} <= set(controllers)
    return False
