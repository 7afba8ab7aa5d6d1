"""Who ends when: programs, their forked copies, their children; and a child's handle meanwhile."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pyspawner
import pytest
from clients import JOBS
from driving import ROOT
from processes import is_alive, wait_until
from test_client import interpreters, open_client

BEGIN = f"""
import atexit, gc, os, signal, sys, time
sys.path.insert(0, {str(ROOT / "python")!r})
import pyspawner
client = pyspawner.Client(child_main="lifetime_jobs.main", config="no_spares.toml")
def below(pid):
    return [int(child) for child in open(f"/proc/{{pid}}/task/{{pid}}/children").read().split()]
def spawn(seconds):
    child = client.spawn_child(["sleep", seconds])
    child.stdout.readline()  # or it dies of a pipe without a reader
    print(child.pid, flush=True)
    return child
"""


def start(code, python=sys.executable, stdout=subprocess.PIPE, stderr=None, **options):
    program = BEGIN + textwrap.dedent(code)
    return subprocess.Popen([python, "-c", program], cwd=JOBS, stdout=stdout, stderr=stderr, text=True, **options)


def run(code, python=sys.executable, **options):
    """A program's status, output and error; it must end by itself."""
    # In files, since the host has them open for longer than the program.
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        with start(code, python, stdout, stderr, **options) as process:
            try:
                status = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        stdout.seek(0)
        stderr.seek(0)
        return status, stdout.read(), stderr.read()


@pytest.fixture
def client():
    with open_client(child_main="lifetime_jobs.main") as client:
        yield client


# ---- the end of a program that has not closed its client ------------------------------------------


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize(
    "then",
    [
        "",
        "del client",
        "del client; time.sleep(1)",
        "ring = [client]; ring.append(ring); del client, ring; gc.collect()",
        "import builtins; builtins.kept = client  # until the very end",
        "atexit.register(client.close)",
        "class Closer:\n    def __del__(self, client=client): client.close()\nkept = Closer()",
    ],
)
def test_a_program_that_does_not_close_ends_and_its_children_stay(python, then):
    status, out, err = run("child = spawn(60)\nprint(client._process.pid)\n" + then, python)
    assert (status, err) == (0, "")
    pid, init = map(int, out.split())
    time.sleep(0.3)
    assert is_alive(pid) and is_alive(init)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(init), 10)


# ---- forked copies ------------------------------------------------------------------------------------


def test_the_end_of_a_forked_copy_is_not_the_clients():
    status, out, err = run(
        """
        child = spawn(60)
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert os.waitpid(pid, 0) == (pid, 0)
        time.sleep(0.3)
        print(client.spawn_child(["echo", "fine"]).communicate(), child.poll())
        child.kill()
        """
    )
    assert (status, err) == (0, "") and out.splitlines()[1] == "(b'fine\\n', b'') None"


