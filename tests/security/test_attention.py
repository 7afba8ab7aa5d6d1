"""Nobody keeps a host from its time limits, its signals and its other clients: not who may connect, nor what is read or written.

The control is the same host, quiet: its limits hold to a few hundredths of a second.
"""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyspawner
import pytest
from driving import IN_VM
from processes import wait_until
from pyspawner import SandboxConfig

API = Path(__file__).parents[1] / "api"
sys.path.insert(0, str(API))
from clients import NO_SPARES, serving  # noqa: E402

STRANGER = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "/usr/bin/python3", "-c"]
LIMIT = 2
# Long after the limit, and long before the end of what a stranger does.
LATE = LIMIT + 3
FLOOD = """
import socket, sys, time
end = time.monotonic() + 10
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        try:
            connection.connect(sys.argv[1])
        except OSError:
            pass
"""
# A TCP socket that has not sent all, and takes ten seconds to close, in flight in a Unix socket that is in flight to the host.
LINGER = """
import array, socket, struct, sys, time
def send(connection, descriptor):
    rights = array.array("i", [descriptor.fileno()]).tobytes()
    connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
listener = socket.create_server(("127.0.0.1", 0))
tcp = socket.create_connection(listener.getsockname())
peer, _ = listener.accept()
tcp.setblocking(False)
try:
    while True:
        tcp.send(b"x" * 65536)
except BlockingIOError:
    pass
tcp.setblocking(True)
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 10))
one, other = socket.socketpair()
send(one, tcp)
tcp.close()
before = []
for _ in range(200):  # the host is busy with them until all of this is closed here
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        connection.connect(sys.argv[1])
    except OSError:
        continue
    before.append(connection)
last = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
last.connect(sys.argv[1])
try:
    send(last, other)
except OSError as error:
    print(error.strerror)
for end in (other, one, last):
    end.close()
time.sleep(11)
"""


@pytest.fixture
def host(open_folder):
    """The socket of a host that lets everybody connect, and serves root."""
    open_folder.chmod(0o755)
    path = open_folder / "socket"
    flags = ["--socket-mode", "0666", "--config", NO_SPARES]
    with serving(path, "client_jobs.main", API / "jobs", *flags, stderr=subprocess.DEVNULL):
        yield path


# Several processes that send on one connection, once somebody has it.
MESSAGES = """
import os, socket, sys, time
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
end = time.monotonic() + 10
workers = []
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(sys.argv[1])
        for _ in range(16):
            if os.fork() == 0:
                try:
                    while time.monotonic() < end:
                        connection.send(b"x")
                except OSError:
                    pass
                os._exit(0)
        for _ in range(16):
            os.wait()
"""


