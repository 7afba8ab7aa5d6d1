"""Starting a host, connecting to one, and parting from it."""

import errno
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from ._errors import HostDied
from ._protocol import CLOSE, SpawnMessage, keep_from_copies, pair, send

# Not in the module socket: Linux 6.5, <asm-generic/socket.h>.
_SO_PEERPIDFD = 77

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


@dataclass(frozen=True)
class HostSpec:
    """Which host a client wants: one of its own, or one that listens at ``connect``."""

    child_main: Optional[str]
    environment: Mapping[str, str]
    preload_imports: Sequence[str]
    executable: Optional[PathLike]
    connect: Optional[PathLike]
    config: Optional[PathLike]
    profile: Optional[str]

    def __post_init__(self) -> None:
        if self.child_main is not None and not _is_function_name(self.child_main):
            raise TypeError(
                f"child_main: expected the full name of a function, such as 'module.function', got {self.child_main!r}"
            )
        for name, value in self.environment.items():
            if (
                not isinstance(name, str)
                or not isinstance(value, str)
                or not name
                or "=" in name
                or "\0" in name + value
            ):
                raise TypeError(f"environment: expected text by the names of variables, got {name!r}: {value!r}")
        if isinstance(self.preload_imports, str):
            raise TypeError(
                f"preload_imports: expected a list of names, got {self.preload_imports!r}; hint: [{self.preload_imports!r}]"
            )
        own = (self.child_main, self.config, self.profile, self.executable)
        if self.connect is not None and (
            any(value is not None for value in own) or self.environment or self.preload_imports
        ):
            raise TypeError("with connect, child_main and all else is the matter of the host that runs already")
        if self.connect is None and self.child_main is None and self.config is None:
            raise TypeError("a client takes child_main, or a config that has it, or connect")
        for name in self.preload_imports:
            if not name or set(name) & set('," '):
                raise ValueError(f"{name!r} is no module's name")

    def start(self) -> "HostConnection":
        """Start a host of our own. Does not wait until it is ready."""
        command: list[str] = [find_program(), "serve", "--inherit-env"]
        if self.child_main is not None:
            command += ["--child-main", self.child_main]
        for name in self.preload_imports:
            command += ["--preload", name]
        if self.executable is not None:
            command += ["--python", os.fspath(self.executable)]
        elif sys.executable:
            command += ["--prefer-python", sys.executable]
        if self.config is not None:
            command += ["--config", os.fspath(self.config)]
        if self.profile is not None:
            command += ["--profile", self.profile]
        connection, other = pair()
        with other:
            try:
                process = subprocess.Popen(
                    [*command, "--client-fd", str(other.fileno())],
                    env=dict(self.environment),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[other.fileno()],
                    # Ctrl-C at the terminal is for the program, which may go on. What ends the host
                    # is the connection's end.
                    start_new_session=True,
                )
            except BaseException:
                connection.close()
                raise
        return HostConnection(connection, process)


def _is_function_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)*[.:]\w+(\.\w+)*", name) is not None


class HostConnection:
    """A connection to a host, and its process if it is our own."""

    def __init__(self, connection: socket.socket, process: "Optional[subprocess.Popen[bytes]]" = None) -> None:
        self.socket = connection
        self.process = process
        self._pid = os.getpid()
        # Held while the connection's number is in use; by a signal handler, too.
        self._sending = threading.RLock()

    def is_ours(self) -> bool:
        """Whether this is the process that made it, and not a forked copy."""
        return os.getpid() == self._pid

    def send(self, message: SpawnMessage) -> None:
        """Ask for a child."""
        if not self.is_ours():
            raise HostDied("the client is another process's, of which this is a forked copy: make one here")
        with self._sending:
            if self.socket.fileno() < 0:
                raise HostDied("the client is closed")
            message.send(self.socket)

    def close(self) -> None:
        """Close the connection."""
        # Not while another thread uses its number, which may be another socket's soon.
        with self._sending:
            self.socket.close()

    def abandon(self) -> None:
        """Part from the host without a word, or from one that has had it."""
        self.close()
        self.reap_later()

    def drop(self) -> None:
        """Say good-bye without waiting for an answer: of a client that nobody holds any more, or at the
        interpreter's end, where nothing may wait and no thread can be started."""
        if not self.is_ours():
            return
        try:
            self.socket.setblocking(False)
            send(self.socket, CLOSE)
        except OSError:
            pass  # the host has ended; or it is so far behind that it takes this for the client's death
        self.socket.close()

    def reap_later(self) -> None:
        """Leave no zombie of the host: have a thread wait for it."""
        if self.process is None or sys.is_finalizing():
            return  # a zombie's parent that ends leaves none
        try:
            threading.Thread(target=self.process.wait, name="pyspawner-reaper", daemon=True).start()
        except RuntimeError:
            pass  # the interpreter ends


def new_socket() -> socket.socket:
    """A socket with which to connect to a host that listens."""
    return keep_from_copies(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))


def connect(path: PathLike) -> HostConnection:
    """Connect to a host that listens at ``path``."""
    connection = new_socket()
    try:
        connection.connect(os.fspath(path))
        check_listener(connection, path)
    except OSError as error:
        connection.close()
        raise explained(error, path) from None
    except BaseException:
        connection.close()
        raise
    return HostConnection(connection)


def explained(error: OSError, path: PathLike) -> OSError:
    """The error of a connection that did not come about, in the user's words."""
    words = {
        errno.ENOENT: "no host listens there; hint: pyspawner serve --socket PATH --child-main MODULE.FUNCTION",
        errno.ECONNREFUSED: "no host listens there any more; hint: start it again",
        errno.EACCES: "the host's socket is closed to this user; hint: pyspawner serve --socket-group, --socket-mode and --allow-uid",
        errno.EPROTOTYPE: "that is another program's socket",
    }
    if error.errno in words and error.filename is None:
        return OSError(error.errno, words[error.errno], os.fspath(path))
    return error


def check_listener(connection: socket.socket, path: PathLike) -> None:
    """Refuse a host of another user, and a job, which could read arguments and make up outcomes."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in (0, os.geteuid()):
        raise PermissionError(errno.EACCES, f"user {uid} listens there, not this one or root", os.fspath(path))
    # A job of an ordinary user's host may be that user; it is in a PID namespace below.
    if uid != 0 and _is_in_a_namespace_below(connection):
        raise PermissionError(
            errno.EACCES, "a job or a container listens there, and no host of this user", os.fspath(path)
        )


def _is_in_a_namespace_below(connection: socket.socket) -> bool:
    """Whether the other end has a number in another PID namespace besides (``proc_pid_fdinfo(5)``, ``NSpid``)."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # before Linux 6.5
            return False
        return True  # it has ended, as a job may have that left its socket
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as info:
            numbers = [line.split()[1:] for line in info if line.startswith("NSpid:")]
    finally:
        os.close(pidfd)
    # 0: it has no number in this process's own namespace, so it is beside or above that, as a job is for a client in a container.
    return not numbers or len(numbers[0]) != 1 or numbers[0] == ["0"]
