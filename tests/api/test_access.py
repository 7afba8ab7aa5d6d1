"""Who may connect to a host, and what is said to whom it does not serve."""

import os
import socket
import stat
import subprocess
import sys

import pyspawner
import pytest
from clients import JOBS, NO_SPARES, open_client, serving
from driving import PYSPAWNER, ROOT
from processes import host_of, unslotted, wait_until
from pyspawner import SandboxConfig

USER, GROUP = 54321, 54333
# A program of another user's: what its job says, or the error's name and words.
PROGRAM = """
import sys, pyspawner
try:
    with pyspawner.Client(connect=sys.argv[1]) as client:
        print(client.spawn_child(["echo", "served"]).communicate()[0].decode().strip())
except Exception as error:
    print(type(error).__name__, isinstance(error, PermissionError), error)
"""


def as_user(path, groups=()):
    """What a program of another user's gets there."""
    groups = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", groups, "/usr/bin/python3", "-c", PROGRAM, path]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT / "python")}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("flags", "groups", "answer"),
    [
        ([], [], "PermissionError True"),
        (["--socket-mode", "0666"], [], "AccessDenied True user 54321 is not admitted"),
        (["--socket-mode", "0666", "--allow-uid", str(USER)], [], "served"),
        (["--socket-group", str(GROUP)], [GROUP], "AccessDenied True user 54321 is not admitted"),
        (["--socket-group", str(GROUP), "--allow-uid", str(USER)], [GROUP], "served"),
        (["--socket-group", str(GROUP), "--allow-uid", str(USER)], [], "PermissionError True"),
        (
            ["--socket-group", str(GROUP), "--socket-mode", "0600", "--allow-uid", str(USER)],
            [GROUP],
            "PermissionError True",
        ),
    ],
)
def test_who_is_served(open_folder, flags, groups, answer):
    open_folder.chmod(0o755)
    path = open_folder / "socket"
    with serving(path, "client_jobs.main", JOBS, *flags):
        said = as_user(path, groups)
        assert said.startswith(answer) and (answer == "served" or "allow-uid" in said), said
        mode = os.stat(path)
        assert (
            stat.S_IMODE(mode.st_mode) == int(flags[flags.index("--socket-mode") + 1], 8)
            if "--socket-mode" in flags
            else True
        )
        assert mode.st_gid == (GROUP if "--socket-group" in flags else os.getgid())
        with pyspawner.Client(connect=path) as client:  # root is
            assert client.spawn_child(["echo", "served"]).communicate()[0] == b"served\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--socket-mode", "999"], "a mode in octal, such as 0660"),
        (["--socket-group", "no-such-group"], "there is no such group"),
        (["--allow-uid", "no-such-user"], "there is no such user"),
    ],
)
def test_names_that_are_none(tmp_path, flags, words):
    command = [PYSPAWNER, "serve", "--child-main", "a.b", "--socket", tmp_path / "socket", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125 and words in done.stderr, done


def test_where_nobody_listens(tmp_path):
    with pytest.raises(FileNotFoundError, match="no host listens there; hint: pyspawner serve --socket") as caught:
        pyspawner.Client(connect=tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")


def test_a_configuration_may_have_child_main(tmp_path):
    config = tmp_path / "pyspawner.toml"
    config.write_text(f'child_main = "calls.main"\npath = ["{JOBS}"]\n')
    with pyspawner.Client(config=config) as client:
        assert client.call("back", 1) == [[1], {}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "child_main, or a config that has it, or connect"),
        ({"child_main": "a.b", "connect": "/x"}, "the host that runs already"),
        ({"child_main": "a.b", "preload_imports": "json"}, r"expected a list of names, got 'json'; hint: \['json'\]"),
    ],
)
def test_what_cannot_be_meant(arguments, words):
    with pytest.raises(TypeError, match=words):
        pyspawner.Client(**arguments)
    with pytest.raises(TypeError, match=words):
        pyspawner.AsyncClient(**arguments)


def test_values_of_a_wrong_kind():
    with open_client() as client:
        with pytest.raises(TypeError, match="sandbox_config: expected a pyspawner.SandboxConfig, got {'timeout': 1}"):
            client.spawn_child(["echo"], sandbox_config={"timeout": 1})
        with pytest.raises(TypeError, match="timeout: expected a number, got"):
            client.spawn_child(["echo"], sandbox_config=SandboxConfig(timeout=[30]))


def test_a_start_that_fails_leaves_no_socket(open_folder):
    """Here in a folder that gives what is made in it a group of its own."""
    os.chown(open_folder, -1, GROUP)
    open_folder.chmod(0o2755)
    path = open_folder / "socket"
    command = [
        PYSPAWNER,
        "serve",
        "--child-main",
        "client_jobs.main",
        "--path",
        JOBS,
        "--socket",
        path,
        "--socket-group",
        "54334",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125 and "is of group" in done.stderr, done
    assert not path.exists()


def test_users_who_are_not_served_fill_no_log_and_keep_nobody_waiting(open_folder):
    open_folder.chmod(0o755)
    path = open_folder / "socket"
    flood = (
        "import socket, sys\n"
        "for _ in range(3000):\n"
        "    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s: s.connect(sys.argv[1])\n"
    )
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "/usr/bin/python3", "-c", flood, path]
    log = open_folder / "log"
    flags = ["--socket-mode", "0666", "--config", NO_SPARES]
    with log.open("w") as stderr, serving(path, "client_jobs.main", JOBS, *flags, stderr=stderr) as host:
        with pyspawner.Client(connect=path) as client:
            assert client.spawn_child(["echo", "served"]).communicate()[0] == b"served\n"
            before = unslotted(host_of(host))
            with subprocess.Popen(command) as flooding:
                assert client.spawn_child(["echo", "served"]).communicate()[0] == b"served\n"
                assert flooding.wait(60) == 0
            wait_until(lambda: unslotted(host_of(host)) <= before)
    assert 1 <= log.read_text().count("a client is not served") < 20


def test_a_listener_outside_of_a_clients_pid_namespace_is_told(tmp_path):
    """For a client in a container of its own, a job of the same user's host is such a listener: it has no number there."""
    path = str(tmp_path / "socket")
    program = (
        "import socket, sys\n"
        "from pyspawner._host import _is_in_a_namespace_below as is_elsewhere\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:\n"
        "    client.connect(sys.argv[1])\n"
        "    print(is_elsewhere(client))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        for prefix, said in ([], "False\n"), (["unshare", "--pid", "--fork", "--mount-proc"], "True\n"):
            command = [*prefix, sys.executable, "-c", program, path]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            assert done.stdout == said, prefix
