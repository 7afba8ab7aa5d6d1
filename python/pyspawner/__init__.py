"""Start sandboxed children that have slow modules imported already.

A host process imports the modules once, and then clones itself for every child::

    import pyspawner

    with pyspawner.Client(
        child_main="mymodule.main",
        environment={"LC_ALL": "C.UTF-8"},
        preload_imports=["pandas"],
    ) as client:
        print(client.call("a", 1))  # what child_main("a", 1) returned

        child = client.spawn_child(args=["a", 1])
        out, err = child.communicate()
        print(child.outcome())

`AsyncClient` does the same for asyncio. What a child may do is described in the project's
``docs/sandbox.md``; what has changed since version 1, in ``docs/migration.md``.
"""

from ._aio import AsyncChildProcess, AsyncClient
from ._child import ChildProcess
from ._client import Client
from ._config import NetworkConfig, SandboxConfig
from ._errors import (
    AccessDenied,
    ConfigurationError,
    HostDied,
    InvalidRequest,
    PreloadError,
    ProtocolError,
    PyspawnerError,
    SandboxSetupError,
)
from ._outcome import (
    InvalidResult,
    JobBlocked,
    JobError,
    JobExited,
    JobKilled,
    JobOutOfMemory,
    JobOutputLimit,
    JobTimedOut,
    Outcome,
)

__all__ = [
    "AccessDenied",
    "AsyncChildProcess",
    "AsyncClient",
    "ChildProcess",
    "Client",
    "ConfigurationError",
    "HostDied",
    "InvalidRequest",
    "InvalidResult",
    "JobBlocked",
    "JobError",
    "JobExited",
    "JobKilled",
    "JobOutOfMemory",
    "JobOutputLimit",
    "JobTimedOut",
    "NetworkConfig",
    "Outcome",
    "PreloadError",
    "ProtocolError",
    "PyspawnerError",
    "SandboxConfig",
    "SandboxSetupError",
]
