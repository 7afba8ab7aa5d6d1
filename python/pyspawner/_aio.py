"""`Client` and `ChildProcess` for asyncio."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Optional, TypeVar

from ._base import ClientBase, check_call, result_or_error
from ._child import KEPT, Tail
from ._config import SandboxConfig
from ._events import check_ready, children_left, ended, started
from ._host import HostConnection, PathLike, check_listener, explained, new_socket
from ._outcome import Outcome
from ._protocol import CLOSE, LONGEST, SpawnMessage, greet, kill, receive_with_files, spawn_request


class AsyncChildProcess:
    """A handle of a child, as `pyspawner.ChildProcess` is, whose verbs are awaited."""

    pid: int
    """Process id as the host sees it."""
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader

    def __init__(
        self,
        pid: int,
        control: socket.socket,
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
    ) -> None:
        self.pid, self.stdin, self.stdout, self.stderr = pid, stdin, stdout, stderr
        self._control = control
        self._ended = _start(self._listen())
        self._exchanged: Optional[asyncio.Task[tuple[bytes, bytes]]] = None
        self._kept: Optional[int] = None

    async def _listen(self) -> Outcome:
        with self._control:
            return ended(*await _receive_with_files(self._control))

    def kill(self) -> None:
        """End the child with SIGKILL, and with it all that it started. Does nothing once it has ended."""
        kill(self._control)

    async def wait(self) -> tuple[int, int]:
        """Wait for the child's end: its process id and its status, as ``os.waitpid`` gives them."""
        return self.pid, (await self.outcome()).status

    def poll(self) -> Optional[int]:
        """The exit code, negative for a signal; None if the child still runs."""
        return os.waitstatus_to_exitcode(self._ended.result().status) if self._ended.done() else None

    async def outcome(self) -> Outcome:
        """How the child ended, once it has."""
        # Shielded: who stops waiting does not stop others, nor the child.
        return await asyncio.shield(self._ended)

    async def communicate(self, input: Optional[bytes] = None) -> tuple[bytes, bytes]:
        """Write ``input``, close the child's standard input, read output and error to their ends, and
        wait.

        For a limit of time use ``asyncio.wait_for``: who stops waiting stops neither the child nor the
        exchange with it. Called again, without ``input`` (else ValueError), it returns all that the child
        wrote.
        """
        if self._exchanged is None:
            self._exchanged = _start(self._exchange(input))
        elif input:
            raise ValueError("the input has been given to an earlier communicate(), which sends it")
        return await asyncio.shield(self._exchanged)

    async def _exchange(self, data: Optional[bytes]) -> tuple[bytes, bytes]:
        tails = Tail(self._kept), Tail(self._kept)
        streams = ((self.stdout, tails[0]), (self.stderr, tails[1]))
        await asyncio.gather(self._feed(data), *(_read_into(stream, tail) for stream, tail in streams))
        await self.outcome()
        out, err = tails
        return out.join(), err.join()

    def _keep_tails(self) -> None:
        """Have communicate() keep the last megabyte of each stream, and throw away what came before."""
        self._kept = KEPT

    async def _feed(self, data: Optional[bytes]) -> None:
        try:
            if data:
                self.stdin.write(data)
                await self.stdin.drain()
            self.stdin.close()
            await self.stdin.wait_closed()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended without reading all


