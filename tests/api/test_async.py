"""The client for asyncio where tasks are cancelled and hosts are slow."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pyspawner
import pytest
from clients import JOBS
from driving import ROOT
from processes import children_of, host_of, is_alive, wait_until


@contextmanager
def no_descriptor_left():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def run(monkeypatch):
    """Runs a coroutine with a client of its own."""
    monkeypatch.chdir(JOBS)

    def run(work):
        async def main():
            async with pyspawner.AsyncClient(child_main="lifetime_jobs.main", config="no_spares.toml") as client:
                await work(client)

        asyncio.run(main())

    return run


def test_a_cancelled_spawn_leaves_no_child(run):
    async def work(client):
        host = host_of(client._process)
        os.kill(host, signal.SIGSTOP)
        try:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.spawn_child(["quiet", 60]), 0.5)
        finally:
            for pid in (client._process.pid, host):  # which stops with it
                os.kill(pid, signal.SIGCONT)
        child = await client.spawn_child(["echo", "fine"])
        assert await child.communicate() == (b"fine\n", b"")
        await asyncio.get_running_loop().run_in_executor(None, wait_until, lambda: children_of(host) == [], 5)

    with no_descriptor_left():
        run(work)


def test_spawns_cancelled_at_any_time_leave_nothing(run):
    async def work(client):
        host = host_of(client._process)
        held = []
        for number in range(60):
            task = asyncio.ensure_future(client.spawn_child(["quiet", 60]))
            await asyncio.sleep(number * 0.0005)
            task.cancel()
            try:
                held.append(await task)
            except asyncio.CancelledError:
                pass
        for child in held:
            child.kill()
            await child.communicate()
        assert len(held) < 60
        await asyncio.get_running_loop().run_in_executor(None, wait_until, lambda: children_of(host) == [], 10)

    with no_descriptor_left():
        run(work)


def test_a_cancelled_communicate_loses_nothing(run):
    async def work(client):
        text = b"x" * 500_000
        child = await client.spawn_child(["late", 1])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(child.communicate(text), 0.3)
        with pytest.raises(ValueError, match="input"):
            await child.communicate(text)
        assert await child.communicate() == (b"begin\n500000\n", b"")
        assert child.poll() == 0

    run(work)


def test_a_client_is_started_once(run):
    async def work(client):
        process = client._process
        with pytest.raises(RuntimeError, match="started already"):
            await client.start()
        assert client._process is process
        await client.close()
        await client.close()
        with pytest.raises(pyspawner.HostDied):
            await client.spawn_child(["echo"])
        await client.start()  # a new host
        assert await (await client.spawn_child(["echo", 1])).communicate() == (b"1\n", b"")

    run(work)


def test_two_starts_at_once(monkeypatch):
    monkeypatch.chdir(JOBS)

    async def main():
        client = pyspawner.AsyncClient(child_main="lifetime_jobs.main", config="no_spares.toml")
        results = await asyncio.gather(client.start(), client.start(), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), RuntimeError]
        await client.close()

    asyncio.run(main())


async def ticks_during(work):
    """Whether the loop went on meanwhile."""
    longest, last = 0.0, time.monotonic()
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    return longest, task


def test_connecting_does_not_stop_the_loop(tmp_path):
    """A host that accepts nobody, with its queue full."""
    path = str(tmp_path / "socket")

    async def main():
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen(0)
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        waiting.connect(path)
        with listener, waiting:
            client = pyspawner.AsyncClient(connect=path)
            longest, task = await ticks_during(asyncio.wait_for(client.start(), 1))
            assert isinstance(task.exception(), asyncio.TimeoutError) and longest < 0.5

    # In a process of its own, which can be ended if it hangs.
    if (pid := os.fork()) == 0:
        signal.alarm(20)
        try:
            asyncio.run(main())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_host_that_ends_slowly_does_not_stop_the_loop(tmp_path, monkeypatch):
    """It closes the connection at once, and ends a second later."""
    program = tmp_path / "pyspawner"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        "os.close(int(sys.argv[sys.argv.index('--client-fd') + 1])); time.sleep(1); sys.exit(7)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PYSPAWNER", str(program))

    async def main():
        client = pyspawner.AsyncClient(child_main="lifetime_jobs.main", config="no_spares.toml")
        longest, task = await ticks_during(client.start())
        with pytest.raises(pyspawner.HostDied, match="status 7"):
            task.result()
        assert longest < 0.5

    asyncio.run(main())


def test_a_program_that_does_not_close_ends_and_its_children_stay():
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT / "python")!r})
import pyspawner
async def main():
    client = pyspawner.AsyncClient(child_main="lifetime_jobs.main", config="no_spares.toml")
    await client.start()
    child = await client.spawn_child(["sleep", 60])
    await child.stdout.readline()  # or it dies of a pipe without a reader
    print(child.pid, flush=True)
asyncio.run(main())
"""
    # The host has the output open for longer than the program.
    process = subprocess.Popen([sys.executable, "-c", code], cwd=JOBS, stdout=subprocess.PIPE)
    with process:
        pid = int(process.stdout.readline())
        assert process.wait(timeout=20) == 0
    time.sleep(0.3)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), 10)


def test_a_host_that_dies_is_told_to_those_who_wait(run):
    async def work(client):
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        children = [await client.spawn_child(["sleep", 60]) for _ in range(2)]
        waiting = asyncio.ensure_future(children[0].communicate())
        await asyncio.sleep(0.1)
        os.kill(host_of(client._process), signal.SIGKILL)
        with pytest.raises(pyspawner.HostDied):
            await waiting
        await asyncio.sleep(0.1)
        with pytest.raises(pyspawner.HostDied):
            children[1].poll()
        children.clear()
        waiting = None
        await asyncio.sleep(0.1)
        assert complaints == []

    run(work)
