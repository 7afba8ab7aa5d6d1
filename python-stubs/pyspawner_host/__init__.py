"""Types and harmless stand-ins for the module that a pyspawner host provides.

Inside a host, ``import pyspawner_host`` finds the host's own module instead of this one.
Outside, the hooks are accepted and never called, and there is no job.
"""

from typing import Callable, Optional, TypeVar

from ._reseed import reseed

__all__ = ["after_clone", "before_clone", "deadline", "job_id", "progress", "reseed"]

_Hook = TypeVar("_Hook", bound=Callable[[], object])


def before_clone(fn: _Hook, /) -> _Hook:
    """Call ``fn()`` in the host just before each clone, in order of registration.

    It sees the files that children see, without their own ``/tmp``; so nothing is at ``HOME`` there.
    An exception fails the clone. Returns ``fn``. TypeError if it is not callable.
    """
    return _check_callable(fn)


def after_clone(fn: _Hook, /) -> _Hook:
    """Call ``fn()`` in each child, in its sandbox, before its job is known.

    An exception ends the child before its job. Returns ``fn``. TypeError if it is not
    callable.
    """
    return _check_callable(fn)


def job_id() -> Optional[str]:
    """Return the current job's id, or None outside a job."""
    return None


def deadline() -> Optional[float]:
    """Return when the current job will be ended, as ``time.time()`` counts, or None."""
    return None


def progress(fraction: float, text: str = "") -> None:
    """Tell the host how far the job is, from 0.0 to 1.0. ValueError for another fraction."""
    if not 0.0 <= fraction <= 1.0:
        raise ValueError("fraction must be from 0.0 to 1.0")


def _check_callable(fn: _Hook) -> _Hook:
    if not callable(fn):
        raise TypeError("fn must be callable")
    return fn
