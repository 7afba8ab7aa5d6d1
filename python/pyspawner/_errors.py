"""What can go wrong."""

import os
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from ._child import Outcome


class PyspawnerError(Exception):
    """Base of all errors of this package."""


class HostDied(PyspawnerError):
    """The host has ended, or was never there. What it had to say is on standard error."""


class ConfigurationError(PyspawnerError, ValueError):
    """A host cannot be started so: its words, about the configuration or the interpreter, are the argument."""


class AccessDenied(PyspawnerError, PermissionError):
    """The host does not serve this user; its words are the argument."""


class ProtocolError(PyspawnerError):
    """Host and client do not understand each other; the host's words are the argument."""


class PreloadError(PyspawnerError):
    """A module could not be imported, or ``child_main`` not be found: the traceback is the argument."""


class SandboxSetupError(PyspawnerError):
    """A layer of the sandbox could not be applied. No code of the job has run.

    ``outcome`` says what came between, if it is not that: ``"timed_out"``, ``"cancelled"``,
    ``"signaled"``.
    """

    def __init__(
        self,
        detail: str,
        *,
        layer: Optional[str] = None,
        step: Optional[str] = None,
        errno: Optional[int] = None,
        hint: Optional[str] = None,
        outcome: str = "setup_failed",
    ) -> None:
        super().__init__(detail)
        self.layer = layer
        """The layer's name, as in ``docs/sandbox.md``, or None if it was none."""
        self.step = step
        """The call that failed, with its operand."""
        self.errno = errno
        """Its error number."""
        self.hint = hint
        """What is likely wrong on this machine."""
        self.outcome = outcome


# Of what a job says in an error's text, in characters.
_LONGEST = 1000


def _plain(text: str) -> str:
    """What a job said, without what a terminal obeys."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_LONGEST])


class JobError(PyspawnerError):
    """A job that `pyspawner.Client.call` ran did not end well. A subclass says how, for the outcomes that callers treat
    in ways of their own; of others it is this class."""

    def __init__(self, outcome: "Outcome", stdout: bytes, stderr: bytes) -> None:
        last = stderr[-4 * _LONGEST :].decode(errors="replace").strip().rpartition("\n")[2]
        code = os.waitstatus_to_exitcode(outcome.status)
        super().__init__(f"{outcome.name}: {_plain(outcome.detail or last or f'exit status {code}')}")
        self.outcome = outcome
        """How the child ended."""
        self.stdout = stdout
        """What it wrote to standard output."""
        self.stderr = stderr
        """What it wrote to standard error: the traceback, if ``child_main`` raised."""

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


class InvalidResult(JobError, TypeError):
    """What ``child_main`` returned has no JSON form; the detail says where and what to do."""


_JOB_ERRORS = {
    "exited": JobExited,
    "timed_out": JobTimedOut,
    "out_of_memory": JobOutOfMemory,
    "signaled": JobKilled,
    "blocked_syscall": JobBlocked,
    "invalid_result": InvalidResult,
}


def job_error(outcome: "Outcome", stdout: bytes, stderr: bytes) -> JobError:
    """The exception for an outcome that is not ``ok``."""
    return _JOB_ERRORS.get(outcome.name, JobError)(outcome, stdout, stderr)


def refusal(event: dict[str, Any]) -> PyspawnerError:
    """The exception for a host's ``refused`` event."""
    outcome, detail = event["outcome"], event["detail"]
    if outcome == "bad_request":
        return ProtocolError(detail)
    return SandboxSetupError(
        detail or outcome,
        layer=event.get("layer"),
        step=event.get("step"),
        errno=event.get("errno"),
        hint=event.get("hint"),
        outcome=outcome,
    )


def failure(event: dict[str, Any]) -> PyspawnerError:
    """The exception for a host's ``failed`` event."""
    detail = str(event["detail"])
    if event["kind"] == "preload":
        return PreloadError(detail)
    if event["kind"] == "setup":
        return SandboxSetupError(detail)
    if event["kind"] == "configuration":
        return ConfigurationError(detail)
    if event["kind"] == "refused":
        return AccessDenied(detail)
    return ProtocolError(detail)
