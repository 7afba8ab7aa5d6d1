"""What a client sends, and when it stops, costs the host and other clients nothing."""

import json
import os
import pickle
import random
import signal
import socket
import struct
import subprocess
import sys
import time

import pyspawner
import pytest
from clients import JOBS, NO_SPARES, greeted, said, server, serving  # noqa: F401
from driving import PYSPAWNER
from processes import children_of, host_of, unslotted, wait_until
from pyspawner._protocol import sealed

GARBAGE = [
    b"\0", b"{}", b"[]", b"null", b"{" * 60_000, b"\xff" * 60_000, b'{"type": "spawn"}', b'{"type": "hello"}',
    b'{"type": "hello", "version": 2}', b'{"type": "spawn", "process_name": "\\u0000"}', b'{"type": "close", "x": 1}',
    b'{"type": "spawn", "limits": {"pids": {}}}', b"x" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("message", GARBAGE, ids=lambda m: repr(m[:30]))
def test_garbage_costs_its_sender_alone(server, message):
    process, path = server
    with pyspawner.Client(connect=path) as client:
        child = client.spawn_child(["sleep", 1])
        for connection in (greeted(path), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)):
            with connection:
                if connection.getsockname() == "" and _is_unconnected(connection):
                    connection.connect(str(path))
                try:
                    connection.send(message)
                except OSError:
                    pass  # too long for the socket
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1000):
                    pass
        assert said(client.spawn_child(["echo", "fine"])) == "fine"
        assert child.wait()[1] == 0
    assert process.poll() is None


def _is_unconnected(connection):
    try:
        connection.getpeername()
    except OSError:
        return True
    return False


def test_wrong_descriptors_are_refused_in_words(server):
    _, path = server
    folder = os.open("/", os.O_RDONLY)
    plain = os.memfd_create("plain")
    null = os.open("/dev/null", os.O_RDWR)
    request = b'{"type": "spawn"}'
    for arguments, stream, words in [
        (plain, null, b"sealed"),
        (null, null, b"sealed"),
        (sealed(b"x"), folder, b"folder"),
    ]:
        with greeted(path) as connection:
            control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with control, other:
                socket.send_fds(connection, [request], [stream, null, null, other.fileno(), arguments])
                other.close()
                assert words in control.recv(10_000)
    for message, count in [(request, 4), (request, 6), (request + b"\0x", 3), (request + b"\0x", 5)]:
        with greeted(path) as connection:
            socket.send_fds(connection, [message], [null] * count)
            assert b"expected descriptors" in connection.recv(10_000)
    for descriptor in (folder, plain, null):
        os.close(descriptor)


@pytest.mark.parametrize("length, is_taken", [(16 << 10, True), ((16 << 10) + 1, False)])
def test_so_many_bytes_of_arguments_may_be_in_the_message(server, length, is_taken):
    _, path = server
    padding = "x" * (length - len(pickle.dumps(["echo", "x" * 1000])) + 1000)
    arguments = pickle.dumps(["echo", padding])
    assert len(arguments) == length
    read, write = os.pipe()
    with greeted(path) as connection:
        control = asked(connection, {}, attached=arguments, stdout=write)
        os.close(write)
        with open(read) as output:
            assert output.read().strip() == (padding if is_taken else "")
        first = events(control)[0]
    assert first["type"] == ("started" if is_taken else "refused")
    assert is_taken or f"{length} bytes" in first["detail"]


def asked(connection, request, *, end=None, attached=None, **streams):
    """Ask for a child on a bare connection: the client's end of its control socket."""
    control, other = end or socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open("/dev/null", os.O_RDWR)
    arguments = sealed(pickle.dumps(request.pop("args", [])))
    ends = [*(streams.get(name, null) for name in ("stdin", "stdout", "stderr")), other.fileno()]
    message = json.dumps({"type": "spawn", **request}).encode()
    if attached is None:
        socket.send_fds(connection, [message], [*ends, arguments])
    else:
        socket.send_fds(connection, [message, b"\0", attached], ends)
    for descriptor in (arguments, null):
        os.close(descriptor)
    other.close()
    control.settimeout(20)
    return control


def events(control):
    """What the host says of a child, to the end."""
    with control:
        return [json.loads(message) for message in iter(lambda: control.recv(100_000), b"")]


def descriptors_of(host):
    return unslotted(host)


