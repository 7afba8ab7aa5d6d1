"""A child, its streams and its end."""

import math
import os
import select
import selectors
import socket
import subprocess
import threading
import time
from collections import deque
from io import BufferedReader, BufferedWriter, FileIO
from typing import Any, Optional

from ._errors import HostDied
from ._events import ended, started
from ._outcome import Outcome
from ._protocol import SpawnMessage, kill, receive, receive_with_files

# Of what a child writes, bytes of each stream that call() keeps for an error.
KEPT = 1 << 20

# A pipe that is ready takes so many bytes without making the writer wait.
_ROOM = select.PIPE_BUF


class ChildProcess:
    """A handle of a child. It is not a child of this process: nothing here listens to SIGCHLD, and one
    that nobody waits for leaves no zombie.

    Usable by several threads at once. As a context manager it closes the streams and waits.

    In a forked copy of this process it has its streams only: ``kill()``, and what waits, raise HostDied.
    """

    pid: int
    """Process id as the host sees it. (The child sees itself as 1.)"""
    stdin: BufferedWriter
    """Writable pipe, readable in the child as ``sys.stdin``."""
    stdout: BufferedReader
    """Readable pipe, written in the child as ``sys.stdout``."""
    stderr: BufferedReader
    """Readable pipe, written in the child as ``sys.stderr``."""

    def __init__(self, message: SpawnMessage) -> None:
        assert message.control is not None
        # While the host is at work.
        # Not os.fdopen(), which asks each whether it is a terminal.
        self.stdin = BufferedWriter(FileIO(message.take("stdin"), "w"))
        self.stdout = BufferedReader(FileIO(message.take("stdout"), "r"))
        self.stderr = BufferedReader(FileIO(message.take("stderr"), "r"))
        self._outcome: Optional[Outcome] = None
        self._exchange: Optional[_Exchange] = None
        self._maker = os.getpid()
        self._waiting = threading.Lock()
        # Held for a moment only, also by a signal handler that interrupts its holder.
        self._closing = threading.RLock()
        try:
            self.pid = started(receive(message.control))
        except BaseException:
            for stream in (self.stdin, self.stdout, self.stderr):
                stream.close()
            raise
        # Last: from here on the child has a holder.
        self._control: socket.socket = message.take("control")

    def __repr__(self) -> str:
        state = "running" if self._outcome is None else self._outcome.name
        return f"<pyspawner.ChildProcess pid={self.pid} {state}>"

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            stream.close()
        try:
            self.stdin.close()
        except BrokenPipeError:  # it has ended without reading all
            pass
        if os.getpid() == self._maker:
            self.wait()

    def __del__(self) -> None:
        # A child whose handle is dropped runs on.
        control = getattr(self, "_control", None)
        if control is not None:
            control.close()

    def kill(self) -> None:
        """End the child with SIGKILL, and with it all that it started. Does nothing once it has ended."""
        self._check_process()
        with self._closing:
            kill(self._control)

    def wait(self, options: int = 0) -> tuple[int, int]:
        """Wait for the child's end: its process id and its status, as ``os.waitpid`` gives them.

        With ``os.WNOHANG``, ``(0, 0)`` if it still runs. May be called again. HostDied if the host ends
        first, which ends the child.
        """
        outcome = self._await(0.0 if options & os.WNOHANG else None)
        return (0, 0) if outcome is None else (self.pid, outcome.status)

    def poll(self) -> Optional[int]:
        """The exit code, negative for a signal, as ``subprocess.Popen.poll`` gives it; None if the child
        still runs."""
        outcome = self._await(0.0)
        return None if outcome is None else os.waitstatus_to_exitcode(outcome.status)

    def outcome(self, timeout: Optional[float] = None) -> Outcome:
        """How the child ended. Waits for that, ``timeout`` seconds at most (then TimeoutError)."""
        outcome = self._await(timeout)
        if outcome is None:
            raise TimeoutError(f"child {self.pid} has not ended")
        return outcome

    def communicate(self, input: Optional[bytes] = None, timeout: Optional[float] = None) -> tuple[bytes, bytes]:
        """Write ``input``, close the child's standard input, read output and error to their ends, and
        wait.

        subprocess.TimeoutExpired after ``timeout`` seconds, with what the child wrote so far; the child
        runs on then. Called again, without ``input`` (else ValueError), it goes on where it stopped, and
        returns all that the child wrote.
        """
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._exchange is None:
            self._exchange = _Exchange(input or b"")
        elif input:
            raise ValueError("the input has been given to an earlier communicate(), which sends it")
        self._exchange.go_on(self, deadline)
        out, err = self._exchange.out.join(), self._exchange.err.join()
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self._await(remaining) is None:
            raise subprocess.TimeoutExpired(f"child {self.pid}", timeout or 0.0, out, err)
        return out, err

    def _keep_tails(self) -> None:
        """Have communicate() keep the last megabyte of each stream, and throw away what came before."""
        self._exchange = _Exchange(b"", KEPT)

    def _await(self, timeout: Optional[float]) -> Optional[Outcome]:
        """The outcome, once it is known."""
        if self._outcome is not None:
            return self._outcome
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._waiting.acquire(timeout=-1 if timeout is None else max(timeout, 0.0)):
            return None  # another thread waits, and has not been told
        try:
            if self._outcome is None and _is_readable(self._control, deadline):
                self._outcome = ended(*receive_with_files(self._control))
                # Not while another thread uses its number, which may be another socket's soon.
                with self._closing:
                    self._control.close()
            return self._outcome
        finally:
            self._waiting.release()

    def _check_process(self) -> None:
        if os.getpid() != self._maker:
            raise HostDied(f"child {self.pid} is another process's, of which this is a forked copy")


