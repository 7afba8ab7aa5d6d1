"""Other processes: the host's and a sibling's.

Most of these attacks stand before several layers at once; the controls say which were off.
"""

import os
import signal
import subprocess
import time

import pytest
from attacking import ALL_BUT_PID, ATTACKS, Running, attack, wait_for
from driving import skipping
from processes import children_of, is_alive

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
    refused = {what: "blocked ptrace" if what == "ptrace" else "ENOSYS" for what in BY_CALL}
    assert {what: ask(what) for what in BY_CALL} == refused


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
    def left_behind(*off):
        # A control group would end it too.
        config = f'[pool]\ncgroup = "{pyspawner.folder}/nothing"\n'
        with Running(pyspawner, "processes.main", off=off, config=config) as running:
            running.send("leave_descendant", 100)
            assert running.line()["outcome"] == "ok"
            # Orphans come to the init in front of the host.
            left = {*children_of(running.process.pid), *children_of(running.host)} - {running.host}
        wait_for(lambda: not any(map(is_alive, left)), "their end with the host's")
        return len(left)

    assert left_behind() == 0
    assert left_behind("pid_namespace", "root") == 1  # the control


@pytest.mark.parametrize("victim", ["host", "init"])
def test_a_job_cannot_outlive_its_host_by_executing_from_a_thread(pyspawner, victim):
    """The signal at the parent's death belongs to a thread that is gone then."""
    with Running(pyspawner, "processes.main") as running:
        running.send("execute_from_thread", "4321")
        wait_for(lambda: _executing("sleep 4321"), "the program")
        os.kill(running.host if victim == "host" else running.process.pid, signal.SIGKILL)
        running.process.wait()
        wait_for(lambda: not _executing("sleep 4321"), "its end", 5)


def test_host_and_init_look_after_each_other(pyspawner):
    """The control: ended both at once, they leave such a job alone, but no other (docs/threat-model.md)."""

    def left(*job):
        with Running(pyspawner, "processes.main") as running:
            running.send(*job)
            wait_for(lambda: children_of(running.host) if running.host else [], "a child")
            time.sleep(1)  # until it is at its job
            (child,) = children_of(running.host)
            os.kill(running.process.pid, signal.SIGSTOP)
            os.kill(running.host, signal.SIGKILL)
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait()
        time.sleep(1)
        alive = is_alive(child)
        if alive:
            os.kill(child, signal.SIGKILL)
        return alive

    assert left("execute_from_thread", "1234")
    assert not left("victim", 60)


def _executing(command):
    """Processes with this command line."""
    done = subprocess.run(["pgrep", "-x", "-f", command], capture_output=True, check=False)
    return [int(pid) for pid in done.stdout.split()]
