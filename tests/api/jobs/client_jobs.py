"""What the children of test_client.py do."""

import os
import sys
import time


def main(name, *args):
    globals()[name](*args)


def echo(*args):
    print(*args)


def shout():
    sys.stdout.write(sys.stdin.read().upper())
    sys.stderr.write("e" * 200_000)


def sleep(seconds):
    print("here", flush=True)
    time.sleep(seconds)


def leave(status):
    sys.exit(status)


def blocked():
    import ctypes

    ctypes.CDLL(None).unshare(0x20000)


def allocate(mebibytes):
    try:
        print(len(bytearray(mebibytes << 20)) >> 20)
    except MemoryError:
        print("MemoryError")


def open_many():
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        print(len(held) < 64)


def open_files():
    import resource

    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def facts():
    import pyspawner_host

    deadline = pyspawner_host.deadline()
    print(deadline is not None and 0 < deadline - time.time() < 10)


def name():
    print(open("/proc/self/comm").read().strip())


def touch(path):
    try:
        with open(path, "w"):
            print("written")
    except OSError as error:
        print(type(error).__name__)


def listing(path):
    print(sorted(os.listdir(path)))


def scan(key, library, _text=None):
    """Copies in this process's memory of the text that a list of numbers encodes."""
    import ctypes

    found = ctypes.CDLL(library).count_in_memory(bytes(key), len(key))
    print(found)
