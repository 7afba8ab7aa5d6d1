"""What the children of test_call.py do."""

import os
import sys
import time


def main(what, *args, **kwargs):
    return globals()[what](*args, **kwargs)


def back(*args, **kwargs):
    return [args, kwargs]


def text(length):
    return "x" * length


def nothing():
    print("printed")


def fail():
    print("printed")
    raise ValueError("on purpose")


def no_form():
    return object()


def sleep():
    time.sleep(600)


def crash():
    os.abort()


def blocked():
    import ctypes

    ctypes.CDLL(None).unshare(0x20000)


def leave():
    sys.exit(7)


def span(seconds):
    begun = time.monotonic()
    time.sleep(seconds)
    return [begun, time.monotonic()]


def flood(mebibytes):
    for _ in range(mebibytes):
        os.write(1, b"x" * (1 << 20))
        os.write(2, b"y" * (1 << 20))
    raise ValueError("in the end")
