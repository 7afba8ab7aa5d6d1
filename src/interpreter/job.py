"""What a child does in Python: fresh randomness, decoding, the call, the end.

Imported once in the host, so that nothing here is looked up again in a module that a job
may have replaced.
"""

import atexit
import json
import os
import pickle
import random
import sys
import threading
import traceback

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class InvalidJob(Exception):
    """The arguments cannot be decoded."""


# ---- randomness ------------------------------------------------------------------------


def reseed():
    """Give this process random states of its own.

    CPython itself reseeds ``random`` at a fork; the C library, NumPy's global generator, PyTorch
    and copies of OpenSSL do not notice a clone, or only by a process id that may repeat.
    """
    for module, renew in _RANDOM_STATES.items():
        if module in sys.modules and module not in _renewed_by_host:
            renew(sys.modules[module])


def _renew_numpy(numpy_random):
    numpy_random.seed(int.from_bytes(os.urandom(4), "little"))


def _renew_torch(torch):
    torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)


def _renew_tempfile(tempfile):
    tempfile._name_sequence = None


def _renew_openssl(ssl):
    # OpenSSL reseeds when the process id is not the one that it saw last. Drawing once here,
    # as PID 1, also protects grandchildren, whose ids may be equal to the host's.
    ssl.RAND_bytes(1)


def _renew_cryptography(x25519):
    # The wheel's own copy of OpenSSL: the cheapest call that draws from it.
    x25519.X25519PrivateKey.generate()


_RANDOM_STATES = {
    "numpy.random": _renew_numpy,
    "torch": _renew_torch,
    "tempfile": _renew_tempfile,
    "ssl": _renew_openssl,
    "cryptography.hazmat.primitives.asymmetric.x25519": _renew_cryptography,
}


def check_clone(state_before, thread_id):
    """Raise if CPython's own hooks did not make this process another than the host."""
    if random_state() == state_before:
        raise RuntimeError("`random` was not seeded anew: every job would draw the same numbers")
    if threading.get_native_id() != thread_id:
        raise RuntimeError(f"the thread calls itself {threading.get_native_id()} and is {thread_id}")


def random_state():
    """A number that tells the states of ``random`` apart."""
    return hash(random.getstate())


# What the host's program renews by itself.
_renewed_by_host = set()


def prepare_reseeding():
    """Import, in the host, what :func:`reseed` draws through. Return the address of the state of
    NumPy's global generator, if it is as known: a Mersenne twister's 624 words and its position.

    To seed it by its own function makes a child touch some 140 pages, which is a sixth of all.
    """
    if "cryptography.hazmat.bindings._rust" in sys.modules:
        import cryptography.hazmat.primitives.asymmetric.x25519  # noqa: F401
    address = _numpy_state()
    if address is not None:
        _renewed_by_host.add("numpy.random")
    return address


def _numpy_state():
    numpy_random = sys.modules.get("numpy.random")
    try:
        generator = numpy_random.mtrand._rand._bit_generator
        if type(generator) is not numpy_random.MT19937:
            return None
        # Seeded, it has no normal deviate left over from the last pair.
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
        address = generator.ctypes.state_address
        import ctypes

        words = list((ctypes.c_uint32 * 625).from_address(address))
        state = generator.state["state"]
        return address if words == [*state["key"].tolist(), state["pos"]] else None
    except (AttributeError, ImportError, LookupError, TypeError):
        return None


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
    _encode([])
    if fork_hooks and _is_the_only_thread():
        _run_fork_hooks(fork_hooks)


def _is_the_only_thread():
    """Whether a clone would lose nothing by it that other threads do not run there.

    The hooks take locks from other threads, and call those stopped that were made, but not started.
    """
    others = set(threading._dangling) - {threading.main_thread()}
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


def resolve(module, name):
    """Import ``module`` and return the callable ``name`` in it."""
    __import__(module)
    target = sys.modules[module]
    for part in name.split("."):
        target = getattr(target, part)
    if not callable(target):
        raise TypeError(f"{module}.{name} is not callable: it is a {type(target).__name__}")
    return target


def decode(payload):
    """Return a job's ``id`` and ``deadline``, and a function that returns its arguments."""
    try:
        job = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the arguments cannot be decoded: {error}") from None
    return job["id"], job["deadline"], lambda: (job["args"], job["kwargs"])


def unpickle(payload, job_id, deadline):
    """Return the same for the pickle of a list of arguments, which is not read yet."""
    return job_id, deadline, lambda: (_unpickled(payload), {})


def _unpickled(payload):
    try:
        return pickle.loads(payload)
    except BaseException as error:
        error.add_note("This happened while the arguments were unpickled.")
        raise


def call(child_main, arguments, send_result):
    """Call ``child_main(*args, **kwargs)`` and return the exit status, as the ``python`` command has it.

    ``send_result`` takes the return value's JSON text, or is ``None`` if nobody asked.
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
    if send_result is not None:
        send_result(_encoded(value))


def _encoded(value):
    try:
        return _encode(value).encode("ascii")
    except Exception as error:
        # Since CPython 3.14 there is a note for each level that the encoder was in: for a value that is
        # nested too deeply, thousands of lines.
        del getattr(error, "__notes__", [])[10:]
        raise


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
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _print(error):
    # The frames of this file tell a reader nothing.
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    try:
        sys.excepthook(type(error), error, trace)
    except BaseException:
        traceback.print_exception(type(error), error, trace)


def _finish():
    """End as an interpreter ends: wait for threads, run exit handlers, flush."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
