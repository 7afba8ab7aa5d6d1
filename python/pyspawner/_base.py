"""What `Client` and `AsyncClient` share: their parameters, the connection to the host, and its end."""

import subprocess
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ._errors import HostDied
from ._host import HostConnection, HostSpec, PathLike
from ._outcome import JobError, JobExited, Outcome


class ClientBase:
    """A client's parameters, and its connection to the host while that is open."""

    _connection: Optional[HostConnection] = None
    _dropped: "Optional[weakref.finalize[..., Any]]" = None

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
        self._spec = HostSpec(child_main, environment, preload_imports, executable, connect, config, profile)
        self._prepare()

    def _prepare(self) -> None:
        """The constructor's last step. `Client` opens its connection here; `AsyncClient` cannot wait here."""

    @property
    def _process(self) -> "Optional[subprocess.Popen[bytes]]":
        return None if self._connection is None else self._connection.process

    def _attach(self, connection: HostConnection) -> None:
        """Use this connection from now on."""
        self._connection = connection
        # As the last resort, and at the interpreter's end while all still works.
        self._dropped = weakref.finalize(self, connection.drop)

    def _detach(self) -> Optional[HostConnection]:
        """Give the connection to the first caller, who must close it; None to the others."""
        if self._connection is None or not self._connection.is_ours():
            return None
        is_first = self._dropped is not None and self._dropped.detach() is not None
        return self._connection if is_first else None

    def _open_connection(self) -> HostConnection:
        """The connection: HostDied if the client was closed."""
        if self._connection is None or self._dropped is None or not self._dropped.alive:
            raise HostDied("the client is closed")
        return self._connection


# Parameters of spawn_child() that call() passes on to child_main, since they may be meant for it.
_OF_SPAWN_CHILD = frozenset(["args", "kwargs", "process_name", "sandbox_config", "result", "timeout"])


def result_or_error(outcome: Outcome, stdout: bytes, stderr: bytes, kwargs: Mapping[str, Any]) -> Any:
    """What ``child_main(**kwargs)`` returned, or the exception that tells why there is nothing."""
    if outcome.name == "ok":
        return outcome.result
    error = JobError.of(outcome, stdout, stderr)
    unexpected = _OF_SPAWN_CHILD & kwargs.keys()
    if isinstance(error, JobExited) and unexpected and b"unexpected keyword argument" in stderr:
        error.args = (
            f"{error}; hint: call() passes all arguments on to child_main; "
            "spawn_child(args, kwargs, sandbox_config=..., result=True) takes options of the child",
        )
    raise error


def check_call(kwargs: Mapping[str, Any]) -> None:
    """TypeError for options of ``spawn_child`` that were given to ``call``, which passes on what it gets."""
    for name, value in kwargs.items():
        if type(value).__module__ == "pyspawner._config":
            raise TypeError(
                f"{name}: call() passes all arguments on to child_main; hint: "
                f"spawn_child(args, kwargs, {name}=..., result=True), then outcome().result"
            )
