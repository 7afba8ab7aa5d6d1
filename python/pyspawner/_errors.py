"""What can go wrong."""

from typing import Any, Optional


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


class InvalidRequest(ProtocolError, ValueError):
    """The host does not accept a value that a child was asked for with; its words are the argument."""


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
        """Its error number; None if a check of the sandbox failed rather than a system call."""
        self.hint = hint
        """What is likely wrong on this machine."""
        self.outcome = outcome


def refusal(event: dict[str, Any]) -> PyspawnerError:
    """The exception for a host's ``refused`` event."""
    outcome, detail = event["outcome"], event["detail"]
    if outcome == "bad_request":
        return InvalidRequest(detail)
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