def test_a_forked_copy_does_not_keep_children_alive():
    with start(
        """
        child = spawn(60)
        if os.fork() == 0:
            os.close(1), os.close(2)
            time.sleep(10)
            os._exit(0)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    ) as process:
        pid = int(process.stdout.readline())
        assert process.wait(timeout=20) == -signal.SIGKILL
        wait_until(lambda: not is_alive(pid), 4)


def test_what_a_forked_copy_can_do():
    status, out, err = run(
        """
        child, other = spawn(60), spawn(0)
        other.wait()
        def attempt(action):
            try:
                return action()
            except pyspawner.HostDied as error:
                return "forked copy" in str(error)
        if (pid := os.fork()) == 0:
            with child:
                print([attempt(a) for a in (child.kill, child.poll, child.wait, child.communicate)])
            print(attempt(lambda: client.spawn_child(["echo"])), other.poll(), attempt(client.close), flush=True)
            # One of its own.
            with pyspawner.Client(child_main="lifetime_jobs.main", config="no_spares.toml") as own:
                print(own.spawn_child(["echo", 1]).communicate(), flush=True)
            sys.exit(0)
        print(os.waitpid(pid, 0)[1], child.poll(), client.spawn_child(["echo", 2]).communicate())
        child.kill()
        """
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[2:] == [
        "[True, True, True, True]",
        "True 0 None",
        "(b'1\\n', b'')",
        "0 None (b'2\\n', b'')",
    ]


# ---- signals --------------------------------------------------------------------------------------------


def test_an_interrupt_that_the_program_handles_leaves_children_alone():
    status, out, err = run(
        """
        child = spawn(1)
        signal.signal(signal.SIGINT, lambda *_: None)
        os.killpg(0, signal.SIGINT)
        print(child.outcome().name, client.spawn_child(["echo", 1]).communicate())
        """,
        start_new_session=True,
    )
    assert (status, err) == (0, "") and out.splitlines()[1] == "ok (b'1\\n', b'')"


def test_a_killed_program_leaves_nothing_in_the_hosts_session():
    with start("child = spawn(60)\nprint(client._process.pid, flush=True)\ntime.sleep(60)") as process:
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert os.getsid(pids[1]) == pids[1]
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_alive, pids)), 5)


def test_an_interrupted_spawn_leaves_no_child():
    """The host is slow to answer, and Ctrl-C is pressed meanwhile."""
    status, out, err = run(
        """
        host = below(client._process.pid)[0]
        os.kill(host, signal.SIGSTOP)
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            client.spawn_child(["quiet", 60])
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        for pid in (client._process.pid, host):  # which stops with it
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)
        print(client.spawn_child(["echo", "fine"]).communicate())
        begin = time.monotonic()
        while below(host):
            assert time.monotonic() - begin < 5
            time.sleep(0.05)
        """
    )
    assert (status, err, out) == (0, "", "interrupted\n(b'fine\\n', b'')\n")


def test_kill_where_sigpipe_ends_programs():
    status, out, err = run(
        """
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        child = spawn(0)
        child.stdout.read()
        time.sleep(0.5)
        child.kill()
        print(child.poll())
        """
    )
    assert (status, err) == (0, "") and out.splitlines()[1] == "0"


# ---- a child's handle -----------------------------------------------------------------------------------------


def test_communicate_goes_on_after_its_time_is_over(client):
    text = bytes(range(256)) * 4000
    child = client.spawn_child(["late", 1])
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        child.communicate(text, timeout=0.3)
    assert caught.value.output == b"begin\n"
    with pytest.raises(ValueError, match="input"):
        child.communicate(text)
    assert os.get_blocking(child.stdin.fileno())
    assert child.communicate(timeout=30) == (b"begin\n%d\n" % len(text), b"")
    assert child.communicate() == (b"begin\n%d\n" % len(text), b"")


def test_communicate_sends_what_was_written_before(client):
    child = client.spawn_child(["late", 0])
    child.stdin.write(b"abc")
    assert child.communicate(b"def") == (b"begin\n6\n", b"")
    gone = client.spawn_child(["echo"])
    gone.wait()
    gone.stdin.write(b"abc")
    assert gone.communicate(b"def") == (b"\n", b"")


def test_a_child_can_be_written_to_after_communicate(client):
    child = client.spawn_child(["late", 1])
    with pytest.raises(subprocess.TimeoutExpired):
        child.communicate(b"x" * 300_000, timeout=0.2)
    child.stdin.write(b"y" * 300_000)  # waits until the child reads
    child.stdin.flush()
    assert child.communicate()[0].startswith(b"begin\n")


def test_waiting_needs_no_descriptor(client):
    child = client.spawn_child(["sleep", 1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        with pytest.raises(OSError):
            while True:
                held.append(os.dup(0))
        assert child.poll() is None
        with pytest.raises(TimeoutError):
            child.outcome(timeout=0.01)
        assert child.communicate() == (b"here\n", b"") and child.wait()[1] == 0
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_very_long_timeouts(client):
    with client.spawn_child(["sleep", 0]) as child:
        assert child.outcome(timeout=1e7).name == "ok"


def test_kill_while_others_close(client, monkeypatch):
    """kill() must not use the number of a control socket that is closed at the same time."""
    child = client.spawn_child(["sleep", 60])
    entered, may_go_on = threading.Event(), threading.Event()
    closed_meanwhile = []

    def slow(control):
        number = control.fileno()
        entered.set()
        may_go_on.wait(5)
        closed_meanwhile.append(control.fileno() != number)

    monkeypatch.setattr("pyspawner._child.kill", slow)
    killer = threading.Thread(target=child.kill)
    killer.start()
    entered.wait(5)
    os.kill(child.pid, signal.SIGKILL)
    waiter = threading.Thread(target=child.wait)
    waiter.start()
    time.sleep(1)
    may_go_on.set()
    killer.join()
    waiter.join()
    assert closed_meanwhile == [False] and child.poll() == -signal.SIGKILL


def test_close_beside_spawning_threads():
    """Each spawn succeeds or says that the client has gone, whatever else is opened meanwhile."""
    for _ in range(5):
        client = open_client()
        wrong = []

        def work(client=client, wrong=wrong):
            while True:
                try:
                    client.spawn_child(["echo"])
                except pyspawner.HostDied:
                    return
                except BaseException as error:
                    wrong.append(error)
                    return

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        client.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert wrong == []
