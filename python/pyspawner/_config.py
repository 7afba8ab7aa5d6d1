"""How a child is sandboxed."""

from pathlib import Path
from typing import Any, Dict, FrozenSet, NamedTuple, Optional, Union

Size = Union[int, str]


class NetworkConfig(NamedTuple):
    """A pair of network interfaces that connect a child to this machine.

    Names are 15 bytes at most. Children that run at the same time need different names and addresses.
    """

    kernel_veth_name: str = "veth-pyspawn"
    """Name of the interface on this machine. One that is left there is deleted first."""
    child_veth_name: str = "veth-pyspawn-c"
    """Name of the interface in the child."""
    kernel_ipv4_address: str = "192.168.123.1"
    """Address of this machine, and the child's default route. A /24."""
    child_ipv4_address: str = "192.168.123.2"
    """Address of the child."""
    kernel_ipv6_address: Optional[str] = None
    """The same for IPv6, if it is wanted. A /64."""
    child_ipv6_address: Optional[str] = None
    """Address of the child."""

    def _request(self) -> Dict[str, Any]:
        """The value of ``network`` in a ``spawn`` request."""
        names = ("kernel_veth_name", "child_veth_name")
        addresses = ("kernel_ipv4", "child_ipv4", "kernel_ipv6", "child_ipv6")
        values = {name: getattr(self, name) for name in names}
        values.update((name, getattr(self, name + "_address")) for name in addresses)
        return {"veth": {name: value for name, value in values.items() if value is not None}}


class SandboxConfig(NamedTuple):
    """What one child has otherwise than the host's profile says."""

    chroot_dir: Optional[Path] = None
    """A folder that the child sees as ``/``: exactly that, with no ``/proc`` or ``/sys`` added."""
    network: Optional[NetworkConfig] = None
    """Interfaces for the child; without, it has the network that the profile says: by default none."""
    skip_sandbox_except: FrozenSet[str] = frozenset()
    """For tests: of ``drop_capabilities``, ``setuid``, ``no_new_privs`` and ``seccomp``, only these are
    applied. Empty: all are."""
    timeout: Optional[float] = None
    """Seconds until the child is ended. Can only shorten the profile's limit."""
    memory: Optional[Size] = None
    """Bytes that the child may add to the warm image: a number, or text such as ``"512M"``."""
    cpu: Optional[float] = None
    """Processors' worth of time; needs control groups."""
    pids: Optional[int] = None
    """Processes and threads."""
    open_files: Optional[int] = None
    """Open descriptors of one process."""
    file_size: Optional[Size] = None
    """Bytes of one file."""

    def _request(self) -> Dict[str, Any]:
        """The keys of a ``spawn`` request."""
        request: Dict[str, Any] = {}
        if self.chroot_dir is not None:
            request["chroot"] = str(Path(self.chroot_dir).absolute())
        if self.network is not None:
            request["network"] = self.network._request()
        if self.skip_sandbox_except:
            request["skip_except"] = sorted(self.skip_sandbox_except)
        if self.timeout is not None:
            request["timeout"] = self.timeout
        limits = {key: getattr(self, key) for key in ("memory", "cpu", "pids", "open_files", "file_size")}
        request["limits"] = {key: value for key, value in limits.items() if value is not None}
        return request
