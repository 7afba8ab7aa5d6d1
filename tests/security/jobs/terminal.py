"""Attacks on the operator's terminal, which `pyspawner run` gives to a job as its stdin."""

import fcntl
import os
import struct

from syscalls import attempt

REQUESTS = {
    "TIOCSTI": (0x5412, b"x"),
    "TIOCLINUX": (0x541C, b"\x02"),
    "TIOCSETD": (0x5423, b"\0\0\0\0"),
    "TIOCCONS": (0x541D, 0),
    "TIOCVHANGUP": (0x5437, 0),
    "TIOCSLCKTRMIOS": (0x5457, b"\xff" * 60),
    "TIOCGPTPEER": (0x5441, 0),
}


def main(name):
    print(request(name))


def request(name):
    if name in REQUESTS:
        return attempt(fcntl.ioctl, 0, *REQUESTS[name])
    return globals()[name]()


def controlling():
    return attempt(os.open, "/dev/tty", os.O_RDWR)


def acquire():
    return attempt(fcntl.ioctl, 0, 0x540E, 0)  # TIOCSCTTY


def steal():
    return attempt(fcntl.ioctl, 0, 0x540E, 1)


def exclusive():
    return attempt(fcntl.ioctl, 0, 0x540C)  # TIOCEXCL


def resize():
    return attempt(fcntl.ioctl, 0, 0x5414, struct.pack("4H", 1, 1, 0, 0))
