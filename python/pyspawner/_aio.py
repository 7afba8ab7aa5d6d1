"""The same for asyncio."""

import asyncio
import os
import socket
from typing import Any, Mapping, Optional, Sequence, Tuple

from . import _host
from ._child import KILL, Outcome, ended, started
from ._config import SandboxConfig
from ._errors import HostDied
from ._host import PathLike
from ._protocol import LONGEST, Launch, spawn_request


class AsyncChildProcess:
    """A handle of a child, as :class:`pyspawner.ChildProcess` is, whose verbs are awaited."""

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
        self._ended = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> Outcome:
        with self._control:
            return ended(await _receive(self._control))

    def kill(self) -> None:
        """End the child with SIGKILL, and with it all that it started. Does nothing once it has ended."""
        try:
            self._control.send(KILL)
        except OSError:
            pass  # it has ended, or the host has, and with it the child

    async def wait(self) -> Tuple[int, int]:
        """Wait for the child's end: its process id and its status, as ``os.waitpid`` gives them."""
        return self.pid, (await self.outcome()).status

    def poll(self) -> Optional[int]:
        """The exit code, negative for a signal; None if the child still runs."""
        return os.waitstatus_to_exitcode(self._ended.result().status) if self._ended.done() else None

    async def outcome(self) -> Outcome:
        """How the child ended, once it has."""
        # Shielded: who stops waiting does not stop others, nor the child.
        return await asyncio.shield(self._ended)

    async def communicate(self, input: Optional[bytes] = None) -> Tuple[bytes, bytes]:
        """Write ``input``, close the child's standard input, read output and error to their ends, and
        wait."""
        _, out, err = await asyncio.gather(self._feed(input), self.stdout.read(), self.stderr.read())
        await self.outcome()
        return out, err

    async def _feed(self, data: Optional[bytes]) -> None:
        try:
            if data:
                self.stdin.write(data)
                await self.stdin.drain()
            self.stdin.close()
            await self.stdin.wait_closed()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended without reading all


class AsyncClient:
    """Starts children, for asyncio: see :class:`pyspawner.Client` for the parameters.

    ::

        async with pyspawner.AsyncClient(child_main="mymodule.main") as client:
            child = await client.spawn_child([1])
            out, err = await child.communicate()
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
        if (child_main is None) == (connect is None):
            raise TypeError("AsyncClient() takes either child_main or connect")
        self._host = (child_main or "", environment, preload_imports, executable, config, profile)
        self._connect = connect
        self._connection: Optional[socket.socket] = None
        self._process: Any = None

    async def __aenter__(self) -> "AsyncClient":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start or join the host, and wait until it is ready."""
        if self._connect is not None:
            connection = _host.connect(self._connect)
        else:
            connection, self._process = _host.start(*self._host)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_sendall(connection, _host.HELLO)
            _host.check_ready(await _receive(connection), self._process)
        except BaseException:
            connection.close()
            if self._process is not None:
                _host.reap(self._process, at_once=False)
            raise
        self._connection = connection

    async def spawn_child(
        self,
        args: Sequence[Any] = (),
        *,
        process_name: Optional[str] = None,
        sandbox_config: SandboxConfig = SandboxConfig(),
    ) -> AsyncChildProcess:
        """Start a child that calls ``child_main(*args)``: see :meth:`pyspawner.Client.spawn_child`."""
        request = spawn_request(process_name, sandbox_config)
        with Launch(args) as launch:
            if self._connection is None:
                raise HostDied("the client is closed")
            while True:
                try:
                    launch.send(self._connection, request)
                    break
                except BlockingIOError:  # the host is behind
                    await asyncio.sleep(0.001)
            assert launch.control is not None
            launch.control.setblocking(False)
            pid = started(await _receive(launch.control))
            stdin = await _writer(launch.take("stdin"))
            stdout = await _reader(launch.take("stdout"))
            stderr = await _reader(launch.take("stderr"))
            return AsyncChildProcess(pid, launch.take("control"), stdin, stdout, stderr)

    async def close(self) -> None:
        """Part from the host: see :meth:`pyspawner.Client.close`."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with connection:
            try:
                await asyncio.get_running_loop().sock_sendall(connection, _host.CLOSE)
                left = _host.children_left(await _receive(connection))
            except OSError:
                left = 0
        if self._process is not None:
            if left == 0:
                await asyncio.get_running_loop().run_in_executor(None, self._process.wait)
            else:
                _host.reap(self._process, at_once=False)


async def _receive(connection: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(connection, LONGEST)
    except ConnectionResetError:
        return b""


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", 0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def _writer(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    pipe = os.fdopen(descriptor, "wb", 0)
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
    return asyncio.StreamWriter(transport, protocol, None, loop)
