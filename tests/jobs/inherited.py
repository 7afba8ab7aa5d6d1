"""What a bare clone3 would leave broken in a child."""

import ctypes
import os
import threading

_libc = ctypes.CDLL(None, use_errno=True)


def thread_id():
    """glibc's cached thread id, seen through the owner of a recursive mutex."""
    mutex = (ctypes.c_char * 64)()
    attributes = (ctypes.c_char * 16)()
    _libc.pthread_mutexattr_init(attributes)
    _libc.pthread_mutexattr_settype(attributes, 1)
    _libc.pthread_mutex_init(mutex, attributes)
    _libc.pthread_mutex_lock(mutex)
    owner = int.from_bytes(mutex[8:12], "little")
    return [owner, threading.get_native_id(), os.getpid()]


def affinity():
    _libc.pthread_self.restype = ctypes.c_void_p
    mask = (ctypes.c_char * 128)()
    return _libc.pthread_getaffinity_np(ctypes.c_void_p(_libc.pthread_self()), 128, mask)


def four_hundred_threads():
    barrier = threading.Barrier(401)
    threads = [threading.Thread(target=barrier.wait) for _ in range(400)]
    for thread in threads:
        thread.start()
    barrier.wait()
    for thread in threads:
        thread.join()
    return len(threads)


def deep_thread_in_grandchild():
    """A thread whose stack may be one that glibc kept from a thread of the host."""
    read, write = os.pipe()
    if os.fork() == 0:
        threading.stack_size(64 << 20)
        threads = [threading.Thread(target=_recurse, args=(2000,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.write(write, b"deep")
        os._exit(0)
    os.close(write)
    status = os.wait()[1]
    return [os.read(read, 10).decode(), status]


def _recurse(depth):
    import json

    json.dumps([0] * 100)
    if depth > 900:
        depth = 900
    return depth and _recurse(depth - 1)


def everything():
    import multiprocessing

    with multiprocessing.Pool(2) as pool:
        pooled = pool.map(abs, [-1, -2])
    return {
        "thread_id": thread_id(),
        "affinity": affinity(),
        "threads": four_hundred_threads(),
        "grandchild": deep_thread_in_grandchild(),
        "pool": pooled,
    }


def set_ids_after_threads():
    four_hundred_threads()
    results = [_libc.setgroups(0, None), _libc.setresuid(1000, 1000, 1000)]
    return [results, four_hundred_threads()]


def allocate(megabytes):
    """Memory where the host's private heap was: addresses that are free in a child."""
    blocks = [bytearray(1 << 20) for _ in range(megabytes)]
    for block in blocks:
        block[::4096] = b"x" * 256
    return len(blocks)
