"""System V and POSIX objects of others, and their keys."""

import ctypes
import os

from syscalls import call, libc, outcome, raw, number


def main(what, *args):
    return globals()[what](*args)


def attach(kind, key):
    """Get an object that is there already."""
    return call(kind, key, *{"shmget": (0, 0), "semget": (0, 0), "msgget": (0,)}[kind])


def open_queue(name):
    return outcome(libc.mq_open(name.encode(), os.O_RDONLY))


def leave(kind, key):
    """Make an object and leave it to a later job."""
    return call(kind, key, *{"shmget": (4096, 0o1666), "semget": (1, 0o1666), "msgget": (0o1666,)}[kind])


def write_shared(name):
    with open(name, "w") as file:
        file.write("left behind")
    return os.path.exists(name)


def read_shared(name):
    return open(name).read() if os.path.exists(name) else "nothing"


USER_KEYRING = -4


def add_key(text):
    result = raw(number("add_key"), b"user", b"pyspawner-test", text.encode(), len(text), USER_KEYRING)
    return outcome(result)


def find_key():
    key = raw(number("keyctl"), 10, USER_KEYRING, b"user", b"pyspawner-test", 0)
    if key < 0:
        return outcome(key)
    buffer = ctypes.create_string_buffer(100)
    length = raw(number("keyctl"), 11, key, buffer, 100)
    return buffer.raw[:length].decode() if length >= 0 else outcome(length)


def request_key():
    return call("request_key", b"user", b"pyspawner-test", 0, USER_KEYRING)