def test_more_descriptors_than_fit_are_closed_all(server):
    """On a connection and on a child's control socket, before and after the greeting."""
    process, path = server
    host = host_of(process)
    null = os.open("/dev/null", os.O_RDWR)
    with greeted(path) as connection:
        events(asked(connection, {"args": ["sleep", 0]}))
    time.sleep(0.3)
    before = descriptors_of(host)
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(path))
            try:
                socket.send_fds(connection, [b'{"type": "hello", "version": 1}'], [null] * 12)
            except PermissionError:  # since Linux 6.16, until the host knows who has connected
                continue
            assert b"descriptors" in connection.recv(10_000)
        with greeted(path) as connection:
            control = asked(connection, {"args": ["sleep", 0.05]})
            socket.send_fds(control, [b"{}"], [null] * 12)
            assert [event["type"] for event in events(control)] == ["started", "ended"]
    os.close(null)
    wait_until(lambda: descriptors_of(host) == before)


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": "soon"}, {"timeout": [5]}, {"timeout": -1}, {"skip_except": [3]}, {"skip_except": "seccomp"}, {"chroot": 7}, {"process_name": 5}, {"x": 1},
     {"network": {"veth": {"kernel_ipv4": "nowhere"}}}, {"process_name": "a\0b"}],
)  # fmt: skip
def test_a_wrong_request_costs_one_child(server, wrong):
    _, path = server
    with greeted(path) as connection:
        sibling = asked(connection, {"args": ["sleep", 0.5]})
        [event] = events(asked(connection, wrong))
        assert event["type"] == "refused", event
        assert [event["type"] for event in events(sibling)] == ["started", "ended"]


def test_a_name_that_is_no_layers_is_ignored_and_logged(tmp_path):
    path, log = tmp_path / "socket", tmp_path / "log"
    with open(log, "w") as stderr, serving(path, "client_jobs.main", JOBS, "--config", NO_SPARES, stderr=stderr):
        with greeted(path) as connection:
            wanted = {"args": ["sleep", 0.05], "skip_except": ["typo\n" * 50, "seccomp"]}
            assert [event["type"] for event in events(asked(connection, wanted))] == ["started", "ended"]
    [line] = [line for line in log.read_text().splitlines() if "skip_except" in line]
    assert "typo" in line and len(line) < 300


def test_descriptors_that_run_out_cost_nobody_a_child(tmp_path):
    """Connections are limited, so that there are descriptors for the children of others."""
    path = tmp_path / "socket"
    few = ["prlimit", "--nofile=400", "--"]
    with serving(path, "client_jobs.main", JOBS, "--config", NO_SPARES, prefix=few, stderr=subprocess.DEVNULL):
        with pyspawner.Client(connect=path) as client:
            child = client.spawn_child(["sleep", 2])
            idle = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(500)]
            for connection in idle:
                connection.connect(str(path))
            assert said(client.spawn_child(["echo", "fine"])) == "fine"
            for connection in idle:
                connection.close()
            # And so are children; the last one is refused in words.
            children = []
            with pytest.raises(pyspawner.ProtocolError, match="ulimit"):
                while len(children) < 100:
                    children.append(client.spawn_child(["sleep", 60]))
            assert len(children) > 5
            for other in children:
                other.kill()
                other.wait()
            assert child.wait()[1] == 0
            assert said(client.spawn_child(["echo", "still"])) == "still"


def test_a_client_that_cannot_be_told_does_not_stop_the_clock(server):
    """Its control socket is full before the child is asked for."""
    process, path = server
    with greeted(path) as connection:
        end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                end[1].send(b"x" * 1000)
        end[1].setblocking(True)
        with asked(connection, {"args": ["sleep", 60], "timeout": 1}, end=end):
            wait_until(lambda: children_of(host_of(process)))
            wait_until(lambda: children_of(host_of(process)) == [], 10)


def test_a_child_that_was_asked_for_in_the_last_moment_runs(server, open_folder):
    _, path = server
    read, write = os.pipe()
    with greeted(path) as connection:
        control = asked(connection, {"args": ["echo", "last"]}, stdout=write)
        connection.send(b'{"type": "close"}')
        os.close(write)
        assert [event["type"] for event in events(control)] == ["started", "ended"]
    with open(read) as stream:
        assert stream.read() == "last\n"


class Descriptors:
    """Unpickled, it prints what descriptors there are."""

    def __reduce__(self):
        return (exec, ("import os; print([n for n in range(64) if os.path.exists(f'/proc/self/fd/{n}')], flush=True)",))


def test_what_unpickling_runs_finds_no_control_socket(server):
    """It could tell the host what it liked: that a layer failed, or gigabytes."""
    _, path = server
    with pyspawner.Client(connect=path) as client:
        child = client.spawn_child([Descriptors()])
        # The fourth is the listing's own.
        assert child.communicate()[0].splitlines()[0] == b"[0, 1, 2]"


