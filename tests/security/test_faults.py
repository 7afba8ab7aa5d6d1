"""Every step of a child's way in, made to fail in turn: the layer is named, no code runs.

The real binary, with no hook for tests in it: `fail_syscall.c` makes single system calls of
the children fail, from outside. The children are those of `map`, and those of clients of `serve`
that are to have a root, limits and a name of their own, which takes further steps.
"""

import errno
import json
import os
import re
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from processes import host_of, wait_until
from pyspawner import Client, NetworkConfig, SandboxConfig, SandboxSetupError
from test_clone_safety import state_of

# The way in: step, layer, the calls that it makes, and calls that are its own only once it has
# begun. A prctl goes by its option's name; reads and writes have their descriptor.
WAY_IN = [
    ("descriptors", "descriptors", "dup3 close_range rt_sigprocmask", ""),
    ("session", "descriptors", "setsid", ""),
    ("wait for the host", "user_namespace", "read(control)", ""),
    ("groups", "setuid", "PR_SET_SECUREBITS setgroups", ""),
    ("gid", "setuid", "setresgid", ""),
    ("uid", "setuid", "setresuid", ""),
    (
        "root",
        "root",
        "mount open_tree move_mount mount_setattr chdir",
        "openat newfstatat fstatat fstat mkdir mkdirat",
    ),
    ("cgroup", "cgroup_namespace", "unshare", ""),
    ("host name", "uts_namespace", "sethostname", ""),
    ("limits", "limits", "prlimit64", ""),
    (
        "landlock",
        "landlock",
        "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        "openat newfstatat fstatat fstat",
    ),
    (
        "capabilities",
        "drop_capabilities",
        "PR_CAPBSET_READ PR_CAPBSET_DROP PR_SET_SECUREBITS PR_CAP_AMBIENT capget capset",
        "",
    ),
    ("no_new_privs", "no_new_privs", "PR_SET_NO_NEW_PRIVS", ""),
    ("end with the host", "descriptors", "PR_SET_PDEATHSIG", ""),
    ("own /proc/self", "setuid", "PR_SET_DUMPABLE", ""),
    ("seccomp", "seccomp", "rt_sigaction seccomp", ""),
    ("read-back", "setuid", "getresuid getresgid getgroups", ""),
    ("read-back", "limits", "prlimit64 sched_getattr", ""),
    ("read-back", "pid_namespace", "getpid", ""),
    ("read-back", "drop_capabilities", "capget PR_CAPBSET_READ PR_CAP_AMBIENT PR_GET_SECUREBITS", ""),
    ("read-back", "no_new_privs", "PR_GET_NO_NEW_PRIVS", ""),
    ("read-back", "seccomp", "inotify_init1", ""),
    ("ready", "report", "write(control)", ""),
    ("assignment", "descriptors", "recvmsg fcntl dup3", ""),
    ("arguments", "arguments", "read(6)", ""),
    ("report", "report", "write(control)", ""),
]
# So long that it goes in a file, which takes a step more.
LONG = "x" * 20_000
REPORT = "write(control)"  # the second: before it comes "ready"

# The same for a client's child with overrides.
OWN_ROOT = (
    "root",
    "root",
    "move_mount fchdir pivot_root umount2 chdir mount fsopen fsconfig fsmount mkdirat mount_setattr open_tree openat2",
    "openat fstat newfstatat",
)
OWN_WAY_IN = [
    *WAY_IN[:2],
    ("spec", "descriptors", "read(spec)", ""),
    *(OWN_ROOT if row[0] == "root" else row for row in WAY_IN[2:-2]),
    ("name", "descriptors", "PR_SET_NAME", ""),
    *WAY_IN[-2:],
]

# The step that a child of a profile with network = "loopback" has besides.
LOOPBACK = ("loopback", "network_namespace", "socket ioctl", "")
LOOPBACK_WAY_IN = [*WAY_IN[:6], LOOPBACK, *WAY_IN[6:]]

# Where no layer is named: the outcome and the beginning of `detail`.
OTHER_VERDICTS = {
    "arguments": ("setup_failed", "descriptors: read(arguments): "),
    # A child that cannot report ends, and its end says so.
    "report": ("setup_failed", "the child exited with status 125 on its way into the sandbox"),
}

