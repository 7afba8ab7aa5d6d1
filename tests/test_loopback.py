"""`network = "loopback"`: programs of a job that speak to each other by TCP and UDP."""

import json
import subprocess

import pytest
from processes import wait_until
from pyspawner import Client, SandboxConfig

LOOPBACK = '[profile.default]\nnetwork = "loopback"\n'


def value(pyspawner, name, *args, config=LOOPBACK, **options):
    return pyspawner.value(f"loopback.{name}", *args, config=config, **options)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_servers_of_the_standard_library(pyspawner, address):
    assert value(pyspawner, "serve_http", address) == "served /page"
    assert value(pyspawner, "echo_by_asyncio", address) == "HELLO"
    assert value(pyspawner, "send_datagrams", address) == "datagram"


def test_processes_of_a_job_meet(pyspawner):
    assert value(pyspawner, "share_by_manager") == {"a": 1, "b": 2}
    assert value(pyspawner, "meet_by_rendezvous", 3) == ["0 2", "1 0", "2 1"]
    assert value(pyspawner, "call_by_rpc") == 1024


def test_nothing_works_without_it(pyspawner):
    """The control."""
    line = pyspawner.job("loopback.send_datagrams", "127.0.0.1")
    assert line["outcome"] == "exited" and "Network is unreachable" in line["stderr"]


def test_there_is_nothing_else(pyspawner):
    assert value(pyspawner, "interfaces") == [[["lo", True]], ["lo"], []]


def test_many_jobs_and_spares(pyspawner):
    done = pyspawner.map("loopback.call_by_rpc", [[]] * 30, "-j", "4", config=LOOPBACK)
    assert [line["result"] for line in done.lines] == [1024] * 30, done


def test_an_empty_root_and_a_chroot_have_it_too(pyspawner, open_folder):
    for root in ("{ empty = true }", f'{{ chroot = "{open_folder}" }}'):
        config = LOOPBACK + f"root = {root}\n"
        assert value(pyspawner, "send_datagrams", "127.0.0.1", config=config) == "datagram"


def test_without_the_namespace_it_is_refused(pyspawner):
    config = LOOPBACK + 'skip_layers = ["network_namespace"]\n'
    done = pyspawner.map("loopback.call_by_rpc", [[]], config=config)
    assert done.status == 125 and "pyspawner.toml:2: " in done.stderr and "machine's own" in done.stderr


def test_a_client_has_the_profiles(pyspawner, open_folder):
    (open_folder / "client_job.py").write_text(
        "import json, loopback\n"
        "def main(): print(json.dumps(loopback.interfaces()), loopback.reach(('127.0.0.1', 9)))\n"
    )
    open_folder.chmod(0o755)
    socket = pyspawner.folder / "socket"
    flags = ["--socket", str(socket), "--path", str(open_folder)]
    command = pyspawner.command("serve", "client_job.main", *flags, config=LOOPBACK)
    with subprocess.Popen(command) as process:
        try:
            wait_until(socket.exists)
            with Client(connect=socket) as client:
                for config in (SandboxConfig(), SandboxConfig(memory="1G")):
                    out = client.spawn_child([], sandbox_config=config).communicate()[0].decode()
                    assert out == json.dumps([[["lo", True]], ["lo"], []]) + " ['ECONNREFUSED']\n"
        finally:
            process.terminate()
