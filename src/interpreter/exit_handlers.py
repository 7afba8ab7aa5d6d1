"""What runs at the end of a job: what the job has registered, and not what the host's modules have.

All is done in the host after the warm-up, so it costs children nothing.
"""

import atexit
import io
import sys
import threading
from _weakref import ref

# ---- handlers ---------------------------------------------------------------------------


def settle():
    """Forget exit handlers, but for those by which the standard library ends what a job has begun.
    Repeated in a child if code may have run since.

    Nothing of this is taken from the host's own objects: who holds one can close it as before.
    """
    registered = _registered()
    _held.extend(registered)
    atexit._clear()
    atexit.register = _register
    for handler in _of_the_standard_library():
        if handler in registered:
            atexit.register(handler)
    _settle_finalizers()
    _settle_threads()
    # A child would ask for their ends and wait for them, and they are not its own.
    _clear("multiprocessing.process", "_children")


# Handlers and their arguments: some are the last to refer to what jobs use, a stack of contexts for
# example, which would be closed with them.
_held = []
_register = atexit.register


def hold_what_is_registered():
    """Until :func:`settle`, which restores the function."""

    def register(function, /, *args, **kwargs):
        _held.append((args, kwargs))
        return _register(function, *args, **kwargs)

    atexit.register = register


class _Listener:
    """Told of each function that is compared with it."""

    def __init__(self):
        self.functions = []

    def __eq__(self, function):
        self.functions.append(function)
        return False


def _registered():
    """The functions there are. The module gives no list of them, but it compares them."""
    listener = _Listener()
    atexit.unregister(listener)
    return listener.functions


def _of_the_standard_library():
    for module, name in (("logging", "shutdown"), ("multiprocessing.util", "_exit_function")):
        handler = getattr(sys.modules.get(module), name, None)
        if handler is not None:
            yield handler


def _settle_finalizers():
    """Have those of weakref registered again by the first one that a job makes."""
    finalize = getattr(sys.modules.get("weakref"), "finalize", None)
    if finalize is None:
        return
    for finalizer in list(finalize._registry):
        finalizer.atexit = False  # temporary folders, above all
    finalize._registered_with_atexit = False


def _settle_threads():
    """Keep what ends the executors of the standard library, and forget the executors there are: their
    threads are not in a child."""
    _held.extend(threading._threading_atexits)
    threading._threading_atexits.clear()
    for module, registry in (("thread", "_threads_queues"), ("process", "_threads_wakeups")):
        module = "concurrent.futures." + module
        _clear(module, registry)
        handler = getattr(sys.modules.get(module), "_python_exit", None)
        if handler is not None:
            threading._register_atexit(handler)


def _clear(module, name):
    registry = getattr(sys.modules.get(module), name, None)
    if registry is not None:
        registry.clear()


# ---- what is buffered ---------------------------------------------------------------------

_BUFFERED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom, io.BufferedRWPair)

_files = []


def find_files(objects):
    """Keep the files among the collector's ``objects`` that have a buffer to write."""
    # Not isinstance(), which runs code of objects that only look like others.
    _files[:] = [ref(file) for file in objects if issubclass(type(file), _BUFFERED) and _is_written(file)]


def _is_written(file):
    try:
        return not file.closed and file.writable()
    except Exception:
        return False  # detached


def flush():
    """Write, in the host, what each child would write at its end: records that logging keeps, and
    buffers of open files. Return what failed, in words."""
    failed = []
    logging = sys.modules.get("logging")
    handlers = reversed(getattr(logging, "_handlerList", ()))
    for target in [reference() for reference in [*handlers, *_files]]:
        try:
            # As logging.shutdown() has it.
            is_left = target is None or getattr(target, "closed", False) or not getattr(target, "flushOnClose", True)
            if not is_left:
                target.flush()
        except Exception as error:
            failed.append(f"{target!r}: {error}")
    return failed
