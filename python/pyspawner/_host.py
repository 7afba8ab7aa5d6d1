"""Starting a host, and connecting to one."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ._errors import HostDied, ProtocolError, failure
from ._protocol import LONGEST, VERSION, decode, encode

PathLike = Union[str, "os.PathLike[str]"]


def find_program() -> str:
    """The ``pyspawner`` command: $PYSPAWNER, beside this interpreter, or on PATH."""
    named = os.environ.get("PYSPAWNER")
    beside = Path(sysconfig.get_path("scripts")) / "pyspawner"
    found = named or (str(beside) if beside.is_file() else shutil.which("pyspawner"))
    if found is None:
        raise FileNotFoundError(
            "there is no pyspawner command; hint: install the package with its program (pip install .), "
            "or name it with PYSPAWNER=/path/to/pyspawner"
        )
    return found


def start(
    child_main: str,
    environment: Mapping[str, str],
    preload_imports: Sequence[str],
    executable: Optional[PathLike],
    config: Optional[PathLike],
    profile: Optional[str],
) -> Tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Start a host of our own: the connection, and its process. Does not wait until it is ready."""
    command: List[str] = [find_program(), "serve", "--child-main", child_main, "--inherit-env"]
    for name in preload_imports:
        if "," in name or not name:
            raise ValueError(f"{name!r} is no module's name")
        command += ["--preload", name]
    if executable is not None:
        command += ["--python", os.fspath(executable)]
    elif sys.executable:
        command += ["--prefer-python", sys.executable]
    if config is not None:
        command += ["--config", os.fspath(config)]
    if profile is not None:
        command += ["--profile", profile]
    connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        try:
            process = subprocess.Popen(
                [*command, "--client-fd", str(other.fileno())],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )
        except BaseException:
            connection.close()
            raise
    return connection, process


def connect(path: PathLike) -> socket.socket:
    """Connect to a host that listens at ``path``."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(os.fspath(path))
    except BaseException:
        connection.close()
        raise
    return connection


HELLO = encode("hello", version=VERSION)
CLOSE = encode("close")


def greet(connection: socket.socket, process: "Optional[subprocess.Popen[bytes]]") -> None:
    """Wait until the host is ready."""
    try:
        connection.send(HELLO)
        message = connection.recv(LONGEST)
    except (BrokenPipeError, ConnectionResetError):
        message = b""
    check_ready(message, process)


def check_ready(message: bytes, process: "Optional[subprocess.Popen[bytes]]") -> None:
    """Check the host's answer to the greeting."""
    if not message and process is not None:
        raise HostDied(f"the host has ended with status {process.wait()} before it was ready; see standard error")
    event = decode(message)
    if event["type"] == "failed":
        raise failure(event)
    if event["type"] != "ready":
        raise ProtocolError(f"expected the host to be ready, got {event}")


def children_left(message: bytes) -> int:
    """The number of children that run on, by the host's answer to a farewell."""
    event: Dict[str, Any] = decode(message) if message else {}
    return int(event.get("children", 0))


def reap(process: "subprocess.Popen[bytes]", at_once: bool) -> None:
    """Leave no zombie of the host: wait for it, or have a thread wait."""
    if at_once:
        process.wait()
    else:
        threading.Thread(target=process.wait, name="pyspawner-reaper", daemon=True).start()
