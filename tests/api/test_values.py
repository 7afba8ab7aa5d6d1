"""Values that cannot be sent to a host."""

import asyncio
import contextlib
import os
import sys
import warnings
from pathlib import Path

import pyspawner
import pytest
from clients import JOBS, NO_SPARES
from pyspawner import NetworkConfig, SandboxConfig
from test_client import open_client, said


@pytest.fixture(scope="module")
def client():
    with open_client() as client:
        yield client


WRONG = [
    (TypeError, {"process_name": 5}),
    (TypeError, {"process_name": b"name"}),
    (ValueError, {"process_name": "\udcff"}),
    (ValueError, {"process_name": "a\0b"}),
    (TypeError, SandboxConfig(timeout=[5])),
    (ValueError, SandboxConfig(timeout="5\0")),
    (TypeError, SandboxConfig(timeout=True)),
    (ValueError, SandboxConfig(timeout=float("nan"))),
    (ValueError, SandboxConfig(timeout=float("inf"))),
    (ValueError, SandboxConfig(timeout=10**400)),
    (TypeError, SandboxConfig(memory=1.5)),
    (ValueError, SandboxConfig(memory="\udcff")),
    (ValueError, SandboxConfig(memory=1 << 64)),
    (ValueError, SandboxConfig(cpu=float("nan"))),
    (TypeError, SandboxConfig(pids="3")),
    (TypeError, SandboxConfig(open_files=object())),
    (TypeError, SandboxConfig(skip_sandbox_except="seccomp")),
    (TypeError, SandboxConfig(skip_sandbox_except=frozenset([3]))),
    (ValueError, SandboxConfig(skip_sandbox_except=frozenset(["\ud800"]))),
    (TypeError, SandboxConfig(chroot_dir=5)),
    (TypeError, SandboxConfig(chroot_dir=b"/tmp")),
    (ValueError, SandboxConfig(chroot_dir=Path(os.fsdecode(b"/tmp/\xff")))),
    (ValueError, SandboxConfig(chroot_dir="/tmp/\0")),
    (TypeError, SandboxConfig(network="egress")),
    (TypeError, SandboxConfig(network=NetworkConfig(kernel_veth_name=None))),
    (ValueError, SandboxConfig(network=NetworkConfig(kernel_veth_name="\ud800"))),
    (ValueError, SandboxConfig(network=NetworkConfig(kernel_ipv4_address="bogus"))),
    (TypeError, SandboxConfig(network=NetworkConfig(child_ipv4_address=7))),
    (ValueError, SandboxConfig(network=NetworkConfig(child_ipv4_address="::1"))),
    (ValueError, SandboxConfig(network=NetworkConfig(child_ipv6_address="fe80::1%eth0"))),
]


def test_values_that_cannot_be_sent_are_told_before_anything_is(client):
    sibling = client.spawn_child(["sleep", 60])
    for error, wrong in WRONG:
        options = wrong if isinstance(wrong, dict) else {"sandbox_config": wrong}
        with pytest.raises((TypeError, ValueError)) as caught:
            client.spawn_child(["echo"], **options)
        assert isinstance(caught.value, error), (wrong, caught.value)
    assert sibling.poll() is None
    assert said(client.spawn_child(["echo", "fine"])) == "fine"
    sibling.kill()


def test_values_that_can_be(client):
    config = SandboxConfig(timeout=60, memory="512M", pids=30, skip_sandbox_except={"seccomp"}, chroot_dir=None)
    assert said(client.spawn_child(["echo", "ü"], process_name="ünï", sandbox_config=config)) == "ü"


# ---- names that are no layers -----------------------------------------------------------------


def warned(caught):
    [warning] = [warning for warning in caught if "skip_sandbox_except" in str(warning.message)]
    assert issubclass(warning.category, UserWarning)
    return warning


def test_a_name_that_is_no_layers_is_warned_of_where_it_is_used(client):
    config = SandboxConfig(skip_sandbox_except=frozenset(["seccmop", "seccomp"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        child, line = client.spawn_child(["echo", "x"], sandbox_config=config), sys._getframe().f_lineno
    warning = warned(caught)
    assert (warning.filename, warning.lineno) == (__file__, line)
    assert "'seccmop'" in str(warning.message)
    assert "left out: drop_capabilities, no_new_privs, setuid" in str(warning.message)
    assert said(child) == "x"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = SandboxConfig(skip_sandbox_except={"setuid"})
        assert said(client.spawn_child(["echo", "y"], sandbox_config=config)) == "y"
    assert not caught


def test_a_warning_that_is_an_error_starts_no_child(client):
    config = SandboxConfig(skip_sandbox_except=frozenset(["root"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="root"):
            client.spawn_child(["echo"], sandbox_config=config)
    assert said(client.spawn_child(["echo", "fine"])) == "fine"


def test_the_same_for_asyncio():
    config = SandboxConfig(skip_sandbox_except=frozenset(["none"]))

    async def spawn():
        async with pyspawner.AsyncClient(child_main="client_jobs.main", config=NO_SPARES) as client:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                child, line = await client.spawn_child(["echo", "x"], sandbox_config=config), sys._getframe().f_lineno
            warning = warned(caught)
            assert (warning.filename, warning.lineno) == (__file__, line)
            return await child.communicate()

    with contextlib.chdir(JOBS):
        assert asyncio.run(spawn())[0] == b"x\n"