# Calls whose failure need not end the child: no layer depends on them.
HARMLESS = {
    "set_robust_list": "before the way in: robust mutexes would go unnoticed at this child's death",
    "clock_gettime": "a system call only where the kernel offers no clock in memory: times for the log",
    "gettid": "the interpreter's fork hook: the thread's number for `threading.get_native_id`",
    "getrandom": "seeds of generators and hash tables, which libraries also take from /dev/urandom",
    "openat": "the C library's, for getgroups: /proc/sys/kernel/ngroups_max has a default",
    "read(3)": "as openat",
    "close": "a descriptor is closed even where close(2) reports an error",
    "statx": "whether a writable place is a folder (if unknown, Landlock allows less); a size hint",
    "lseek": "a size hint for reading the arguments",
    "brk": "the allocator: it maps memory instead, or the child ends",
    "mmap": "as brk",
    "munmap": "as brk",
    "mremap": "as brk",
    "madvise": "as brk",
}

PRCTL_OPTIONS = {
    1: "PR_SET_PDEATHSIG",
    4: "PR_SET_DUMPABLE",
    15: "PR_SET_NAME",
    21: "PR_GET_SECCOMP",
    23: "PR_CAPBSET_READ",
    24: "PR_CAPBSET_DROP",
    27: "PR_GET_SECUREBITS",
    28: "PR_SET_SECUREBITS",
    38: "PR_SET_NO_NEW_PRIVS",
    39: "PR_GET_NO_NEW_PRIVS",
    47: "PR_CAP_AMBIENT",
}


