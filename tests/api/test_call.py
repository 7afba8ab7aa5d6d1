"""What ``child_main`` returns, for clients."""

import asyncio
import contextlib
import json
import os
import pickle
import socket
import threading
import tracemalloc

import pyspawner
import pytest
from clients import JOBS, NO_SPARES, greeted, open_client, serving
from processes import children_of, unslotted, wait_until
from pyspawner import SandboxConfig
from test_hostile_clients import asked, events

# Around the length up to which a result comes in the message itself.
LENGTHS = [0, 16_381, 16_382, 16_383, 500_000]


@pytest.fixture(scope="module")
def calls():
    with open_client(child_main="calls.main") as client:
        yield client


def test_a_call_returns_what_the_function_returns(calls):
    assert calls.call("back", 1, "a", [None], k={"v": 2.5}) == [[1, "a", [None]], {"k": {"v": 2.5}}]
    assert calls.call("nothing") is None


@pytest.mark.parametrize("length", LENGTHS)
def test_results_of_any_length_come_whole(calls, length):
    assert calls.call("text", length) == "x" * length


@pytest.mark.parametrize(
    ("what", "kind", "name", "words"),
    [
        ("fail", pyspawner.JobExited, "exited", "ValueError: on purpose"),
        ("leave", pyspawner.JobExited, "exited", "exit status 7"),
        ("no_form", pyspawner.InvalidResult, "invalid_result", "object"),
        ("crash", pyspawner.JobKilled, "signaled", r"exit status -\d+"),
        ("blocked", pyspawner.JobBlocked, "blocked_syscall", "unshare"),
        ("missing", pyspawner.JobExited, "exited", "KeyError"),
    ],
)
def test_a_call_that_fails_raises_what_went_wrong(calls, what, kind, name, words):
    with pytest.raises(kind, match=words) as caught:
        calls.call(what)
    error = caught.value
    assert isinstance(error, pyspawner.JobError) and error.outcome.name == name
    if what == "fail":
        assert error.stdout == b"printed\n" and b"Traceback" in error.stderr
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.stderr) == (kind, str(error), error.stderr)


def test_limits_are_errors_that_python_knows():
    config = '[profile.default.limits]\nwall = "0.3s"\noutput = "100K"\n'
    with open_client(child_main="calls.main", config=_file(config)) as client:
        with pytest.raises(TimeoutError):
            client.call("sleep")
        with pytest.raises(pyspawner.JobError, match="output_limit"):
            client.call("text", 200_000)


def test_an_option_of_spawn_child_that_goes_to_the_function_is_told(calls):
    with pytest.raises(pyspawner.JobExited, match=r"'timeout'; hint: call\(\) passes all arguments on to child_main"):
        calls.call("nothing", timeout=3)
    assert calls.call("back", timeout=3) == [[], {"timeout": 3}]


def test_a_result_above_its_limit_names_the_setting_and_a_client_can_raise_it(calls):
    with pytest.raises(pyspawner.JobOutputLimit, match=r"more than 1048576 bytes \(limits.output\)"):
        calls.call("text", 2_000_000)
    wider = SandboxConfig(output="4M")
    outcome = calls.spawn_child(["text", 2_000_000], result=True, sandbox_config=wider).outcome()
    assert outcome.result == "x" * 2_000_000
    assert len(repr(outcome)) < 400


def test_an_outcome_shows_its_result(calls):
    assert "result=[[1], {}]" in repr(calls.spawn_child(["back", 1], result=True).outcome())
    assert "result=" not in repr(calls.spawn_child(["back", 1]).outcome())


def _file(text):
    path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"pyspawner-test-{os.getpid()}.toml")
    with open(path, "w") as file:
        file.write(text)
    return path


def test_a_child_gives_its_result_only_if_it_was_asked(calls):
    child = calls.spawn_child(["back"], {"k": 1}, result=True, sandbox_config=SandboxConfig(timeout=60))
    child.communicate()
    assert child.outcome().result == [[], {"k": 1}]
    failed = calls.spawn_child(["fail"], result=True)
    failed.communicate()
    assert failed.outcome().name == "exited" and failed.outcome().result is None
    child = calls.spawn_child(["no_form"])
    child.communicate()
    assert child.outcome().name == "ok"
    with pytest.raises(ValueError, match="result=True"):
        _ = child.outcome().result