def test_a_network_socket_is_no_stream(server):
    _, path = server
    with greeted(path) as connection, socket.create_server(("127.0.0.1", 0)) as listener:
        [event] = events(asked(connection, {"args": ["echo"]}, stdin=listener.fileno()))
        assert "socket of a network" in event["detail"]
        pair = socket.socketpair()
        control = asked(connection, {"args": ["echo"]}, stdin=pair[0].fileno())
        assert [event["type"] for event in events(control)] == ["started", "ended"]
        for end in pair:
            end.close()


@pytest.mark.parametrize("place", ["stdin", "control", "too many"])
def test_a_socket_that_lingers_keeps_nobody_waiting(server, place):
    """The close of one that has something to send waits for that, if its owner wants it (SO_LINGER)."""
    process, path = server
    seconds = 60
    with socket.create_server(("127.0.0.1", 0)) as listener, greeted(path) as connection:
        lingering = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()  # which reads nothing
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
        lingering.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                lingering.send(bytes(1 << 20))
        # Until it is the last who has it.
        os.kill(host_of(process), signal.SIGSTOP)
        if place == "too many":
            socket.send_fds(connection, [b'{"type": "spawn"}'], [lingering.fileno()] * 8)
            lingering.close()
        elif place == "control":
            asked(connection, {"args": ["echo"]}, end=(socket.socket(), lingering))
        else:
            asked(connection, {"args": ["echo"]}, stdin=lingering.fileno())
            lingering.close()
        for stopped in (process.pid, host_of(process)):  # the init in front of the host stops as it does
            os.kill(stopped, signal.SIGCONT)
        before = time.monotonic()
        with pyspawner.Client(connect=path) as client:
            assert said(client.spawn_child(["echo", "at once"])) == "at once"
        assert time.monotonic() - before < seconds / 2
        peer.close()


CONNECT = """
import socket

def main(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            return print(error.strerror)
        try:
            connection.send(b'{"type": "hello", "version": 1}')
            print(connection.recv(1000).decode() or "sent away")
        except ConnectionError:
            print("sent away")
"""


@pytest.mark.parametrize(
    ("skipped", "answer"),
    [
        ([], "Permission denied"),
        # Root of the machine: the socket is out of sight.
        (["user_namespace", "setuid", "drop_capabilities", "landlock"], "Connection refused"),
        # And if it were not, it is known for what it is.
        (["user_namespace", "setuid", "drop_capabilities", "landlock", "root"], "sent away"),
    ],
)
def test_a_job_does_not_pass_for_a_client(open_folder, skipped, answer):
    (open_folder / "connect.py").write_text(CONNECT)
    path, config = open_folder / "socket", open_folder / "pyspawner.toml"
    config.write_text(f"[profile.default]\nskip_layers = {json.dumps(skipped)}\n")
    with serving(path, "connect.main", open_folder, "--config", config), pyspawner.Client(connect=path) as client:
        heard = said(client.spawn_child([str(path)]))
        assert heard == answer or answer == "sent away" and '"kind":"refused"' in heard


