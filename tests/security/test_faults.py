"""Every step of a child's way in, made to fail in turn: the layer is named, no code runs.

The real binary, with no hook for tests in it: `fail_syscall.c` makes single system calls of
the children fail, from outside.
"""

import errno
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import host_of
from test_clone_safety import state_of

# The way in: step, layer, the calls that it makes, and calls that are its own only once it has
# begun. A prctl goes by its option's name; reads and writes have their descriptor.
WAY_IN = [
    ("descriptors", "descriptors", "fcntl dup2 dup3 close_range rt_sigprocmask", ""),
    ("session", "descriptors", "setsid", ""),
    ("wait for the host", "user_namespace", "read(5)", ""),
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
    ("read-back", "limits", "prlimit64", ""),
    ("read-back", "pid_namespace", "getpid", ""),
    ("read-back", "drop_capabilities", "capget PR_CAPBSET_READ PR_CAP_AMBIENT PR_GET_SECUREBITS", ""),
    ("read-back", "no_new_privs", "PR_GET_NO_NEW_PRIVS", ""),
    ("read-back", "seccomp", "PR_GET_SECCOMP", ""),
    ("arguments", "arguments", "read(4)", ""),
    ("report", "report", "write(5)", ""),
]
REPORT = "write(5)"

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
    "read(6)": "as openat",
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
    """A running `map` that serves one job at a time, and the tool beside it."""

    process: subprocess.Popen
    tool: Path
    names: dict

    def job(self):
        # The limit is for what must not happen: a child that hangs.
        self.process.stdin.write(b'{"timeout": 10}\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

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
        return f"{name}({first})" if name in ("read", "write") else name

    def way_in(self):
        """A child's calls from its first to its report, which are the same each time."""
        traces = []
        for _ in range(2):
            report, calls = self.job_under("trace")
            assert (report["outcome"], report["stdout"]) == ("ok", "ran\n"), report
            traces.append(calls[: calls.index(REPORT) + 1])
        assert traces[0] == traces[1]
        return traces[0]

    def idle_state(self):
        """What the host holds once it has nothing to do, but for its memory."""
        time.sleep(0.3)
        state = state_of(host_of(self.process))
        del state["resident"]
        return state


@pytest.fixture
def host(pyspawner, open_folder):
    (open_folder / "marker.py").write_text("def main(): print('ran')\n")
    tool = pyspawner.folder / "fail_syscall"
    source = Path(__file__).parent / "fail_syscall.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", tool, source], check=True)
    command = pyspawner.command("map", "marker.main", "-j", "1", path=open_folder)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        host = Host(process, tool, system_calls())
        assert host.job()["outcome"] == "ok"
        yield host
        process.stdin.close()


def classified(calls):
    """Each call's place in `WAY_IN`, `None` for a harmless one; the places only go up."""
    place = -1
    for count, call in enumerate(calls, 1):
        step, _, _, within = WAY_IN[max(place, 0)]
        if call in within.split():
            yield place
            continue
        ahead = (n for n, row in enumerate(WAY_IN) if n >= place and call in row[2].split())
        found = next(ahead, None)
        assert found is not None or call in HARMLESS, f"call {count}: {call} has no place in or after {step!r}"
        place = place if found is None else found
        yield found


def test_the_steps_come_in_their_order(host):
    places = [place for place in classified(host.way_in()) if place is not None]
    steps = [WAY_IN[place][:2] for place in dict.fromkeys(places)]
    assert steps == [row[:2] for row in WAY_IN]


def fault(host, count, call, place, code):
    """Let one call fail in one child. What is wrong with the outcome, if anything is."""
    report, failed = host.job_under("fail", count, code)
    outcome, detail, ran = report["outcome"], report["detail"] or "", report["stdout"] != ""
    said = f"call {count}, {call}, {errno.errorcode[code]}: {outcome}, {detail!r}, ran: {ran}"
    if failed != [call]:
        return f"{said}; what failed was {failed}"
    if place is None:
        right = outcome == "ok" or outcome == "setup_failed" and not ran
    else:
        layer = WAY_IN[place][1]
        verdict, beginning = OTHER_VERDICTS.get(layer, ("setup_failed", f"{layer}: "))
        right = outcome == verdict and detail.startswith(beginning) and not ran
    return None if right else said


@pytest.mark.parametrize("name", ["EPERM", "EAGAIN", "ENOMEM"])
def test_each_failing_call_stops_the_child_by_its_layers_name(host, name):
    calls = host.way_in()
    before = host.idle_state()
    assert before["children"] == before["zombies"] == 0
    wrong = [
        fault(host, count, call, place, getattr(errno, name))
        for count, (call, place) in enumerate(zip(calls, classified(calls), strict=True), 1)
    ]
    assert host.idle_state() == before
    report = host.job()
    assert (report["outcome"], report["stdout"]) == ("ok", "ran\n")
    assert not any(wrong), "\n".join(filter(None, wrong))