def test_a_call_that_is_interrupted_leaves_no_child(calls):
    host = calls._process.pid

    def interrupt():
        wait_until(lambda: len(children_of(_host(host))) > 0)
        threading.Timer(0.5, lambda: signal_main()).start()

    def signal_main():
        import signal

        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        calls.call("sleep")
    assert calls.call("back") == [[], {}]


def _host(init):
    (host,) = children_of(init)
    return host


def test_many_threads_call_at_once():
    results = {}

    def call(n):
        results[n] = calls.call("text", 20_000 + n)  # type: ignore[attr-defined]

    threads = [threading.Thread(target=call, args=(n,)) for n in range(40)]
    with open_client(child_main="calls.main", config=NO_SPARES) as calls:
        host = _host(calls._process.pid)
        calls.call("text", 20_000)
        before = unslotted(host)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {n: len(text) for n, text in results.items()} == {n: 20_000 + n for n in range(40)}
        wait_until(lambda: unslotted(host) <= before)


def test_the_same_for_asyncio():
    async def run():
        async with pyspawner.AsyncClient(child_main="calls.main") as client:
            texts = await asyncio.gather(*(client.call("text", length) for length in LENGTHS))
            assert [len(text) for text in texts] == LENGTHS
            with pytest.raises(pyspawner.JobExited, match="on purpose"):
                await client.call("fail")
            task = asyncio.create_task(client.call("sleep"))
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await client.call("back", k=1)

    with contextlib.chdir(JOBS):
        assert asyncio.run(run()) == [[], {"k": 1}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (b'["back", 1]', [[1], {}]),
        (b'{"args": ["back"], "kwargs": {"k": [2]}}', [[], {"k": [2]}]),
        (b'{"args": ["back"], "x": 1}', "an object with args and kwargs"),
        (b'{"args": {}}', "an array as args"),
        (b"[1", "cannot be decoded"),
        (b"7", "expected a JSON array"),
    ],
)
def test_arguments_may_be_json(tmp_path, arguments, expected):
    """For clients in other languages."""
    with serving(tmp_path / "socket", "calls.main", JOBS), greeted(tmp_path / "socket") as connection:
        control = asked(connection, {"arguments": "json", "result": True}, attached=arguments)
        *_, last = events(control)
    if isinstance(expected, list):
        assert last["result"] == expected, last
    else:
        assert last["type"] == "refused" and expected in last["detail"], last


def test_a_long_result_is_a_sealed_file(tmp_path):
    with serving(tmp_path / "socket", "calls.main", JOBS), greeted(tmp_path / "socket") as connection:
        control = asked(connection, {"arguments": "json", "result": True}, attached=b'["text", 100000]')
        assert json.loads(control.recv(10_000))["type"] == "started"
        message, [file], _, _ = socket.recv_fds(control, 10_000, 4)
    event = json.loads(message)
    assert event["result_bytes"] == 100_002 and "result" not in event
    with open(file, "r+b") as content:
        assert json.loads(content.read()) == "x" * 100_000
        with pytest.raises(PermissionError):
            content.truncate(1)


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_child_that_writes_much_does_not_grow_its_caller(kind):
    """The last of it is what an error shows. The control: communicate() keeps all."""

    tracemalloc.start()
    with pytest.raises(pyspawner.JobExited) as caught:
        if kind == "threads":
            with open_client(child_main="calls.main") as client:
                client.call("flood", 100)
        else:
            asyncio.run(_call_with_asyncio("flood", 100))
    assert len(caught.value.stdout) < 2 << 20 and caught.value.stderr.endswith(b"ValueError: in the end\n")
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    with open_client(child_main="calls.main") as client:
        assert len(client.spawn_child(["flood", 100]).communicate()[0]) == 100 << 20
    assert tracemalloc.get_traced_memory()[1] > 100 << 20
    tracemalloc.stop()


async def _call_with_asyncio(*args):
    with contextlib.chdir(JOBS):
        async with pyspawner.AsyncClient(child_main="calls.main") as client:
            await client.call(*args)