def system_calls():
    """This machine's system calls by number."""
    command = ["cc", "-dM", "-E", "-include", "sys/syscall.h", "-x", "c", os.devnull]
    macros = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return {int(number): name for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\n", macros)}


@dataclass(repr=False)
class Host:
    """A running host that serves one job at a time, and the tool beside it."""

    process: subprocess.Popen
    tool: Path
    names: dict
    steps = WAY_IN
    roles: dict = field(default_factory=dict)
    """What a child's descriptors are, by number."""

    def job(self):
        """One job's report. What is in `stdout` was written by its code, and by nothing else."""
        # The limit is for what must not happen: a child that hangs.
        self.process.stdin.write(json.dumps({"timeout": 10, "args": [LONG]}).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def is_whole(self, report):
        """Whether a job ran, in nothing less than its whole sandbox."""
        return (report["outcome"], report["stdout"]) == ("ok", "ran\n")

    def job_under(self, *mode):
        """One job with the tool attached: its report, and the calls that the tool showed."""
        command = [self.tool, str(host_of(self.process)), *map(str, mode)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tool:
            assert tool.stdout.readline() == "ready\n"
            report = self.job()
            tool.terminate()
            return report, [self.name(line) for line in tool.stdout]

    def name(self, line):
        """A line of the tool as `WAY_IN` has it."""
        _, number, *arguments, _ = line.split()
        name, first = self.names.get(int(number), number), int(arguments[0], 16)
        if name == "prctl":
            return PRCTL_OPTIONS.get(first, f"prctl({first})")
        return f"{name}({self.roles.get(first, first)})" if name in ("read", "write") else name

    def learn_roles(self):
        """The host's numbers are its own matter. A child's first word goes to its control socket, and what it reads
        first, if not that, is its child spec."""
        report, calls = self.job_under("trace")
        assert self.is_whole(report), report
        control = next(call for call in calls if call.startswith("write("))
        self.roles[number_of(control)] = "control"
        first = number_of(next(call for call in calls if call.startswith("read(")))
        self.roles.setdefault(first, "spec")

    def way_in(self):
        """A child's calls from its first to its report, which are the same each time."""
        traces = []
        for _ in range(2):
            report, calls = self.job_under("trace")
            assert self.is_whole(report), report
            ready = calls.index(REPORT)
            traces.append(calls[: calls.index(REPORT, ready + 1) + 1])
        assert traces[0] == traces[1]
        return traces[0]

    def idle_state(self):
        """What the host holds once it has nothing to do, but for its memory."""
        time.sleep(0.3)
        state = state_of(host_of(self.process))
        del state["resident"]
        state["interfaces"] = len(Path(f"/proc/{host_of(self.process)}/net/dev").read_text().splitlines())
        return state


def number_of(call):
    """The descriptor of a read or write as :meth:`Host.name` has it."""
    return int(call.partition("(")[2].rstrip(")"))


@dataclass(repr=False)
class LoopbackHost(Host):
    """The same with a loopback interface for each child."""

    steps = LOOPBACK_WAY_IN


@dataclass(repr=False)
class ClientHost(Host):
    """A running `serve`, and a client whose children have overrides."""

    client: Client = None
    root: Path = None
    config: SandboxConfig = None
    """What each child is to have."""
    lacks: frozenset = frozenset()
    """Layers that `config` leaves out."""

    @property
    def steps(self):
        return [row for row in OWN_WAY_IN if row[1] not in self.lacks]

    def without(self, *layers):
        config = self.config._replace(skip_sandbox_except=MAY_SKIP.difference(layers))
        return replace(self, config=config, lacks=frozenset(layers))

    def with_network(self):
        return replace(self, config=self.config._replace(network=NetworkConfig()))

    def job(self):
        ran = self.root / "ran"
        ran.unlink(missing_ok=True)
        try:
            child = self.client.spawn_child([LONG], process_name="ordered", sandbox_config=self.config)
        except SandboxSetupError as error:
            # There is no output to read. What has run has left something all the same.
            return {"outcome": error.outcome, "detail": str(error), "stdout": "ran\n" if ran.exists() else ""}
        stdout, stderr = child.communicate()
        return {"outcome": child.outcome().name, "detail": stderr.decode(), "stdout": stdout.decode()}

    def is_whole(self, report):
        whole = WHOLE | dict.fromkeys(self.lacks, 0)
        return report["outcome"] == "ok" and json.loads(report["stdout"]) == whole


MAY_SKIP = frozenset({"drop_capabilities", "setuid", "no_new_privs", "seccomp"})

# What OWN_MARKER finds in a child whose sandbox is complete.
WHOLE = {
    "ids": [[1000] * 3, [1000] * 3, []],
    "pid and session": [1, 1],
    "signal mask": [],
    "files": ["/", ["inner", "ran"], []],
    "descriptors": [0, 1, 2],
    "limits": [[64, 64], [1, 1], [1 << 20] * 2, [32, 32]],
    "has a limit of memory": True,
    "host name": "sandbox",
    "name": "ordered",
    "capabilities": [0] * 6,
    "bounding set": [0] * 41,
    "securebits": 0xEF,
    "no_new_privs": 1,
    "seccomp": 2,
    "end with the host": 9,
    "dumpable": 1,
}

OWN_MARKER = """
import ctypes, errno, json, os, resource, signal, socket

libc = ctypes.CDLL(None, use_errno=True)
NAMES = "NOFILE", "CORE", "FSIZE", "NPROC"

def asked(option):
    number = ctypes.c_int(-1)
    libc.prctl(option, ctypes.byref(number))
    return number.value

def name():
    text = ctypes.create_string_buffer(16)
    libc.prctl(16, text)
    return text.value.decode()

def capabilities():
    # Version 3, of this process: effective, permitted, inheritable, twice 32 bits of each.
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[7] * 6)
    assert libc.capget(header, sets) == 0
    return list(sets)

def is_open(number):
    try:
        # Where getrandom(2) fails, CPython keeps the device open instead.
        return os.fstat(number).st_rdev != os.makedev(1, 9)
    except OSError:
        return False

def main(long):
    open("/ran", "w").close()
    limits = [list(resource.getrlimit(getattr(resource, "RLIMIT_" + name))) for name in NAMES]
    print(json.dumps({
        "ids": [list(os.getresuid()), list(os.getresgid()), os.getgroups()],
        "pid and session": [os.getpid(), os.getsid(0)],
        "signal mask": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "files": [os.getcwd(), sorted(os.listdir("/")), os.listdir("/inner")],
        "descriptors": [number for number in range(64) if is_open(number)],
        "limits": limits,
        "has a limit of memory": resource.getrlimit(resource.RLIMIT_DATA)[0] > 0,
        "host name": socket.gethostname(),
        "name": name(),
        "capabilities": capabilities(),
        "bounding set": [libc.prctl(23, number) for number in range(41)],
        "securebits": libc.prctl(27),
        "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
        # The host has a filter of its own, of io_uring alone.
        "seccomp": 2 if libc.inotify_init1(-1) == -1 and ctypes.get_errno() == errno.ENOSYS else 0,
        "end with the host": asked(2),
        "dumpable": libc.prctl(3),
    }))
"""


@pytest.fixture
def tool(pyspawner):
    tool = pyspawner.folder / "fail_syscall"
    source = Path(__file__).parent / "fail_syscall.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", tool, source], check=True)
    return tool


@contextmanager
def running_map(kind, pyspawner, folder, tool, config=None):
    (folder / "marker.py").write_text("def main(long): print('ran')\n")
    command = pyspawner.command("map", "marker.main", "-j", "1", path=folder, spares=0, config=config)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        host = kind(process, tool, system_calls())
        assert host.job()["outcome"] == "ok"
        host.learn_roles()
        yield host
        process.stdin.close()


@pytest.fixture
def map_host(pyspawner, open_folder, tool):
    with running_map(Host, pyspawner, open_folder, tool) as host:
        yield host


@pytest.fixture
def loopback_host(pyspawner, open_folder, tool):
    config = '[profile.default]\nnetwork = "loopback"\n'
    with running_map(LoopbackHost, pyspawner, open_folder, tool, config) as host:
        yield host


@pytest.fixture
def client_host(pyspawner, open_folder, tool):
    (open_folder / "marker.py").write_text(OWN_MARKER)
    root, path = open_folder / "root", pyspawner.folder / "socket"
    (root / "inner").mkdir(parents=True)
    root.chmod(0o777)
    # A kernel file system in the root, which is to be covered; and a network of the host's own.
    mounted = ["unshare", "-m", "-n", "sh", "-c", f'mount -t proc p {root}/inner && exec "$@"', "sh"]
    command = pyspawner.command("serve", "marker.main", "--socket", path, path=open_folder, prefix=mounted, spares=0)
    config = SandboxConfig(chroot_dir=root, timeout=10, memory="1G", pids=32, open_files=64, file_size="1M")
    with subprocess.Popen(command) as process:
        try:
            wait_until(path.exists)
            with Client(connect=path) as client:
                host = ClientHost(process, tool, system_calls(), client=client, root=root, config=config)
                assert host.is_whole(host.job())
                host.learn_roles()
                yield host
        finally:
            process.terminate()


@pytest.fixture(params=["map", "client"])
def host(request):
    return request.getfixturevalue(f"{request.param}_host")


def classified(calls, steps):
    """Each call's place in `steps`, `None` for a harmless one; the places only go up."""
    place = -1
    for count, call in enumerate(calls, 1):
        step, _, _, within = steps[max(place, 0)]
        if call in within.split():
            yield place
            continue
        ahead = (n for n, row in enumerate(steps) if n >= place and call in row[2].split())
        found = next(ahead, None)
        assert found is not None or call in HARMLESS, f"call {count}: {call} has no place in or after {step!r}"
        place = place if found is None else found
        yield found


def test_the_steps_come_in_their_order(host):
    calls = host.way_in()
    places = [place for place in classified(calls, host.steps) if place is not None]
    steps = [host.steps[place][:2] for place in dict.fromkeys(places)]
    assert steps == [row[:2] for row in host.steps]
    # The bounding set alone has 41 capabilities, each dropped and then read back.
    assert places.count(steps.index(("capabilities", "drop_capabilities"))) > 41
    assert len(calls) > len(places) > 130


def fault(host, count, call, place, code):
    """Let one call fail in one child. What is wrong with the outcome, if anything is."""
    report, failed = host.job_under("fail", count, code)
    outcome, detail, ran = report["outcome"], report["detail"] or "", report["stdout"] != ""
    said = f"call {count}, {call}, {errno.errorcode[code]}: {outcome}, {detail!r}, ran: {ran}"
    if failed != [call]:
        return f"{said}; what failed was {failed}"
    if place is None:
        right = host.is_whole(report) or outcome == "setup_failed" and not ran
    else:
        layer = host.steps[place][1]
        verdict, beginning = OTHER_VERDICTS.get(layer, ("setup_failed", f"{layer}: "))
        right = outcome == verdict and detail.startswith(beginning) and not ran
    return None if right else said


def check_each(host, code, repeated=True):
    """Let each call fail in turn, in a child each; perhaps without those that repeat the last one."""
    calls = host.way_in()
    before = host.idle_state()
    assert before["children"] == before["zombies"] == 0
    wrong = [
        fault(host, count, call, place, code)
        for count, (call, place) in enumerate(zip(calls, classified(calls, host.steps), strict=True), 1)
        if repeated or calls[count - 2 : count - 1] != [call]
    ]
    assert len(wrong) > (130 if repeated else 50)
    assert host.idle_state() == before
    assert host.is_whole(host.job())
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize("name", ["EPERM", "EAGAIN", "ENOMEM"])
def test_each_failing_call_stops_the_child_by_its_layers_name(host, name):
    check_each(host, getattr(errno, name))


def test_the_same_where_a_client_leaves_layers_out_and_adds_a_network(client_host):
    """What comes first is told: not that the host could not connect a child that had ended."""
    check_each(client_host.without("no_new_privs", "seccomp").with_network(), errno.EPERM, repeated=False)


def test_a_loopback_interface_that_cannot_be_raised_stops_the_child(loopback_host):
    calls = loopback_host.way_in()
    places = list(classified(calls, loopback_host.steps))
    own = loopback_host.steps.index(LOOPBACK)
    found = [count for count, place in enumerate(places) if place == own]
    assert [calls[count] for count in found] == ["socket", "ioctl"]
    for count in found:
        for code in (errno.EPERM, errno.EMFILE, errno.ENODEV):
            assert fault(loopback_host, count + 1, calls[count], own, code) is None
    assert loopback_host.is_whole(loopback_host.job())


def test_a_home_that_cannot_be_made_or_entered_stops_the_child(map_host):
    calls = map_host.way_in()
    places = list(classified(calls, map_host.steps))
    for call in ({"mkdir", "mkdirat"}, {"chdir"}):
        [count] = [count for count, name in enumerate(calls) if name in call]
        assert map_host.steps[places[count]][0] == "root"
        for code in (errno.EEXIST, errno.ENOSPC, errno.EACCES):
            assert fault(map_host, count + 1, calls[count], places[count], code) is None


# What a child reads back before it reports.
READ_BACK = (
    "setgroups", "setresgid", "setresuid", "prlimit64", "capset", "seccomp",
    "PR_SET_NO_NEW_PRIVS", "PR_CAPBSET_DROP", "PR_SET_SECUREBITS",
)  # fmt: skip


def test_what_a_full_pool_of_filters_means_is_said(map_host):
    """ENOTSUPP (524) is no errno that programs are meant to see (`bpf_jit_charge_modmem`)."""
    calls = map_host.way_in()
    count = len(calls) - calls[::-1].index("seccomp")
    report, failed = map_host.job_under("fail", count, 524)
    assert failed == ["seccomp"] and report["outcome"] == "setup_failed", report
    assert report["detail"].startswith("seccomp: ") and "bpf_jit_limit" in report["detail"], report


def test_a_call_that_does_nothing_and_says_otherwise_is_noticed(host):
    """As a bug of a wrapper, or of the kernel, would have it."""
    calls = host.way_in()
    seen = set()
    for count, call in enumerate(calls, 1):
        if call not in READ_BACK:
            continue
        report, claimed = host.job_under("fail", count, 0)
        assert claimed == [call]
        # To take away what is not there is no lie.
        assert host.is_whole(report) or report["outcome"] == "setup_failed" and report["stdout"] == "", (call, report)
        # What the read-back has found, and not a call that failed.
        if report["outcome"] == "setup_failed" and not re.search(r": E[A-Z]+: ", report["detail"]):
            seen.add(call)
    # Without its user a child comes no further, and without no_new_privs it gets no filter.
    assert seen == {"prlimit64", "capset", "seccomp", "PR_CAPBSET_DROP", "PR_SET_SECUREBITS"}


# ---- the controls -------------------------------------------------------------------------


def test_a_failure_that_is_swallowed_is_noticed(host):
    """A child that goes on after a failure is not taken for one that was stopped."""
    calls = host.way_in()
    count = len(calls) - calls[::-1].index("close")
    assert fault(host, count, "close", None, errno.EPERM) is None
    for place in range(len(host.steps)):
        assert "close, EPERM: ok" in fault(host, count, "close", place, errno.EPERM)


@pytest.mark.parametrize("layers", [["seccomp"], ["no_new_privs", "seccomp"], ["drop_capabilities"], ["setuid"]])
def test_a_sandbox_that_is_not_whole_is_noticed(client_host, layers):
    """A child that lacks a layer is seen to lack it, and nothing else."""
    report = client_host.without(*layers).job()
    assert report["outcome"] == "ok" and not client_host.is_whole(report)
    found = json.loads(report["stdout"])
    wrong = {key for key in WHOLE if found[key] != WHOLE[key]}
    expected = {"drop_capabilities": {"capabilities", "bounding set", "securebits"}, "setuid": {"ids"}}
    assert wrong == expected.get(layers[0], set(layers))
