"""The client protocol's messages and descriptors: see ``docs/protocol.md``."""

import array
import fcntl
import json
import os
import pickle
import socket
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional
from typing import Protocol as TypingProtocol

from ._config import SandboxConfig, check_text
from ._errors import HostDied, ProtocolError

VERSION = 1
LONGEST = 64 << 10
# Arguments up to this length go with the request; a memory file for them takes longer to make.
_LONGEST_INLINE = 16 << 10

_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_SEALS = 0xF  # against more seals, shrinking, growing, writing
# What every supported host version reads, whatever this interpreter's default is.
_PICKLE_PROTOCOL = 4


# Strict: a value that the host could not read would cost the connection.
_to_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode


def encode(message_type: str, **values: Any) -> bytes:
    message = _to_json({"type": message_type, **values}).encode()
    if len(message) > LONGEST:
        raise ValueError(f"the request is {len(message)} bytes long; at most {LONGEST} are possible")
    return message


CLOSE = encode("close")
_KILL = encode("kill")


def decode(message: bytes) -> dict[str, Any]:
    """An event of the host's. HostDied for an empty message, which is the end of the connection."""
    if not message:
        raise HostDied("the host has ended")
    try:
        event: dict[str, Any] = json.loads(message)
        event["type"]
    except (ValueError, LookupError, TypeError) as error:
        raise ProtocolError(f"the host said {message[:100]!r}: {error}") from None
    return event


class _Closable(TypingProtocol):
    def close(self) -> None: ...


# A forked copy of this process must not keep open what tells the host of this process's end, nor speak
# for it.
_closed_in_copies: "weakref.WeakSet[_Closable]" = weakref.WeakSet()


def keep_from_copies(connection: socket.socket) -> socket.socket:
    """The socket, which is closed in every forked copy of this process."""
    _closed_in_copies.add(connection)
    return connection


def _close_in_copy() -> None:
    for private in list(_closed_in_copies):
        private.close()


os.register_at_fork(after_in_child=_close_in_copy)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets that are connected, neither of them for forked copies."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return keep_from_copies(one), keep_from_copies(other)


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message: OSError if the other end is gone, even where SIGPIPE would end the process."""
    connection.send(message, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> bytes:
    """The host's next message: empty at its end."""
    try:
        return connection.recv(LONGEST)
    except ConnectionResetError:
        # Said once, if the host went without reading all. Its last word comes after it.
        return connection.recv(LONGEST)


def receive_with_files(connection: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """The same, with the descriptors that come along, which the caller must close."""
    try:
        message, files, _, _ = socket.recv_fds(connection, LONGEST, 1, flags)
    except ConnectionResetError:
        message, files, _, _ = socket.recv_fds(connection, LONGEST, 1, flags)
    return message, files


def greet(connection: socket.socket) -> None:
    """Say hello. A host that sends this client away may have gone by then; its word can be read all the same."""
    try:
        send(connection, encode("hello", version=VERSION))
    except (BrokenPipeError, ConnectionResetError):
        pass


def kill(control: socket.socket) -> None:
    """Have a child ended, by its control socket."""
    try:
        send(control, _KILL)
    except OSError:
        pass  # it has ended or was refused, or the host has ended, and with it the child


def _pickled(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    if isinstance(args, (str, bytes)) or not isinstance(args, Iterable):
        raise TypeError(f"args: expected a list of arguments, got {args!r}")
    call = (list(args), dict(kwargs)) if kwargs else list(args)
    try:
        return pickle.dumps(call, protocol=_PICKLE_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"args: a value cannot be sent to the child: {error}") from error


class SpawnMessage:
    """What a child is asked for with: the request, its arguments, the host's ends of its streams; and
    the caller's ends.

    A context manager: what is not taken over is closed, and a child whose control socket is not taken
    over is ended.
    """

    def __init__(self, request: bytes, args: Sequence[Any], kwargs: Mapping[str, Any] = {}) -> None:
        self.stdin = self.stdout = self.stderr = -1
        self.control: Optional[socket.socket] = None
        self._hosts: list[int] = []
        self._message = request
        arguments = _pickled(args, kwargs)
        _closed_in_copies.add(self)
        try:
            child, self.stdin = os.pipe()
            self._hosts.append(child)
            self.stdout, child = os.pipe()
            self._hosts.append(child)
            self.stderr, child = os.pipe()
            self._hosts.append(child)
            self.control, other = pair()
            self._hosts.append(other.detach())
            if len(arguments) <= _LONGEST_INLINE and len(request) + 1 + len(arguments) <= LONGEST:
                self._message = request + b"\0" + arguments
            else:
                self._hosts.append(sealed(arguments))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "SpawnMessage":
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever waited for the child has given up: nobody else knows of it. If it was never asked
        # for, nobody reads this.
        if self.control is not None:
            kill(self.control)
        self.close()

    def send(self, connection: socket.socket) -> None:
        """Send it all; the host's ends are closed here then."""
        try:
            descriptors = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self._hosts))
            connection.sendmsg([self._message], [descriptors], socket.MSG_NOSIGNAL)
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


def spawn_request(process_name: Optional[str], sandbox_config: SandboxConfig, result: bool) -> bytes:
    """The request for a child. TypeError or ValueError for what cannot be said to a host."""
    name = None if process_name is None else check_text("process_name", process_name)
    if not isinstance(sandbox_config, SandboxConfig):
        raise TypeError(f"sandbox_config: expected a pyspawner.SandboxConfig, got {sandbox_config!r}")
    wants = {"result": True} if result else {}
    return encode("spawn", process_name=name or None, **wants, **sandbox_config._request())


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
