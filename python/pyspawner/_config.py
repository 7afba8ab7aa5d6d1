"""How a child is sandboxed."""

import ipaddress
import math
import os
import sys
import warnings
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

Size = Union[int, str]

_MAY_SKIP = frozenset(["drop_capabilities", "setuid", "no_new_privs", "seccomp"])

# Values that the host could not decode are refused here, before anything is sent. Values that it can decode and does
# not accept, such as a negative limit, it refuses itself, in the words of its configuration.


def check_text(name: str, value: object) -> str:
    """A value that can be sent as text and go on to a system call."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: {value!r} cannot be encoded as UTF-8") from None
    if "\0" in value:
        raise ValueError(f"{name}: {value!r} has a null character")
    return value


def _number(name: str, value: object) -> float:
    """A value that can be sent as a number: an int stays one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{name}: the number is too large")
    return value


def _duration(name: str, value: object) -> Union[float, str]:
    return check_text(name, value) if isinstance(value, str) else _number(name, value)


def _integer(name: str, value: object) -> float:
    if not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    return _number(name, value)


def _size(name: str, value: object) -> Union[float, str]:
    return check_text(name, value) if isinstance(value, str) else _integer(name, value)


_LIMITS = {
    "memory": _size,
    "cpu": _number,
    "pids": _integer,
    "open_files": _integer,
    "file_size": _size,
    "output": _size,
}


def _path(name: str, value: object) -> str:
    """A path as it is on disk, which must be UTF-8."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {value!r}")
    raw = os.fsencode(Path(value).absolute())
    try:
        return check_text(name, raw.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{name}: {raw!r} is not UTF-8, which a path must be that a host is told") from None


def _address(name: str, value: object) -> str:
    try:
        kind = ipaddress.IPv6Address if "ipv6" in name else ipaddress.IPv4Address
        address = str(kind(check_text(name, value)))
    except ipaddress.AddressValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if "%" in address:
        raise ValueError(f"{name}: expected an address without a zone, got {value!r}")
    return address


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

    def _request(self) -> dict[str, Any]:
        """The value of ``network`` in a ``spawn`` request."""
        veth = {name: check_text(name, getattr(self, name)) for name in ("kernel_veth_name", "child_veth_name")}
        for key in ("kernel_ipv4", "child_ipv4", "kernel_ipv6", "child_ipv6"):
            value = getattr(self, key + "_address")
            if value is not None:
                veth[key] = _address(key + "_address", value)
        return {"veth": veth}


class SandboxConfig(NamedTuple):
    """What one child has otherwise than the host's profile says.

    A value of a wrong type makes ``spawn_child`` raise TypeError; one that cannot be said to a host,
    such as an address that is none, ValueError; one that the host does not accept, InvalidRequest, which is a
    ValueError as well.
    """

    chroot_dir: Optional[Union[str, "os.PathLike[str]"]] = None
    """A folder that the child sees as ``/``: exactly that, with no ``/proc`` or ``/sys`` added."""
    network: Optional[NetworkConfig] = None
    """Interfaces for the child; without, it has the network that the profile says: by default none."""
    skip_sandbox_except: AbstractSet[str] = frozenset()
    """For tests: of ``drop_capabilities``, ``setuid``, ``no_new_privs`` and ``seccomp``, only these are
    applied. Empty: all are. Another name is none of them, and makes ``spawn_child`` warn."""
    timeout: Optional[Union[float, str]] = None
    """Seconds until the child is ended, or text such as ``"30s"``. Can only shorten the profile's limit."""
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
    output: Optional[Size] = None
    """Bytes of what ``child_main`` returns, as JSON. (A child's streams are the caller's own pipes, without a limit.)"""

    def _request(self) -> dict[str, Any]:
        """The keys of a ``spawn`` request."""
        request: dict[str, Any] = {}
        if self.chroot_dir is not None:
            request["chroot"] = _path("chroot_dir", self.chroot_dir)
        if self.network is not None:
            if not isinstance(self.network, NetworkConfig):
                raise TypeError(f"network: expected a NetworkConfig, got {self.network!r}")
            request["network"] = self.network._request()
        if self.skip_sandbox_except:
            request["skip_except"] = _layers(self.skip_sandbox_except)
        if self.timeout is not None:
            request["timeout"] = _duration("timeout", self.timeout)
        limits = {name: getattr(self, name) for name in _LIMITS}
        limits = {name: _LIMITS[name](name, limit) for name, limit in limits.items() if limit is not None}
        if limits:
            request["limits"] = limits
        return request


def _layers(names: AbstractSet[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"skip_sandbox_except: expected a set of names, got {names!r}")
    wanted = {check_text("skip_sandbox_except", name) for name in names}
    unknown = sorted(wanted - _MAY_SKIP)
    if unknown:
        left_out = ", ".join(sorted(_MAY_SKIP - wanted)) or "no layer"
        message = f"skip_sandbox_except: {unknown[0]!r} is none of {sorted(_MAY_SKIP)}; left out: {left_out}"
        warnings.warn(message, stacklevel=_depth_of_caller())
    return sorted(wanted & _MAY_SKIP)


def _depth_of_caller() -> int:
    """The ``stacklevel`` of the code outside of this package that has called the caller."""
    depth = 1
    while sys._getframe(depth).f_globals.get("__package__") == __package__:
        depth += 1
    return depth
