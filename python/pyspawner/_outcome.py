"""How a child ended, and the exception for a job that did not end well."""

import json
import os
import reprlib
from dataclasses import dataclass
from typing import Any, Optional

from ._errors import ProtocolError, PyspawnerError

_NOT_ASKED: Any = object()


@dataclass(frozen=True, repr=False)
class Outcome:
    """How a child ended, as the host measured it."""

    name: str
    """One of ``ok``, ``exited``, ``signaled``, ``blocked_syscall``, ``timed_out``, ``out_of_memory``,
    ``output_limit``, ``invalid_result``, ``cancelled``; ``setup_failed`` if the child was killed before its code ran."""
    status: int
    """As ``os.wait`` has it: see ``os.waitstatus_to_exitcode``."""
    detail: Optional[str]
    """What there is to say about it, such as the blocked system call's name."""
    wall_ms: float
    """From the request to the end, in milliseconds."""
    cpu_ms: float
    """Processor time in milliseconds."""
    peak_memory_bytes: int
    """Memory that the child added to the warm image, at most."""
    unenforced: tuple[str, ...] = ()
    """The limits that were not in force, for want of control groups: ``cpu`` not at all, ``memory`` for each process alone."""
    _returned: Any = _NOT_ASKED

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "_returned"}
        if self._returned is not _NOT_ASKED:
            values["result"] = self._returned
        return f"Outcome({', '.join(f'{name}={reprlib.repr(value)}' for name, value in values.items())})"

    @property
    def result(self) -> Any:
        """What ``child_main`` returned, as decoded JSON (``docs/results.md`` has the forms); None if the outcome is not ``ok``.

        :raises ValueError: if the child was started without ``result=True``.
        """
        if self._returned is _NOT_ASKED:
            raise ValueError(
                "the child was not asked for its result; hint: spawn_child(..., result=True), or client.call()"
            )
        return self._returned

    @classmethod
    def of(cls, event: dict[str, Any], file: Optional[int]) -> "Outcome":
        """The outcome in a host's ``ended`` event. ``file`` holds a result that is too long for a message."""
        try:
            keys = ("outcome", "status", "detail", "wall_ms", "cpu_ms", "peak_memory_bytes")
            values = [event[key] for key in keys]
            values.append(tuple(event.get("unenforced", ())))
        except KeyError as error:
            raise ProtocolError(f"the host's event has no {error}") from None
        if "result_bytes" in event:
            values.append(_read_result(file, event["result_bytes"]))
        else:
            values.append(event.get("result", _NOT_ASKED))
        return cls(*values)


def _read_result(file: Optional[int], length: int) -> Any:
    if file is None:
        raise ProtocolError("the host's event came without the file that it tells of; hint: is a descriptor left here?")
    with open(os.dup(file), "rb") as content:
        data = content.read()
    if len(data) != length:
        raise ProtocolError(f"the result has {len(data)} bytes, and the host speaks of {length}")
    return json.loads(data)


# Of what a job says in an error's text, in characters.
_LONGEST = 1000


def _plain(text: str) -> str:
    """What a job said, without what a terminal obeys."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_LONGEST])


class JobError(PyspawnerError):
    """A job that `pyspawner.Client.call` ran did not end well. A subclass says how, for the outcomes that callers treat
    in ways of their own; of others it is this class."""

    def __init__(self, outcome: Outcome, stdout: bytes, stderr: bytes) -> None:
        last = stderr[-4 * _LONGEST :].decode(errors="replace").strip().rpartition("\n")[2]
        code = os.waitstatus_to_exitcode(outcome.status)
        super().__init__(f"{outcome.name}: {_plain(outcome.detail or last or f'exit status {code}')}")
        self.outcome = outcome
        """How the child ended."""
        self.stdout = stdout
        """What it wrote to standard output."""
        self.stderr = stderr
        """What it wrote to standard error: the traceback, if ``child_main`` raised."""

    @staticmethod
    def of(outcome: Outcome, stdout: bytes, stderr: bytes) -> "JobError":
        """The exception for an outcome that is not ``ok``."""
        return _JOB_ERRORS.get(outcome.name, JobError)(outcome, stdout, stderr)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.outcome, self.stdout, self.stderr)


class JobExited(JobError):
    """``child_main`` raised an exception, or exited with a status other than 0."""


class JobTimedOut(JobError, TimeoutError):
    """It ran for longer than its limit."""


class JobOutOfMemory(JobError, MemoryError):
    """It needed more memory than its limit, or than the machine had."""


class JobKilled(JobError):
    """A signal ended it: a crash, or `pyspawner.ChildProcess.kill`."""


class JobBlocked(JobError, PermissionError):
    """It made a system call that the sandbox does not allow."""


class JobOutputLimit(JobError):
    """It returned more than its limit."""


class InvalidResult(JobError, TypeError):
    """What ``child_main`` returned has no JSON form; the detail says where and what to do."""


_JOB_ERRORS = {
    "exited": JobExited,
    "timed_out": JobTimedOut,
    "out_of_memory": JobOutOfMemory,
    "signaled": JobKilled,
    "blocked_syscall": JobBlocked,
    "output_limit": JobOutputLimit,
    "invalid_result": InvalidResult,
}
