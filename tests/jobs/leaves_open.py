"""A preloaded module that leaves a descriptor and a sleeping thread behind."""

import ctypes
import threading

FILE = open("/etc/hostname")  # noqa: SIM115


_named = threading.Event()


def _wait():
    ctypes.CDLL(None).prctl(15, b"left-running", 0, 0, 0)
    _named.set()
    threading.Event().wait()


threading.Thread(target=_wait, daemon=True).start()
_named.wait()
