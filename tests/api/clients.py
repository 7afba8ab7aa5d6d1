"""What the tests of clients share."""

import signal
import socket
import subprocess
import sys
from contextlib import chdir, contextmanager
from pathlib import Path

import pyspawner
import pytest
from driving import PYSPAWNER
from processes import wait_until

JOBS = Path(__file__).parent / "jobs"
NO_SPARES = JOBS / "no_spares.toml"


def open_client(**options):
    with chdir(JOBS):
        return pyspawner.Client(**{"child_main": "client_jobs.main", **options})


@pytest.fixture(scope="module")
def client():
    with open_client() as client:
        yield client


@contextmanager
def serving(path, child_main, folder, *flags, prefix=(), **options):
    """A host that listens at ``path``."""
    command = [*prefix, PYSPAWNER, "serve", "--child-main", child_main, "--path", folder, "--socket", path]
    with subprocess.Popen([*command, "--python", sys.executable, *flags], **options) as process:
        try:
            wait_until(path.exists)
            yield process
        finally:
            process.terminate()
            status = process.wait(timeout=20)
    assert status == 128 + signal.SIGTERM


@pytest.fixture
def server(tmp_path):
    """A host with a socket, and its path."""
    path = tmp_path / "socket"
    with serving(path, "client_jobs.main", JOBS, "--config", NO_SPARES) as process:
        yield process, path
    assert not path.exists()


def said(child):
    return child.communicate()[0].decode().strip()


def greeted(path):
    """A bare connection to a host."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    connection.connect(str(path))
    connection.send(b'{"type": "hello", "version": 1}')
    assert b"ready" in connection.recv(1000)
    return connection
