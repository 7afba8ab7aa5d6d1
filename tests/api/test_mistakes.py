"""What a program passes by mistake, and what it is told: the argument's name and what was expected."""

import asyncio

import pyspawner
import pytest
from clients import client, open_client  # noqa: F401
from pyspawner import SandboxConfig


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"child_main": "jobs"}, TypeError, "child_main: expected the full name of a function"),
        ({"child_main": print}, TypeError, "child_main: expected the full name of a function"),
        (
            {"preload_imports": "json"},
            TypeError,
            "preload_imports: expected a list of names, got 'json'; hint: ['json']",
        ),
        ({"environment": {"A": 1}}, TypeError, "environment: expected text by the names of variables, got 'A': 1"),
        ({"environment": {"A=B": "1"}}, TypeError, "'A=B'"),
        ({"environment": {"A": "\0"}}, TypeError, "environment: "),
        ({"executable": "/not-there/python"}, pyspawner.ConfigurationError, "/not-there/python"),
        ({"config": "/not-there.toml"}, pyspawner.ConfigurationError, "/not-there.toml: No such file"),
        ({"profile": "fast"}, pyspawner.ConfigurationError, 'there is no profile "fast"'),
        ({"child_main": "client_jobs.mian"}, pyspawner.PreloadError, "did you mean 'main'?"),
        ({"child_main": "not_there.main"}, pyspawner.PreloadError, "there is no module 'not_there'"),
        ({"connect": "/run/x"}, TypeError, "with connect, "),
    ],
)
def test_a_client_that_cannot_be(options, error, words):
    with pytest.raises(error) as caught:
        open_client(**options)
    assert words in str(caught.value)


def test_a_host_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        pyspawner.Client(connect=tmp_path / "socket")
    assert "no host listens there; hint: pyspawner serve --socket" in str(caught.value)


def test_a_mistake_in_the_configuration_is_told_with_its_line(tmp_path):
    config = tmp_path / "pyspawner.toml"
    config.write_text("[profile.default]\n\nmem = 5\n")
    with pytest.raises(pyspawner.ConfigurationError) as caught:
        open_client(config=config)
    assert f"{config}:3: unknown field `mem`" in str(caught.value)


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        ("abc", {}, "args: expected a list of arguments, got 'abc'"),
        (5, {}, "args: expected a list of arguments, got 5"),
        ([lambda: 1], {}, "args: a value cannot be sent to the child: "),
        ([], {"sandbox_config": {"timeout": 3}}, "sandbox_config: expected a pyspawner.SandboxConfig"),
        ([], {"sandbox_config": SandboxConfig(chroot_dir=5)}, "chroot_dir: expected a path, got 5"),
        ([], {"process_name": 5}, "process_name: expected a str"),
    ],
)
def test_a_child_that_cannot_be(client, args, options, words):
    with pytest.raises(TypeError) as caught:
        client.spawn_child(args, **options)
    assert words in str(caught.value)
    # Nothing is lost by it.
    assert client.spawn_child(["echo", "fine"]).communicate()[0] == b"fine\n"


def test_a_chroot_that_is_not_there(client):
    with pytest.raises(pyspawner.SandboxSetupError) as caught:
        client.spawn_child([], sandbox_config=SandboxConfig(chroot_dir="/not-there"))
    assert "open /not-there: ENOENT" in str(
        caught.value
    ) and "hint: give an existing folder by its absolute path" in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"memory": "lots"}, 'limits.memory: "lots" is not a size: expected a number of bytes or one with K, M, G'),
        ({"memory": -1}, 'limits.memory: expected a size such as "64M", or a number of bytes'),
        ({"memory": "1K"}, 'limits.memory: expected at least "1M"'),
        ({"cpu": 0}, "limits.cpu: expected a number of processors"),
        ({"pids": 0}, "limits.pids: expected at least 1"),
        ({"open_files": 3}, "limits.open_files: expected at least"),
        ({"output": "x"}, 'limits.output: "x" is not a size'),
        ({"timeout": 0}, 'timeout: "0": a duration must be greater than zero'),
        ({"timeout": "soon"}, 'timeout: "soon" is not a duration'),
    ],
)
def test_a_limit_that_cannot_be_is_named_and_is_a_value_error(client, limits, words):
    with pytest.raises(ValueError) as caught:
        client.spawn_child([], sandbox_config=SandboxConfig(**limits))
    assert type(caught.value) is pyspawner.InvalidRequest
    assert words in str(caught.value)


def test_a_timeout_may_be_text_as_in_a_configuration_file(client):
    child = client.spawn_child(["sleep", 60], sandbox_config=SandboxConfig(timeout="200ms"))
    assert child.outcome().name == "timed_out"


def test_options_of_spawn_child_that_are_given_to_call(client):
    with pytest.raises(TypeError, match=r"sandbox_config: call\(\) passes all .* hint: spawn_child\("):
        client.call(1, sandbox_config=SandboxConfig(timeout=1))


def test_an_async_client_that_was_not_started_says_how(client):
    with pytest.raises(RuntimeError, match=r"hint: async with AsyncClient\(...\), or await client.start\(\)"):
        asyncio.run(pyspawner.AsyncClient(child_main="client_jobs.main").call())
