"""What a child does in Python: decoding, the call, the end.

Imported once in the host, so that nothing here is looked up again in a module that a job
may have replaced.
"""

import atexit
import binascii
import json
import os
import pickle
import random
import sys
import threading
import traceback
from collections.abc import Coroutine

from _pyspawner_results import encode


class InvalidJob(Exception):
    """The arguments cannot be decoded."""


# ---- what CPython's own hooks do --------------------------------------------------------


def check_clone(state_before, thread_id):
    """Raise if CPython's own hooks did not make this process another than the host."""
    if random_state() == state_before:
        raise RuntimeError("`random` was not seeded anew: every job would draw the same numbers")
    if threading.get_native_id() != thread_id:
        raise RuntimeError(f"the thread calls itself {threading.get_native_id()} and is {thread_id}")


def random_state():
    """A number that tells the states of ``random`` apart."""
    return hash(random.getstate())


# ---- the type cache ----------------------------------------------------------------------


def fill_type_cache(fork_hooks):
    """Do, in the host, what each child does on its way to its job.

    What is looked up in types on the way is in the interpreter's cache from then on. A child that
    does not find it there writes to the cache and to what it finds: a tenth of the pages it touches.
    """
    _, _, arguments = decode(b'{"id": "", "deadline": null, "args": [], "kwargs": {}}')
    arguments()
    _, _, arguments = unpickle(pickle.dumps([]), "", None)
    arguments()
    encode({"": [""]})
    if fork_hooks and is_the_only_thread():
        _run_fork_hooks(fork_hooks)


def is_the_only_thread():
    """Whether a clone would lose nothing by it that other threads do not run there.

    The hooks take locks from other threads, and call those stopped that were made, but not started.
    """
    # Where the interpreter keeps no such list, there may be others.
    others = set(getattr(threading, "_dangling", [None])) - {threading.main_thread()}
    return not others and threading.active_count() == 1 and len(sys._current_frames()) == 1


def _run_fork_hooks(fork_hooks):
    """Call these hooks of CPython's own modules, as ``internals.rs`` knows them."""
    state = random.getstate()
    random.seed()
    random.setstate(state)
    for module, name in fork_hooks:
        try:
            getattr(sys.modules[module], name)()
        except Exception:
            pass  # a handler's lock of another kind; in children Python says so, and goes on


# ---- the job ---------------------------------------------------------------------------


def prepare(target):
    """Import in the host what a job's call of ``target`` needs."""
    if getattr(getattr(target, "__code__", None), "co_flags", 0) & _CO_COROUTINE:
        import asyncio  # noqa: F401 - in the host, or each child takes as long again as for ten jobs


_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, without importing inspect


def decode(payload):
    """Return a job's ``id`` and ``deadline``, and a function that returns its arguments."""
    try:
        job = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the arguments cannot be decoded: {error}") from None
    os.environ.update(job.get("environment", ()))
    for name, content in job.get("files", {}).items():
        _write_file(name, content)
    return job["id"], job["deadline"], lambda: (job["args"], job["kwargs"])


def _write_file(name, content):
    """Write a file that a job brings along, below the folder in which it starts. The host has checked the name."""
    path = os.path.abspath(name)
    try:
        data = content.encode() if isinstance(content, str) else _content(**content)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidJob(f"files: {name!r}: {error}") from None


def _content(text=None, base64=None):
    if (text is None) == (base64 is None):
        raise ValueError('expected text, {"text": ...} or {"base64": ...}')
    return binascii.a2b_base64(base64, strict_mode=True) if text is None else text.encode()


def parse(payload, job_id, deadline):
    """Return the same for a client's JSON: an array of arguments, or an object with any of ``args`` and ``kwargs``."""
    try:
        call = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the arguments cannot be decoded: {error}") from None
    if isinstance(call, list):
        call = {"args": call}
    if not isinstance(call, dict) or call.keys() - {"args", "kwargs"}:
        raise InvalidJob("the arguments: expected a JSON array, or an object with args and kwargs")
    args, kwargs = call.get("args", []), call.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise InvalidJob("the arguments: expected an array as args and an object as kwargs")
    return job_id, deadline, lambda: (args, kwargs)


def unpickle(payload, job_id, deadline):
    """Return the same for the pickle of a list of arguments, or of a tuple of that and keyword arguments.

    It is not read yet, since to unpickle is to run code.
    """
    return job_id, deadline, lambda: _unpickled(payload)


