"""Jobs that try to be reported as something else, to outlive their end, or to hurt a sibling."""

import os
import signal
import struct
import sys
import time


def main(what, *args):
    return globals()[what](*args)


def honest():
    time.sleep(0.1)
    return "honest"


# ---- an interpreter turned upside down -------------------------------------------------


def replace_streams():
    sys.stdout = sys.stderr = sys.stdin = sys.__stdout__ = None
    return "returned"


def replace_json():
    import json

    json.dumps = json.JSONEncoder.encode = json.JSONEncoder.iterencode = lambda *_: "forged"
    sys.modules["json"] = None
    return "returned"


def replace_exit():
    os._exit = sys.exit = lambda *_: None
    return "returned"


def replace_builtins():
    import builtins

    for name in ("print", "isinstance", "open", "type", "getattr", "Exception", "BaseException", "SystemExit"):
        setattr(builtins, name, None)
    return "returned"


def replace_shutdown():
    import atexit
    import threading

    threading._shutdown = atexit._run_exitfuncs = lambda: None
    return "returned"


def fail_at_exit():
    import atexit

    atexit.register(lambda: 1 / 0)
    return "returned"


def exit_at_exit():
    import atexit

    atexit.register(os._exit, 7)
    return "returned"


def close_all():
    os.close(_channel())
    for number in range(3):
        os.close(number)


def close_all_and_run_on():
    close_all()
    time.sleep(100)


# ---- ends ------------------------------------------------------------------------------


def leave(status):
    sys.exit(eval(status))


def leave_at_once():
    os._exit(0)


def unprintable():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no text")

        __repr__ = __str__

    raise Unprintable


def leave_by_base_exception():
    class Strange(BaseException):
        pass

    raise Strange("strange")


def leave_by_excepthook():
    sys.excepthook = lambda *_: os._exit(0)
    raise ValueError


def overflow_stack():
    import ctypes

    ctypes.string_at(0)


# ---- results ---------------------------------------------------------------------------


def large(size):
    return "x" * size


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def number(text):
    return float(text)


def strange(kind):
    return {"object": object(), "bytes": b"x", "lone": "\ud800", "cycle": None, "key": {1: "one"}}[kind]


def _channel():
    """The number of the result channel: the highest that is open."""
    return max(int(number) for number in os.listdir("/proc/self/fd"))


def forge(data, then="exit"):
    """Write on the result channel, then end without returning, or return something else."""
    data = data.encode("latin-1")
    while data:
        data = data[os.write(_channel(), data) :]
    if then == "exit":
        os._exit(0)
    if then == "block":
        import ctypes

        ctypes.CDLL(None).unshare(0)
    return "honest"


def forge_endlessly():
    while True:
        os.write(_channel(), struct.pack("<cI", b"R", 1) + b"1")


# ---- floods and long lives -------------------------------------------------------------


def flood():
    import threading

    def write(number):
        while True:
            os.write(number, b"x" * 65536)

    for number in (1, 2, 3):
        threading.Thread(target=write, args=(number,)).start()


def ignore_signals():
    for one in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGSYS}:
        signal.signal(one, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            close_all()
            time.sleep(100)
    close_all()
    time.sleep(100)


def leave_pipes_to_descendants():
    """PID 1 ends; a descendant in a session of its own holds its pipes."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(100)
        os._exit(0)
    return "returned"


def stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)
    for _ in range(3):
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(100)


def thread_that_never_ends():
    import threading

    threading.Thread(target=time.sleep, args=(100,)).start()


def hold_the_interpreter():
    while True:
        pass


PAYLOADS = [
    b"", b"[]", b"1", b"{" * 2000, b'{"a": [1, 2.5, "x"]}', b"NaN", b"1e999", b'"\\ud800"', b"\xff" * 9, b"mount",
    "\u2028\x85".encode(), b"\x1b[31m\n", b'{"outcome": "ok"}\n', b"x" * 70_000,
]  # fmt: skip


def say_anything(seed):
    """Records that are right, nearly right or none, and an end of any kind."""
    import random

    rng = random.Random(seed)
    said = bytearray()
    for _ in range(rng.randrange(4)):
        payload = rng.choice(PAYLOADS)
        said += bytes([rng.choice(b"RRXNBPZ\0")]) + struct.pack("<I", len(payload)) + payload
    for _ in range(rng.choice([0, 0, 1, 4])):
        at = rng.randrange(len(said) + 1)
        said[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    said = said[: rng.randrange(len(said) + 1)] if rng.random() < 0.2 else said
    os.set_blocking(_channel(), rng.random() < 0.9)
    try:
        os.write(_channel(), said)
    except OSError:
        pass
    for stream in (1, 2):
        os.write(stream, rng.choice(PAYLOADS)[: rng.randrange(3000)])
    end = rng.randrange(8)
    if end == 0:
        os._exit(rng.randrange(256))
    elif end == 1:
        os.kill(
            os.getpid(), rng.choice([signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGKILL, signal.SIGSYS])
        )
    elif end == 2:
        raise ValueError(rng.choice(PAYLOADS)[:500])
    elif end == 3:
        os.close(_channel())
    elif end == 4 and rng.random() < 0.1:
        time.sleep(30)
    return "said"
