"""Bombs: jobs that take all they can get. They return how far they came, or what stopped them."""

import errno
import mmap
import os
import threading
import time


def _stopped_by(error):
    return errno.errorcode[error.errno] if isinstance(error, OSError) else type(error).__name__


def allocate(mebibytes):
    """Memory of its own, written to."""
    blocks = []
    try:
        for _ in range(mebibytes):
            blocks.append(bytearray(b"x") * (1 << 20))
    except MemoryError as error:
        blocks.clear()
        return _stopped_by(error)
    return len(blocks)


def allocate_in_children(mebibytes, count):
    """The same in several processes at once, which a limit per process does not see."""
    for _ in range(count):
        if os.fork() == 0:
            allocate(mebibytes)
            time.sleep(30)
            os._exit(0)
    time.sleep(2)
    return "unharmed"


def allocate_shared(mebibytes):
    """Memory that is nobody's heap."""
    area = mmap.mmap(-1, mebibytes << 20)
    for page in range(0, mebibytes << 20, mmap.PAGESIZE):
        area[page] = 1
    return mebibytes


def fork_bomb(limit):
    """Processes that stay; how many it had before it was refused one."""
    for count in range(limit):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        except OSError as error:
            return [count, _stopped_by(error)]
    return [limit, None]


def fork_for_ever():
    """The classic: every process forks on and on."""
    while True:
        try:
            os.fork()
        except OSError:
            pass


def thread_bomb(limit):
    threads = 0
    release = threading.Event()
    try:
        for _ in range(limit):
            threading.Thread(target=release.wait, daemon=True).start()
            threads += 1
    except RuntimeError:
        release.set()
        return [threads, "RuntimeError"]
    release.set()
    return [threads, None]


def descriptor_bomb(limit):
    held = []
    try:
        for _ in range(limit):
            held.append(os.dup(0))
    except OSError as error:
        return [len(held), _stopped_by(error)]
    return [len(held), None]


def disk_bomb(folder, mebibytes):
    written = 0
    try:
        with open(os.path.join(folder, "bomb"), "wb", buffering=0) as file:
            for _ in range(mebibytes):
                written += file.write(b"x" * (1 << 20))
    except OSError as error:
        return [written >> 20, _stopped_by(error)]
    return [written >> 20, None]


def inode_bomb(limit):
    for count in range(limit):
        try:
            open(f"/tmp/{count}", "w").close()
        except OSError as error:
            return [count, _stopped_by(error)]
    return [limit, None]


def big_file(size):
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        os.truncate(os.open("/tmp/big", os.O_CREAT | os.O_RDWR), size)
    except OSError as error:
        return _stopped_by(error)
    return "ok"


def flood(stream):
    if stream == "result":
        stream = max(int(number) for number in os.listdir("/proc/self/fd"))
    while True:
        os.write(stream, b"x" * 65536)


def outlive_host():
    """Ask the kernel not to end this process with its host (PR_SET_PDEATHSIG)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    answers = []
    for signal in (0, 15, 9):
        answers.append(libc.prctl(1, ctypes.c_ulong(signal), 0, 0, 0))
    return answers


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return time.process_time()


def sleep(seconds):
    time.sleep(seconds)


def quick():
    return "quick"


def raise_limits():
    """Undo what limits a process, as root would."""
    import resource

    answers = {}
    for name in ("RLIMIT_NPROC", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_FSIZE"):
        limit, wanted = getattr(resource, name), (resource.RLIM_INFINITY,) * 2
        try:
            resource.setrlimit(limit, wanted)
        except (ValueError, OSError):
            pass
        # What is answered need not be so: that of core dumps stays.
        answers[name] = "raised" if resource.getrlimit(limit) == wanted else "refused"
    return answers


def oom_score():
    with open("/proc/self/oom_score_adj") as file:
        return int(file.read())


def group():
    """The control group as the job sees it, and whether it can change anything there."""
    with open("/proc/self/cgroup") as file:
        seen = [line for line in file.read().splitlines() if line.startswith("0::")]
    return [seen, os.path.exists("/sys/fs/cgroup/cgroup.procs")]


def main(what, *args):
    """Several kinds of jobs in one run."""
    return globals()[what](*args)
