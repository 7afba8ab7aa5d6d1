"""Other processes: the host's and a sibling's.

Most of these attacks stand before several layers at once; the controls say which were off.
"""

import os
import signal

import pytest
from attacking import ALL_BUT_PID, ATTACKS, INSIDE, Running, attack, wait_for
from conftest import children_of, skipping

# Every layer that keeps a job from a process that it can name.
ALL = [*ALL_BUT_PID, "pid_namespace"]

BY_NUMBER = ["kill", "kill_group", "queue_signal", "pidfd", "priority", "affinity", "limits"]
BY_PROC = ["proc_mem", "proc_environ", "proc_root"]
BY_CALL = ["ptrace", "process_vm_readv", "pidfd_getfd", "kcmp"]


@pytest.fixture(params=["host", "sibling"])
def target(request, pyspawner):
    """The process id, outside, of a host or of a child at work, and how to attack it."""

    def start(off):
        running = Running(pyspawner, "processes.main", "-j", "2", off=off)
        request.addfinalizer(lambda: running.__exit__())
        running.send("victim", 60)
        child = running.child()
        pid = running.host if request.param == "host" else child

        def ask(what):
            running.send(what, pid)
            line = running.line()
            return f"blocked {line['detail']}" if line["outcome"] == "blocked_syscall" else line["result"]

        return ask

    return start


def test_other_processes_cannot_be_named(target):
    ask = target([])
    found = {what: ask(what) for what in BY_NUMBER + BY_PROC}
    assert found == {what: "ENOENT" if what in BY_PROC else "ESRCH" for what in BY_NUMBER + BY_PROC}


def test_seccomp_refuses_to_reach_into_processes(target):
    ask = target([])
    assert {what: ask(what) for what in BY_CALL} == {what: f"blocked {what}" for what in BY_CALL}


def test_without_all_layers_each_of_these_attacks_succeeds(target):
    ask = target(ALL)
    # The groups are there too, but a signal to one may need its leader.
    found = {what: ask(what) for what in BY_NUMBER + BY_PROC + BY_CALL if what != "kill_group"}
    assert set(found.values()) == {"ok"}, found


def test_without_seccomp_the_pid_namespace_is_enough(target):
    ask = target(["seccomp"])
    assert {ask(what) for what in BY_CALL} <= {"ESRCH", "EBADF"}


def test_pid_namespace_alone_decides_whether_a_host_can_be_named(pyspawner):
    def signal_host(*off):
        # Without a PID namespace of its own, a child may not mount a /proc.
        return attack(pyspawner, "processes.kill", os.getpid(), off=off, config='proc = "none"\n')

    assert signal_host() == "ESRCH"
    # Named, yet not reached: by then it is the user that differs.
    assert signal_host("pid_namespace") == "EPERM"


def test_a_job_that_signals_everything_hurts_nobody(pyspawner):
    with Running(pyspawner, "processes.main", "-j", "2") as running:
        running.send("victim", 2)
        running.child()
        running.send("signal_all")
        assert [running.line()["result"] for _ in range(2)] == ["alive", "unharmed"]
        assert running.process.poll() is None


def test_without_the_layers_such_a_job_ends_its_host(pyspawner):
    """The control, in a PID namespace that holds nothing else."""
    off = [*ALL_BUT_PID, "pid_namespace", "landlock"]
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = pyspawner.command(
        "map", "processes.main", "-j", "1", path=ATTACKS, config=skipping(*off) + 'proc = "none"\n', prefix=prefix
    )
    done = pyspawner.finish(command, '["signal_all"]\n', 60)
    assert (done.status, done.stdout) == (128 + signal.SIGKILL, "")


def test_a_job_sees_its_own_processes_alone(pyspawner):
    assert attack(pyspawner, "processes.processes") == [1]
    assert os.getpid() in attack(pyspawner, "processes.processes", off=["root"])


def test_descendants_end_with_the_job(pyspawner):
    def leave(*off):
        with Running(pyspawner, "processes.main", off=off) as running:
            running.send("leave_descendant", 100)
            line = running.line()
            assert line["outcome"] == "ok"
            return line["result"], children_of(running.host), _sleepers()

    inside, children, sleepers = leave()
    assert inside < 10 and children == [] and sleepers == []
    # The control. What is left is ended here.
    outside, _, sleepers = leave("pid_namespace", "root")
    assert outside in sleepers
    os.kill(outside, signal.SIGKILL)
    wait_for(lambda: outside not in _sleepers(), "the end of what the control left behind")


def _sleepers():
    """Processes of hosts that are children of none: left behind."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            line = open(f"/proc/{pid}/cmdline", "rb").read()
            status = open(f"/proc/{pid}/status").read()
            is_job = os.stat(f"/proc/{pid}").st_uid == INSIDE or "NSpid:\t" in status and "\t1\n" in status
        except OSError:
            continue
        if b"--as-host" in line and "PPid:\t1\n" in status and is_job:
            found.append(pid)
    return found