class AsyncClient(ClientBase):
    """Starts children, for asyncio: see `pyspawner.Client` for the parameters, and for what
    becomes of one that is not closed.

    ::

        async with pyspawner.AsyncClient(child_main="mymodule.main") as client:
            child = await client.spawn_child([1])
            out, err = await child.communicate()
    """

    _is_started = False

    async def __aenter__(self) -> "AsyncClient":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start or join the host, and wait until it is ready. RuntimeError if that is done already; else
        the same errors as of `pyspawner.Client`."""
        if self._is_started:
            raise RuntimeError("the client is started already")
        self._is_started = True
        try:
            self._attach(await self._connect())
        except BaseException:
            self._is_started = False
            raise

    async def _connect(self) -> HostConnection:
        path = self._spec.connect
        connection = self._spec.start() if path is None else HostConnection(await _connect(path))
        try:
            connection.socket.setblocking(False)
            greet(connection.socket)
            message = await _receive(connection.socket)
            process = connection.process
            check_ready(message, await _wait(process) if process and not message else None)
        except BaseException:
            connection.abandon()
            raise
        return connection

    def _open_connection(self) -> HostConnection:
        if self._connection is None:
            raise RuntimeError("the client is not started; hint: async with AsyncClient(...), or await client.start()")
        return super()._open_connection()

    async def spawn_child(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        process_name: Optional[str] = None,
        sandbox_config: SandboxConfig = SandboxConfig(),
        result: bool = False,
    ) -> AsyncChildProcess:
        """Start a child that calls ``child_main(*args, **kwargs)``: see `pyspawner.Client.spawn_child`.
        If it is cancelled, the child is ended."""
        request = spawn_request(process_name, sandbox_config, result)
        with SpawnMessage(request, args, kwargs) as message, contextlib.ExitStack() as opened:
            while True:
                try:
                    self._open_connection().send(message)
                    break
                except BlockingIOError:  # the host is behind
                    await asyncio.sleep(0.001)
            assert message.control is not None
            message.control.setblocking(False)
            pid = started(await _receive(message.control))
            stdin = await _writer(message.take("stdin"), opened)
            stdout = await _reader(message.take("stdout"), opened)
            stderr = await _reader(message.take("stderr"), opened)
            opened.pop_all()
            # Last: from here on the child has a holder.
            return AsyncChildProcess(pid, message.take("control"), stdin, stdout, stderr)

    async def call(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call ``child_main(*args, **kwargs)`` in a child of its own, and return what it returns: see
        `pyspawner.Client.call`. If it is cancelled, the child is ended."""
        check_call(kwargs)
        child = await self.spawn_child(args, kwargs, result=True)
        child._keep_tails()
        try:
            out, err = await child.communicate()
        except BaseException:
            child.kill()
            raise
        return result_or_error(await child.outcome(), out, err, kwargs)

    async def close(self) -> None:
        """Part from the host: see `pyspawner.Client.close`."""
        connection = self._detach()
        if connection is None:
            return
        try:
            try:
                await asyncio.get_running_loop().sock_sendall(connection.socket, CLOSE)
                left = children_left(await _receive(connection.socket))
            except OSError:
                left = 0  # the host has ended
            connection.close()
            if left == 0 and connection.process is not None:
                await _wait(connection.process)
        finally:
            self._is_started = False
            if connection.process is None or connection.process.returncode is None:
                connection.abandon()


_T = TypeVar("_T")


def _start(work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
    """A task whose failure is told to those who wait for it, and is no news if nobody does."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return task


async def _wait(process: "subprocess.Popen[bytes]") -> int:
    return await asyncio.get_running_loop().run_in_executor(None, process.wait)


async def _connect(path: PathLike) -> socket.socket:
    connection = new_socket()
    connection.setblocking(False)
    try:
        while True:
            try:
                connection.connect(os.fspath(path))
                check_listener(connection, path)
                return connection
            except BlockingIOError:  # too many wait to be accepted; nothing tells when there is room
                await asyncio.sleep(0.01)
    except OSError as error:
        connection.close()
        raise explained(error, path) from None
    except BaseException:
        connection.close()
        raise


async def _read_into(stream: asyncio.StreamReader, tail: Tail) -> None:
    while chunk := await stream.read(64 << 10):
        tail.append(chunk)


async def _receive(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    try:
        return await loop.sock_recv(connection, LONGEST)
    except ConnectionResetError:
        return await loop.sock_recv(connection, LONGEST)  # as _protocol.receive


async def _receive_with_files(connection: socket.socket) -> tuple[bytes, list[int]]:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return receive_with_files(connection)
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(connection, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(connection)


async def _reader(descriptor: int, opened: contextlib.ExitStack) -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    pipe = opened.enter_context(os.fdopen(descriptor, "rb", 0))
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    opened.callback(transport.close)
    return reader


async def _writer(descriptor: int, opened: contextlib.ExitStack) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    pipe = opened.enter_context(os.fdopen(descriptor, "wb", 0))
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
    opened.callback(transport.close)
    return asyncio.StreamWriter(transport, protocol, None, loop)
