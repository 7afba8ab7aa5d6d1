"""What jobs return. Libraries are imported only if a test preloads them, or names them in an expression."""

import array
import asyncio
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import os
import pathlib
import struct
import sys
import types
import uuid
import zoneinfo


class Color(enum.Enum):
    RED = "red"
    DAY = datetime.date(2013, 1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Kind(str, enum.Enum):
    A = "a"


class Bits(enum.Flag):
    ONE = 1
    TWO = 2


@dataclasses.dataclass
class Point:
    x: int
    y: object = None
    kind: "dataclasses.InitVar[int]" = 0


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    when: datetime.date


Pair = collections.namedtuple("Pair", "a b")


class Text(str):
    pass


class Table(dict):
    pass


class ByName(collections.abc.Mapping):
    """A mapping of a library's own."""

    def __getitem__(self, key):
        return key.upper()

    def __iter__(self):
        return iter("ab")

    def __len__(self):
        return 2


class Broken(collections.abc.Mapping):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, key):
        raise self.error

    def __iter__(self):
        return iter("k")

    def __len__(self):
        return 1


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class DataFrame:
    """Named as a library's, with the way out that such have."""

    def to_dict(self):
        return {}


def tensor():
    """What PyTorch's tensors look like from outside."""

    class Tensor:
        __module__ = "torch"

        def tolist(self):
            return [[1.5, float("nan")]]

    return Tensor()


def nested(levels, value=0):
    for _ in range(levels):
        value = [value]
    return value


def cycle():
    value = {"a": [1]}
    value["a"].append(value)
    return value


def zero_dimensional_cycle():
    import numpy

    value = numpy.empty((), dtype=object)
    value[()] = value
    return value


def named(name):
    return type(name, (), {})()


def evaluate(expression):
    """Return the value of an expression, after a word on each stream."""
    print("said")
    for name in ("numpy", "pandas", "pyarrow", "polars", "attrs", "pydantic"):
        if name + "." in expression:
            globals()[name] = __import__(name)
    return eval(expression)


# ---- awaitables ------------------------------------------------------------------------


async def wait(what="value"):
    await asyncio.sleep(0)
    if what == "fail":
        raise ValueError("from a coroutine")
    if what == "leave":
        sys.exit(3)
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "in a task":
        await asyncio.gather(asyncio.sleep(0), asyncio.create_task(wait("leave")))
    if what == "in a thread":
        return await asyncio.to_thread(os.getpid)
    print("waited", flush=True)
    return {"what": what, "loop": type(asyncio.get_running_loop()).__name__}


class Later:
    """An awaitable that is no coroutine."""

    def __await__(self):
        return wait("later").__await__()


def wait_later():
    return Later()


def returns_coroutine():
    return wait("returned")


async def yields():
    yield 1


class Loop(asyncio.SelectorEventLoop):
    pass


class Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = Loop


async def wait_in_own_loop():
    return await wait("own")


# ---- the result channel ----------------------------------------------------------------


def channel():
    """The descriptor that leads to the host."""
    pipes = [int(n) for n in os.listdir("/proc/self/fd") if int(n) > 2 and _is_pipe(int(n))]
    assert len(pipes) == 1, pipes
    return pipes[0]


def _is_pipe(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}").startswith("pipe:")
    except FileNotFoundError:
        return False


def write_record(tag, payload, then, length=None):
    """Write a record, and return, or leave with a status."""
    payload = payload.encode("latin-1")
    size = len(payload) if length is None else length
    return write_raw((tag.encode() + struct.pack("<I", size) + payload).decode("latin-1"), then)


def write_raw(data, then):
    data = data.encode("latin-1")
    number = channel()
    while data:
        data = data[os.write(number, data) :]
    if then != "return":
        os._exit(then)
    return "returned"


def close_channel():
    os.close(channel())
    return "returned"


def replace_channel(path):
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.dup2(file, channel())
    print("replaced", flush=True)
    return "returned"


def write_then_fail(what):
    print("before")
    print("error", file=sys.stderr)
    if what == "frame":
        return {"a": [0, 1, 2, DataFrame()]}
    return object()
