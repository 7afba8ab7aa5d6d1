"""A preloaded module that shares writable memory, of each kind, and a job that writes to all of it."""

import ctypes, mmap, multiprocessing, os, pyspawner_host
from multiprocessing import shared_memory

ANONYMOUS = mmap.mmap(-1, 3 * mmap.PAGESIZE)
ANONYMOUS[:4] = b"host"
NAMED = shared_memory.SharedMemory(create=True, size=8192)
NAMED.buf[:4] = b"host"
VALUE = multiprocessing.Value("i", 7)
ARRAY = multiprocessing.RawArray("i", [1, 2, 3])
LOCK = multiprocessing.Lock()
with open("/var/tmp/held-%d" % os.getpid(), "w+b") as file:
    file.write(b"host" + bytes(8188))
    file.flush()
    os.unlink(file.name)
    FILE = mmap.mmap(file.fileno(), 8192)
    # Only readable, but of a file that is open for writing: a process may make it writable.
    QUIET = mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ, offset=4096)
FD = os.memfd_create("shared")
os.truncate(FD, 4096)
MEMORY = mmap.mmap(FD, 4096)
MEMORY[:4] = b"host"


class Segment:
    def __init__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        number = libc.shmget(0, 4096, 0o1600)
        self.address = libc.shmat(number, None, 0)
        libc.shmctl(number, 0, None)
        ctypes.memmove(self.address, b"host", 4)

    def __getitem__(self, _):
        return ctypes.string_at(self.address, 4)

    def __setitem__(self, _, value):
        ctypes.memmove(self.address, value, 4)


SEGMENT = Segment()
ALL = {"anonymous": ANONYMOUS, "named": NAMED.buf, "file": FILE, "memory file": MEMORY, "System V": SEGMENT}


def look():
    return {name: bytes(memory[:4]).decode() for name, memory in ALL.items()} | {
        "value": VALUE.value,
        "array": list(ARRAY),
        "lock": LOCK.acquire(block=False),
        "quiet": QUIET[:4] != b"mine",
    }


def main():
    seen = look()
    for memory in ALL.values():
        memory[:4] = b"mine"
    VALUE.value = 8
    ARRAY[0] = 9
    return [seen, spoil_quiet(), look()["anonymous"]]


def spoil_quiet():
    libc = ctypes.CDLL(None, use_errno=True)
    for line in open("/proc/self/maps"):
        modes, name = line.split()[1], line.split()[5:]
        # A readable page, of the file itself (as after a plain fork) or of a copy.
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if (
            end - start == 4096
            and modes.startswith("r--")
            and name
            and name[0].startswith(("/var/tmp/held-", "/dev/zero"))
        ):
            if libc.mprotect(ctypes.c_void_p(start), 4096, 3) == 0:
                ctypes.memmove(start, b"mine", 4)
                return modes
    return "not found"
