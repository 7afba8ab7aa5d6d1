"""What the children of test_lifetime.py and test_async.py do."""

import sys
import time

from client_jobs import echo, shout, sleep  # noqa: F401


def main(name, *args):
    globals()[name](*args)


def late(seconds):
    """Reads only after a while."""
    print("begin", flush=True)
    time.sleep(seconds)
    print(len(sys.stdin.buffer.read()))


def quiet(seconds):
    """Does not notice that nobody holds its pipes."""
    time.sleep(seconds)