def passes_rights_by_permission():
    """Whether the kernel lets a socket refuse descriptors (SO_PASSRIGHTS, Linux 6.16)."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            return False
    return True


@pytest.mark.skipif(IN_VM, reason="NOT TESTED: strangers need an interpreter that they can reach, which is not there")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_strangers_who_connect_in_a_loop(host, count):
    with pyspawner.Client(connect=host) as client:
        child = client.spawn_child(["sleep", 60], sandbox_config=SandboxConfig(timeout=LIMIT))
        strangers = [subprocess.Popen([*STRANGER, FLOOD, host]) for _ in range(count)]
        outcome = child.outcome()
        assert outcome.name == "timed_out" and outcome.wall_ms < LATE * 1000, outcome
        assert client.spawn_child(["echo", "served"]).communicate()[0] == b"served\n"
        for stranger in strangers:
            assert stranger.poll() is None, "it went on all the time"
            stranger.kill()
            stranger.wait()


@pytest.mark.skipif(IN_VM, reason="NOT TESTED: strangers need an interpreter that they can reach, which is not there")
@pytest.mark.parametrize("who", ["a stranger", "a client"])
def test_who_is_sent_away_and_goes_on_sending(host, who):
    with pyspawner.Client(connect=host) as client:
        child = client.spawn_child(["sleep", 60], sandbox_config=SandboxConfig(timeout=LIMIT))
        command = STRANGER if who == "a stranger" else ["/usr/bin/python3", "-c"]
        sender = subprocess.Popen([*command, MESSAGES, host])
        outcome = child.outcome()
        assert outcome.name == "timed_out" and outcome.wall_ms < LATE * 1000, outcome
        assert sender.poll() is None, "it went on all the time"
        assert sender.wait() == 0


def test_what_a_stranger_sends_along_is_closed_by_nobody(host):
    if not passes_rights_by_permission():
        pytest.skip("NOT TESTED: before Linux 6.16 a socket cannot refuse descriptors (docs/threat-model.md)")
    with pyspawner.Client(connect=host) as client:
        child = client.spawn_child(["sleep", 60], sandbox_config=SandboxConfig(timeout=LIMIT))
        with subprocess.Popen([*STRANGER, LINGER, host], stdout=subprocess.PIPE, text=True) as stranger:
            outcome = child.outcome()
            assert outcome.name == "timed_out" and outcome.wall_ms < LATE * 1000, outcome
            # Refused by the kernel, or sent away before.
            assert stranger.communicate()[0] in ("Operation not permitted\n", "Broken pipe\n")


# ---- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["bad lines", "a line without an end"])
def test_inputs_that_take_long(pyspawner, tmp_path, what):
    """From a regular file, which is always ready."""
    file = tmp_path / "jobs"
    job = json.dumps({"args": [60], "timeout": LIMIT}) + "\n"
    file.write_text(job + "x\n" * (20_000_000 if what == "bad lines" else 0))
    if what == "a line without an end":
        os.truncate(file, 60 << 30)  # sparse
    output = tmp_path / "results"
    command = pyspawner.command("map", "basic.sleep", "-q", file, output)
    with subprocess.Popen(command) as process:
        timed_out = lambda: output.exists() and b"timed_out" in output.read_bytes()[: 1 << 30]
        start = time.monotonic()
        if what == "a line without an end":
            wait_until(timed_out, 30)
            assert time.monotonic() - start < LATE + 2
        time.sleep(1)
        assert process.poll() is None, "the input was too short for this"
        start = time.monotonic()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 4


def test_the_detail_of_a_hostile_line_is_short_and_plain(pyspawner):
    line = json.dumps({"\x9b31m\u202e" + "A" * 1_000_000: 1}, ensure_ascii=False)
    done = pyspawner.map("basic.echo", line + "\n")
    assert (
        len(done.lines[0]["detail"]) <= 1100 and "\x9b" not in done.stdout and "\u202e" not in done.lines[0]["detail"]
    )


# ---- what is written ---------------------------------------------------------------------------


def test_a_log_that_nobody_reads_stops_no_job(pyspawner):
    command = pyspawner.command("map", "basic.echo", "-vvv", "-j", "2")
    count = 400
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        process.stdin.write(b"[1]\n" * count)
        process.stdin.flush()
        assert all(b'"ok"' in process.stdout.readline() for _ in range(count))
        # Whoever reads again is told what is missing.
        os.set_blocking(process.stderr.fileno(), False)
        process.stderr.read()
        process.stdin.write(b"[1]\n")
        process.stdin.close()
        os.set_blocking(process.stderr.fileno(), True)
        assert b"lines of the log were lost" in process.stderr.read()
        assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_result_that_nobody_reads_keeps_no_signal_waiting(pyspawner, open_folder, number):
    (open_folder / "long.py").write_text("def main(): return 'x' * 900_000\n")
    command = pyspawner.command("run", "long.main", path=open_folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1000).startswith(b'"xxx')
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(10) == 128 + number


def test_a_result_is_whole_on_a_stream_that_does_not_wait(pyspawner, open_folder):
    """As Node and asyncio make them."""
    (open_folder / "long.py").write_text("def main(): return 'x' * 900_000\n")
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen(pyspawner.command("run", "long.main", path=open_folder), stdout=write) as process:
        os.close(write)
        time.sleep(1)
        with open(read, "rb") as output:
            assert len(output.read()) == 900_003
        assert process.wait(10) == 0


# ---- what it leaves ----------------------------------------------------------------------------


def test_a_stream_has_its_mode_again(pyspawner, open_folder):
    """A job with no user of its own, here without that layer, owns what its operator does."""
    (open_folder / "opens.py").write_text("import os\ndef main():\n    for n in range(3): os.fchmod(n, 0o666)\n")
    config = '[profile.default]\nskip_layers = ["user_namespace", "setuid", "drop_capabilities"]\n'
    _, terminal = pty.openpty()
    os.fchmod(terminal, 0o620)
    command = pyspawner.command("run", "opens.main", path=open_folder, config=config)
    done = subprocess.run(command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(os.fstat(terminal).st_mode) == 0o620


def test_the_text_of_a_jobs_error_steers_no_terminal(open_folder):
    source = "import sys\ndef main(): sys.exit('\\x1b]0;title\\x07\\x9b31m\\u202e' + 'A' * 500)\n"
    (open_folder / "steers.py").write_text(source)
    open_folder.chmod(0o755)
    with contextlib.chdir(open_folder):
        client = pyspawner.Client(child_main="steers.main")
    with client, pytest.raises(pyspawner.JobExited) as caught:
        client.call()
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1100 and "title" in text
    assert b"\x1b]0;" in caught.value.stderr  # as it was