def _unpickled(payload):
    try:
        call = pickle.loads(payload)
    except BaseException as error:
        error.add_note("This happened while the arguments were unpickled.")
        raise
    if type(call) is tuple:
        args, kwargs = call
        return args, kwargs
    return call, {}


def call(child_main, arguments, send_result):
    """Call ``child_main(*args, **kwargs)`` and return the exit status, as the ``python`` command has it.

    ``send_result`` takes what :func:`encode` returns, or is ``None`` if nobody asked. A value that cannot
    be passed on changes nothing in how the process ends: ``child_main`` has returned.
    """
    status = _guarded(lambda: _call(child_main, arguments, send_result))
    return _guarded(_finish) or status


def rehearse(arguments):
    """Do what each job does, up to its end, in a process whose standard output leads nowhere."""
    try:
        _call(_murmur, arguments, None)
    except Exception:
        pass  # a hook has replaced or closed a stream; whatever fails here, a job will say


def _murmur():
    sys.__stdout__.write("\n")
    sys.__stdout__.flush()


def _call(child_main, arguments, send_result):
    args, kwargs = arguments()
    value = child_main(*args, **kwargs)
    # An attribute is looked up only in types that may have it: a lookup writes to the type cache.
    if type(value) not in _PLAIN and hasattr(type(value), "__await__"):
        value = _awaited(value)
    if send_result is not None:
        send_result(*encode(value))


_PLAIN = frozenset({type(None), bool, int, float, str, list, tuple, dict})


def _awaited(awaitable):
    """What an awaitable returns, in an event loop of the policy that is in force."""
    import asyncio

    # A coroutine is run as it is, so that a traceback has no frame of this file between its own.
    return asyncio.run(awaitable if isinstance(awaitable, Coroutine) else _wait_for(awaitable))


async def _wait_for(awaitable):
    return await awaitable


def first_byte():
    """The job of ``pyspawner bench``: the least that a reader notices."""
    os.write(1, b".")


def _guarded(function):
    try:
        function()
    except SystemExit as end:
        return _exit_status(end.code)
    except BaseException as error:
        _print(error)
        return 1
    return 0


def _exit_status(code):
    """What the ``python`` command makes of ``SystemExit(code)``."""
    if code is None:
        return 0
    if isinstance(code, int):
        # A C long that is too small for it holds -1 then.
        return (code if -(1 << 63) <= code < 1 << 63 else -1) & 0xFF
    try:
        if sys.stderr is None:
            os.write(2, f"{code}\n".encode(errors="backslashreplace"))
        else:
            print(code, file=sys.stderr)
    except Exception:
        pass  # nobody can read it; the status says that something is wrong
    return 1


def _print(error):
    # The frames of this file tell a reader nothing.
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    _explain_missing_file(error)
    try:
        sys.excepthook(type(error), error, trace)
    except BaseException:
        traceback.print_exception(type(error), error, trace)


def _explain_missing_file(error):
    """Says, above the traceback, that a file is not there for jobs although it may be there for others.

    The last line stays the exception's, which programs read.
    """
    if not isinstance(error, (FileNotFoundError, PermissionError)) or not isinstance(error.filename, str):
        return
    try:
        path = os.path.abspath(error.filename)
        why = _why_missing(path)
        if why and sys.stderr is not None:
            start = "" if os.path.isabs(error.filename) else f"the job's working folder is {os.getcwd()}, and "
            print(
                f"pyspawner: {path!r}: {start}{why}; hint: show the folder with a bind, or pass the content as input",
                file=sys.stderr,
            )
    except Exception:
        pass  # the traceback says what can be said


def _why_missing(path):
    parts = path.split("/")
    for place in ("/tmp", "/dev/shm"):
        if path.startswith(place + "/") and os.path.ismount(place):
            return f"jobs have a {place} of their own"
    home = "/".join(parts[: 3 if parts[1] == "home" else 2])
    is_of_home = parts[1] in ("home", "root") and path != home
    return f"{home} is hidden from jobs, as homes are" if is_of_home and os.path.ismount(home) else None


def _finish():
    """End as an interpreter ends: wait for threads, run exit handlers, flush."""
    try:
        threading._shutdown()
    except BaseException as error:
        # As an interpreter has it (wait_for_thread_shutdown): told, and without an effect on what follows.
        if sys.stderr is not None:
            print(f"Exception ignored in: {threading!r}", file=sys.stderr)
        _print(error)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