LISTEN = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
connection, _ = listener.accept()
print(connection.recv(1000))
connection.send(b'{"type": "ready", "version": 1, "pid": 1}')
"""


@pytest.mark.parametrize("uid", [54321, 0])
def test_a_client_does_not_talk_to_another_users_host(open_folder, uid):
    path = open_folder / "socket"
    command = ["setpriv", f"--reuid={uid}", "/usr/bin/python3", "-c", LISTEN, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as squatter:
        wait_until(path.exists)
        time.sleep(0.2)
        if uid == 0:
            pyspawner.Client(connect=path).close()  # the control
        else:
            with pytest.raises(PermissionError, match="user 54321 listens"):
                pyspawner.Client(connect=path)
        squatter.kill()


def test_a_host_that_ends_leaves_the_socket_of_another(server, tmp_path):
    process, path = server
    path.unlink()
    with serving(path, "client_jobs.main", JOBS):
        process.terminate()
        process.wait(timeout=20)
        with pyspawner.Client(connect=path) as client:
            assert said(client.spawn_child(["echo", "here"])) == "here"
    assert not path.exists()


def test_a_host_that_cannot_start_says_so_to_those_who_wait(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(2); raise ImportError('on purpose')")
    path = tmp_path / "socket"
    command = [PYSPAWNER, "serve", "--child-main", "slow.main", "--preload", "slow", "--path", tmp_path]
    with subprocess.Popen([*command, "--socket", path, "--python", sys.executable], stderr=subprocess.PIPE):
        wait_until(path.exists)
        with pytest.raises(pyspawner.PreloadError, match="on purpose"):
            pyspawner.Client(connect=path)


def test_a_client_that_stops_reading_costs_the_others_nothing(server):
    _, path = server
    with greeted(path) as deaf:
        null = os.open("/dev/null", os.O_RDWR)
        deaf.setblocking(False)
        for _ in range(300):
            control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            message = b'{"type": "spawn"}\0' + pickle.dumps(["echo"])
            try:
                socket.send_fds(deaf, [message], [null, null, null, other.fileno()])
            except BlockingIOError:
                time.sleep(0.01)
            other.close()
            control.close()
        with pyspawner.Client(connect=path) as client:
            assert said(client.spawn_child(["echo", "fine"])) == "fine"
        os.close(null)


def fuzz(path, seed, seconds):
    """Random requests, half of them nearly right, with random descriptors, cut off at random."""
    rng = random.Random(seed)
    null = os.open("/dev/null", os.O_RDWR)
    end = time.monotonic() + seconds
    count = 0
    keys = ["id", "process_name", "chroot", "skip_except", "timeout", "limits", "network", "nonsense"]
    values = [
        None,
        1,
        -1,
        1e300,
        "",
        "x" * 1000,
        "/etc",
        [],
        ["seccomp"],
        {},
        {"pids": 3},
        {"memory": "1M"},
        {"wall": {"secs": 2**64 - 1, "nanos": 0}},
        "\ud800",
        True,
    ]
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(20)
            try:
                connection.connect(str(path))
            except BlockingIOError:  # more wait to be accepted than may
                time.sleep(0.01)
                continue
            if rng.random() < 0.9:
                connection.send(b'{"type": "hello", "version": 1}')
                if rng.random() < 0.9:  # descriptors pass once the host is ready for them
                    connection.recv(10_000)
            for _ in range(rng.randrange(5)):
                count += 1
                request = {"type": rng.choice(["spawn", "spawn", "spawn", "hello", "close", "kill"])}
                for _ in range(rng.randrange(3)):
                    request[rng.choice(keys)] = rng.choice(values)
                message = bytearray(json.dumps(request).encode())
                if rng.random() < 0.3:
                    for _ in range(rng.randrange(1, 4)):
                        message[rng.randrange(len(message))] = rng.randrange(256)
                if rng.random() < 0.1:
                    message = message[: rng.randrange(len(message))] or bytearray(b"x")
                control, other = socket.socketpair(
                    socket.AF_UNIX, rng.choice([socket.SOCK_SEQPACKET] * 9 + [socket.SOCK_STREAM])
                )
                payload = rng.choice([pickle.dumps(["echo", "x"]), pickle.dumps(7), os.urandom(40), b""])
                arguments = sealed(payload) if rng.random() < 0.9 else os.memfd_create("open")
                passed = [null, null, null, other.fileno(), arguments]
                if rng.random() < 0.5:
                    passed.pop()
                    message += b"\0" + payload
                if rng.random() < 0.1:
                    passed = passed[: rng.randrange(6)]
                if rng.random() < 0.05:
                    rng.shuffle(passed)
                try:
                    socket.send_fds(connection, [bytes(message)], passed)
                    other.close()
                    if rng.random() < 0.3:
                        control.send(rng.choice([b'{"type": "kill"}', b"garbage", os.urandom(20)]))
                    if rng.random() < 0.3:
                        control.settimeout(2)
                        control.recv(10_000)
                except OSError:
                    pass
                os.close(arguments)
                control.close()
                other.close()
    os.close(null)
    return count


def fuzzed(server, seconds):
    process, path = server
    host = host_of(process)
    with pyspawner.Client(connect=path) as client:
        said(client.spawn_child(["echo"]))
        wait_until(lambda: children_of(host) == [])
        time.sleep(0.3)  # a child's end comes before everything of it is closed
        before = unslotted(host), len(os.listdir(f"/proc/{host}/task"))
        seed = int.from_bytes(os.urandom(4), "little")
        print(f"seed {seed}")
        count = fuzz(path, seed, seconds)
        assert said(client.spawn_child(["echo", "fine"])) == "fine"
        wait_until(lambda: children_of(host) == [])
        after = lambda: (unslotted(host), len(os.listdir(f"/proc/{host}/task")))
        wait_until(lambda: after() == before, 10)
    return count


def test_fuzzing_a_living_host(server):
    assert fuzzed(server, 5) > 100


@pytest.mark.soak
def test_fuzzing_a_living_host_for_long(server):
    print(f"{fuzzed(server, int(os.environ.get('FUZZ_SECONDS', 600)))} requests")