def _is_readable(control: socket.socket, deadline: Optional[float]) -> bool:
    """Whether there is a message, or the host's end, by the deadline."""
    poll = select.poll()  # needs no descriptor of its own
    poll.register(control, select.POLLIN)
    while True:
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        # The kernel counts in an int of milliseconds; what is longer is waited for in parts.
        wait = None if remaining is None else min(math.ceil(remaining * 1e3), 1 << 30)
        if poll.poll(wait):
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False


class Tail:
    """What a stream has brought: all of it, or about the last ``most`` bytes."""

    def __init__(self, most: Optional[int]) -> None:
        self._chunks: deque[bytes] = deque()
        self._length = 0
        self._most = most

    def append(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._length += len(chunk)
        while self._most is not None and self._length - len(self._chunks[0]) >= self._most:
            self._length -= len(self._chunks.popleft())

    def join(self) -> bytes:
        return b"".join(self._chunks)


class _Exchange:
    """What communicate() has to write yet, and what the child has written so far."""

    def __init__(self, data: bytes, most: Optional[int] = None) -> None:
        self.rest = memoryview(data)
        self.out = Tail(most)
        self.err = Tail(most)

    def go_on(self, child: ChildProcess, deadline: Optional[float]) -> None:
        """Feed and drain the child's pipes at once, until all are closed or the deadline is over."""
        streams = [stream for stream in (child.stdin, child.stdout, child.stderr) if not stream.closed]
        # A job of this user can open its ends anew, and take what this process was told is there.
        for stream in streams:
            os.set_blocking(stream.fileno(), False)
        try:
            self._go_on(child, deadline)
        finally:
            for stream in streams:
                if not stream.closed:
                    os.set_blocking(stream.fileno(), True)

    def _go_on(self, child: ChildProcess, deadline: Optional[float]) -> None:
        with selectors.PollSelector() as selector:
            for output, to in ((child.stdout, self.out), (child.stderr, self.err)):
                if not output.closed:
                    # What is buffered counts, from an earlier readline() of the caller's.
                    to.append(output.read1(len(output.peek())))
                    selector.register(output, selectors.EVENT_READ, to)
            if not child.stdin.closed:
                selector.register(child.stdin, selectors.EVENT_WRITE)
            while selector.get_map():
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return
                for key, _ in selector.select(remaining):
                    if key.fileobj is child.stdin:
                        is_open = self._feed(child.stdin)
                    else:
                        is_open = _drain(key.fd, key.data)
                    if not is_open:
                        selector.unregister(key.fileobj)
                        _close(key.fileobj)

    def _feed(self, stdin: BufferedWriter) -> bool:
        """Write what there is room for; whether there is more to write, and a reader."""
        try:
            stdin.flush()  # what the caller wrote
            if self.rest:
                self.rest = self.rest[os.write(stdin.fileno(), self.rest[:_ROOM]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self.rest = self.rest[:0]
        return len(self.rest) > 0


def _drain(descriptor: int, to: Tail) -> bool:
    """Read what is there; whether more may come."""
    try:
        chunk = os.read(descriptor, 64 << 10)
    except BlockingIOError:
        return True
    to.append(chunk)
    return chunk != b""


def _close(stream: Any) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        pass  # nobody has read what the caller wrote; it is closed
