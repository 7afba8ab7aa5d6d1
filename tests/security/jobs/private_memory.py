"""A job that is handed a canary, and one that looks for it everywhere."""

import ctypes
import os
import sys


def main(what, library=None, **kwargs):
    """Echo a text on every channel, or scan for the one that a list of numbers encodes."""
    if isinstance(what, list):
        return scan(what, library)
    text = sys.stdin.read()
    print(text)
    print(text, file=sys.stderr)
    return [what, kwargs, text]


def scan(key, library, _argument=None):
    scanner = ctypes.CDLL(library)
    key = bytes(key)
    files = [path for path in places() if scanner.count_in_file(os.fsencode(path), key, len(key)) > 0]
    return {"memory": scanner.count_in_memory(key, len(key)), "files": files}


def places():
    for top in ("/proc", "/tmp", "/dev/shm"):
        for folder, folders, names in os.walk(top):
            # The memory is scanned by itself; a page map holds no bytes of it.
            yield from (os.path.join(folder, name) for name in names if name not in ("mem", "pagemap"))
            folders[:] = [name for name in folders if name not in ("task", "map_files")]


def change_text():
    """Whether an earlier job's change to a shared library's text is seen; then make one."""
    libc = ctypes.CDLL(None)
    address = ctypes.cast(libc.labs, ctypes.c_void_p).value
    libc.mprotect(ctypes.c_void_p(address & ~4095), 8192, 7)
    before = ctypes.string_at(address, 4)
    ctypes.memset(address, 0xCC, 4)
    assert ctypes.string_at(address, 4) == b"\xcc" * 4
    return before == b"\xcc" * 4


def change_host_objects():
    """Change what a preloaded module and the interpreter hold; say what was there before."""
    import json

    seen = getattr(json, "spoiled", False), sys.path[-1] == "/spoiled"
    json.spoiled = True
    sys.path.append("/spoiled")
    return seen
