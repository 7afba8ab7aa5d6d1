"""What a program passes by mistake, and what it is told: the argument's name and what was expected."""

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
        (
            [],
            {"sandbox_config": SandboxConfig(timeout="30s")},
            "timeout: expected seconds as a number, such as 30, got '30s'",
        ),
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
    assert "open /not-there: ENOENT" in str(caught.value) and "a folder that is there" in str(caught.value)
