"""Values that cannot be sent to a host."""

import os
from pathlib import Path

import pytest
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
    (TypeError, SandboxConfig(timeout="5")),
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
    (ValueError, SandboxConfig(skip_sandbox_except=frozenset(["seccmop"]))),
    (ValueError, SandboxConfig(skip_sandbox_except=frozenset(["root"]))),
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
