"""The client protocol's messages and descriptors: see ``docs/protocol.md``."""

import fcntl
import json
import os
import pickle
import socket
from typing import Any, Dict, List, Optional, Sequence

from ._config import SandboxConfig, text
from ._errors import HostDied, ProtocolError

VERSION = 1
LONGEST = 64 << 10

_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_SEALS = 0xF  # against more seals, shrinking, growing, writing
# What every supported host version reads, whatever this interpreter's default is.
_PICKLE_PROTOCOL = 4


def encode(message_type: str, **values: Any) -> bytes:
    # Strict in all: a value that the host could not read would cost the connection.
    message = json.dumps({"type": message_type, **values}, allow_nan=False, ensure_ascii=False).encode()
    if len(message) > LONGEST:
        raise ValueError(f"the request is {len(message)} bytes long; at most {LONGEST} are possible")
    return message


def decode(message: bytes) -> Dict[str, Any]:
    """An event of the host's. HostDied for an empty message, which is the end of the connection."""
    if not message:
        raise HostDied("the host has ended")
    try:
        event: Dict[str, Any] = json.loads(message)
        event["type"]
    except (ValueError, LookupError, TypeError) as error:
        raise ProtocolError(f"the host said {message[:100]!r}: {error}") from None
    return event


class Launch:
    """The descriptors of a child that is asked for: the host's ends, and the caller's.

    A context manager: what is not taken over is closed.
    """

    def __init__(self, args: Sequence[Any]) -> None:
        self.stdin = self.stdout = self.stderr = -1
        self.control: Optional[socket.socket] = None
        self._hosts: List[int] = []
        try:
            self._hosts.append(sealed(pickle.dumps(list(args), protocol=_PICKLE_PROTOCOL)))
            child, self.stdin = os.pipe()
            self._hosts.append(child)
            self.stdout, child = os.pipe()
            self._hosts.append(child)
            self.stderr, child = os.pipe()
            self._hosts.append(child)
            self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._hosts.append(other.detach())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, connection: socket.socket, request: bytes, flags: int = 0) -> None:
        """Send the request and the host's ends, which are closed here then."""
        try:
            socket.send_fds(connection, [request], self._hosts, flags)
        except (BrokenPipeError, ConnectionResetError):
            raise HostDied("the host has ended") from None
        self._close_hosts()

    def take(self, name: str) -> Any:
        """One of the caller's ends, which is not closed here then."""
        end = getattr(self, name)
        setattr(self, name, None if name == "control" else -1)
        return end

    def close(self) -> None:
        self._close_hosts()
        for name in ("stdin", "stdout", "stderr"):
            descriptor = self.take(name)
            if descriptor >= 0:
                os.close(descriptor)
        control = self.take("control")
        if control is not None:
            control.close()

    def _close_hosts(self) -> None:
        while self._hosts:
            os.close(self._hosts.pop())


def spawn_request(process_name: Optional[str], sandbox_config: SandboxConfig) -> bytes:
    """The request for a child. TypeError or ValueError for what cannot be said to a host."""
    name = None if process_name is None else text("process_name", process_name)
    return encode("spawn", process_name=name, **sandbox_config._request())


def sealed(content: bytes) -> int:
    """A memory file that nobody can change any more, positioned at its start."""
    descriptor = os.memfd_create("pyspawner-arguments", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
