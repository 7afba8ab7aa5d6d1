"""How tests drive the real binary, as root."""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PYSPAWNER = Path(os.environ.get("PYSPAWNER", TARGET / "release/pyspawner")).resolve()
JOBS = Path(__file__).parent / "jobs"
IN_VM = "PYSPAWNER_VM" in os.environ


def _place():
    """A folder of every machine that a test may have something else at in a child, since nothing that the child needs is in it."""
    needed = [ROOT, PYSPAWNER, Path(sys.prefix), Path(sys.base_prefix)]
    places = [Path(name) for name in ("/srv", "/mnt", "/media", "/opt")]
    free = (place for place in places if place.is_dir() and not any(path.is_relative_to(place) for path in needed))
    return str(next(free))


PLACE = _place()
#: A name that is not there.
NOWHERE = f"/not-there-{os.getpid()}"

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


@dataclass
class Done:
    """A finished command."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self):
        """The result lines of ``map``."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def said(self):
        """Standard error without the host's warnings, of which an ordinary user gets some."""
        lines = self.stderr.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("pyspawner: warn: "))


class Driver:
    """Runs pyspawner with the test jobs on its path and this interpreter's environment."""

    def __init__(self, folder):
        self.folder = folder

    def command(self, verb, child_main, *flags, config=None, path=JOBS, prefix=(), spares=None):
        """``spares=0`` for a test that looks at the host's children: all of them are jobs then."""
        if spares is not None:
            pool = f"[pool]\nspares = {spares}\n"
            config = config.replace("[pool]\n", pool) if "[pool]" in (config or "") else pool + (config or "")
        command = [*prefix, PYSPAWNER, verb, "--child-main", child_main]
        if path is not None:
            command += ["--path", path]
        if "--python" not in flags:
            command += ["--python", sys.executable]
        if config is not None:
            file = self.folder / "pyspawner.toml"
            file.write_text(config)
            command += ["--config", file]
        return [str(word) for word in [*command, *flags]]

    def run(self, child_main, *arguments, flags=(), stdin="", timeout=120, **options):
        command = self.command("run", child_main, *flags, **options) + ["--", *arguments]
        return self.finish(command, stdin, timeout)

    def map(self, child_main, jobs, *flags, timeout=300, **options):
        lines = jobs if isinstance(jobs, (str, bytes)) else "".join(json.dumps(j) + "\n" for j in jobs)
        return self.finish(self.command("map", child_main, *flags, **options), lines, timeout)

    def job(self, child_main, *args, flags=(), **options):
        """The one result line of one job."""
        done = self.map(child_main, [list(args)], *flags, **options)
        assert len(done.lines) == 1, done
        return done.lines[0]

    def value(self, child_main, *args, **options):
        """What ``child_main`` returned."""
        line = self.job(child_main, *args, **options)
        assert line["outcome"] == "ok", line
        return line["result"]

    @staticmethod
    def finish(command, stdin, timeout):
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(command, input=data, capture_output=True, timeout=timeout, check=False)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "replace"))


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


def host_of(process):
    """The process id of a started command's host: its own, or its child's behind an init."""
    command = ["pgrep", "-f", "--", "--as-host"]
    family = [process.pid, *children_of(process.pid)]
    hosts = [int(pid) for pid in subprocess.run(command, capture_output=True, check=False).stdout.split()]
    return next((pid for pid in family if pid in hosts), None)


def wait_until(condition, seconds=30):
    """Wait for what takes longer on slow machines."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come true"
        time.sleep(0.05)


def children_of(pid):
    """The living children of a process, zombies included."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def parked(process):
    """The children of a host that wait for a job: in their sandbox, at their control socket."""
    recvmsg = {"x86_64": "47", "aarch64": "212"}[platform.machine()]

    def waits(pid):
        try:
            with open(f"/proc/{pid}/status") as status, open(f"/proc/{pid}/syscall") as call:
                return "Seccomp:\t2" in status.read() and call.read().split()[0] == recvmsg
        except (FileNotFoundError, ProcessLookupError):
            return False

    return [pid for pid in children_of(host_of(process)) if waits(pid)]


def _links(host):
    """What the descriptors of all threads of a process lead to. Its main thread has a table of its own."""
    links = []
    for folder in Path(f"/proc/{host}/task").glob("*/fd"):
        for descriptor in folder.iterdir():
            try:
                links.append(os.readlink(descriptor))
            except FileNotFoundError:
                pass
    return links


def slots_of(host):
    """The network namespaces that a host keeps for its children, by name."""
    home = os.readlink(f"/proc/{host}/ns/net")
    return {link for link in _links(host) if link.startswith("net:[")} - {home}


def unslotted(host):
    """How many descriptors a host has open, but for those of slots, which come and go."""
    return sum(not link.startswith("net:[") for link in _links(host))


def name_of(pid):
    """What a process calls itself."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def is_alive(pid):
    """Whether a process runs; one that has ended may wait for an init that is slow to reap."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it is reaped meanwhile
        return False


def skipping(*layers):
    """A configuration that leaves these layers out."""
    return "[profile.default]\nskip_layers = " + json.dumps(layers) + "\n"
