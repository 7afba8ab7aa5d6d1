"""The client."""

import threading
from typing import Any, Mapping, Optional, Sequence

from . import _host
from ._child import ChildProcess
from ._config import SandboxConfig
from ._errors import HostDied
from ._host import PathLike
from ._protocol import LONGEST, Launch, spawn_request


class Client:
    """Starts children from a host that has imported modules already.

    Usable by several threads at once, and beside asyncio: it touches no signal handling, and children
    are not this process's own.

    :param child_main: full name of the function that each child calls, ``"module.function"``.
    :param environment: the children's environment variables: exactly these.
    :param preload_imports: modules that the host imports, once. They are trusted.
    :param executable: the Python interpreter whose packages to use, of the version that the program
        ``pyspawner`` is linked to. By default this one if it is of that version, else the program's own.
    :param connect: path of the socket of a host that runs already (``pyspawner serve --socket``); all
        the above is that host's matter then.
    :param config: a configuration file for the host (``docs/configuration.md``).
    :param profile: which sandbox profile of it to use.
    :raises PreloadError: if a module cannot be imported.
    :raises SandboxSetupError: if children cannot be sandboxed on this machine.
    :raises HostDied: if the host ends before it is ready.
    """

    def __init__(
        self,
        *,
        child_main: Optional[str] = None,
        environment: Mapping[str, str] = {},
        preload_imports: Sequence[str] = (),
        executable: Optional[PathLike] = None,
        connect: Optional[PathLike] = None,
        config: Optional[PathLike] = None,
        profile: Optional[str] = None,
    ) -> None:
        self._closed = True
        if (child_main is None) == (connect is None):
            raise TypeError("Client() takes either child_main or connect")
        self._process = None
        if connect is not None:
            self._connection = _host.connect(connect)
        else:
            assert child_main is not None
            self._connection, self._process = _host.start(
                child_main, environment, preload_imports, executable, config, profile
            )
        self._lock = threading.Lock()
        try:
            _host.greet(self._connection, self._process)
        except BaseException:
            self._connection.close()
            if self._process is not None:
                _host.reap(self._process, at_once=False)
            raise
        self._closed = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()

    def spawn_child(
        self,
        args: Sequence[Any] = (),
        *,
        process_name: Optional[str] = None,
        sandbox_config: SandboxConfig = SandboxConfig(),
    ) -> ChildProcess:
        """Start a child that calls ``child_main(*args)``, and return once it does.

        :param args: arguments, which must be picklable. They are unpickled in the child alone.
        :param process_name: what ``ps`` shows, 15 bytes at most.
        :param sandbox_config: what it has otherwise than the host's profile says.
        :raises SandboxSetupError: if a layer of the sandbox cannot be applied.
        :raises InvalidArguments: if the arguments cannot be unpickled there.
        :raises HostDied: if the host has ended.
        """
        request = spawn_request(process_name, sandbox_config)
        with Launch(args) as launch:
            if self._closed:
                raise HostDied("the client is closed")
            # One message each, so threads need no lock.
            launch.send(self._connection, request)
            return ChildProcess(launch)

    def close(self) -> None:
        """Part from the host. Children that run are left to finish, and the host ends after them, unless
        it is one that this client has only connected to."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        left = _farewell(self._connection)
        self._connection.close()
        if self._process is not None:
            _host.reap(self._process, at_once=left == 0)


def _farewell(connection: Any) -> int:
    """Say good-bye: how many children run on."""
    try:
        connection.send(_host.CLOSE)
        return _host.children_left(connection.recv(LONGEST))
    except OSError:
        return 0  # the host has ended


