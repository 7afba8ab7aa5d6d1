"""What a host says, as values and exceptions."""

import os
from typing import Any, Optional

from ._errors import HostDied, ProtocolError, failure, refusal
from ._outcome import Outcome
from ._protocol import decode


def check_ready(message: bytes, status: Optional[int]) -> None:
    """Check the host's answer to the greeting. ``status`` is with what it has ended, if it has."""
    if status is not None:
        raise HostDied(f"the host has ended with status {status} before it was ready; see standard error")
    event = decode(message)
    if event["type"] == "failed":
        raise failure(event)
    if event["type"] != "ready":
        raise ProtocolError(f"expected the host to be ready, got {event}")


def children_left(message: bytes) -> int:
    """The number of children that run on, by the host's answer to a farewell."""
    event: dict[str, Any] = decode(message) if message else {}
    return int(event.get("children", 0))


def started(message: bytes) -> int:
    """The process id in the host's first event on a child; its refusal is raised."""
    event = decode(message)
    if event["type"] == "refused":
        raise refusal(event)
    if event["type"] != "started":
        raise ProtocolError(f"expected a child to have started, got {event}")
    return int(event["pid"])


def ended(message: bytes, files: list[int]) -> Outcome:
    """The outcome in the host's second event on a child. Closes the files that came with it."""
    try:
        event = decode(message)
        if event["type"] != "ended":
            raise ProtocolError(f"expected a child to have ended, got {event}")
        return Outcome.of(event, files[0] if files else None)
    finally:
        for file in files:
            os.close(file)
