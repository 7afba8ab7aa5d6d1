"""The client."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ._base import ClientBase, check_call, result_or_error
from ._child import ChildProcess
from ._config import SandboxConfig
from ._events import check_ready, children_left
from ._host import connect
from ._protocol import CLOSE, SpawnMessage, greet, receive, send, spawn_request


class Client(ClientBase):
    """Starts children from a host that has imported modules already.

    Usable by several threads at once, and beside asyncio: it touches no signal handling, and children
    are not this process's own.

    One that is dropped, or not closed when the program ends in order, parts from the host as
    `close` does, but without waiting: children that run are left to finish. If the program is
    killed, its children are ended. A forked copy of the program has no part in this: the client does
    not work there, and the copy's end is nobody's.

    :param child_main: full name of the function that each child calls, ``"module.function"``. May be left to ``config``.
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
    :raises ConfigurationError: if the host cannot be started so, as with a mistake in ``config``.
    :raises AccessDenied: if the host at ``connect`` does not serve this user.
    """

    def _prepare(self) -> None:
        path = self._spec.connect
        connection = self._spec.start() if path is None else connect(path)
        try:
            greet(connection.socket)
            message = receive(connection.socket)
            process = connection.process
            check_ready(message, process.wait() if process and not message else None)
        except BaseException:
            connection.abandon()
            raise
        self._attach(connection)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn_child(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        process_name: Optional[str] = None,
        sandbox_config: SandboxConfig = SandboxConfig(),
        result: bool = False,
    ) -> ChildProcess:
        """Start a child that calls ``child_main(*args, **kwargs)``, and return once it does.

        :param args: arguments, which must be picklable. They are unpickled in the child alone.
        :param kwargs: keyword arguments, likewise.
        :param process_name: what ``ps`` shows, 15 bytes at most.
        :param sandbox_config: what it has otherwise than the host's profile says.
        :param result: whether ``outcome().result`` is to have what ``child_main`` returns. A value that has no JSON form
            (``docs/results.md``) makes the outcome ``invalid_result`` then.
        :raises SandboxSetupError: if a layer of the sandbox cannot be applied.
        :raises TypeError: if a value cannot be sent to the host; nothing is sent then.
        :raises ValueError: likewise.
        :raises InvalidRequest: if the host does not accept a value.
        :raises HostDied: if the host has ended, or the client is closed or another process's.

        If it is interrupted (KeyboardInterrupt), the child is ended.
        """
        request = spawn_request(process_name, sandbox_config, result)
        with SpawnMessage(request, args, kwargs) as message:
            self._open_connection().send(message)
            return ChildProcess(message)

    def call(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``child_main(*args, **kwargs)`` in a child of its own, and return what it returns, as decoded JSON.

        What the child prints is thrown away, unless the call fails: then the error has the last megabyte of each
        stream. For this child's output, or limits of its own, use `spawn_child` with ``result=True``.

        :raises JobError: if the outcome is not ``ok``; its subclass says which it is, and it has the child's outcome, standard
            output and standard error.
        :raises SandboxSetupError: as `spawn_child` does.
        :raises HostDied: likewise.
        """
        check_call(kwargs)
        with self.spawn_child(args, kwargs, result=True) as child:
            child._keep_tails()
            try:
                out, err = child.communicate()
            except BaseException:
                child.kill()  # nobody waits for its result any more
                raise
            return result_or_error(child.outcome(), out, err, kwargs)

    def close(self) -> None:
        """Part from the host. Children that run are left to finish, and the host ends after them, unless
        it is one that this client has only connected to. Does nothing in a forked copy of the process
        that made the client."""
        connection = self._detach()
        if connection is None:
            return
        try:
            send(connection.socket, CLOSE)
            left = children_left(receive(connection.socket))
        except OSError:
            left = 0  # the host has ended
        except BaseException:
            connection.abandon()
            raise
        connection.close()
        if left == 0 and connection.process is not None:
            connection.process.wait()
        else:
            connection.reap_later()
