"""Jobs of the service."""

import os
import sys
import time

import pyspawner_host


def main(what, *args, **kwargs):
    return globals()[what](*args, **kwargs)


def echo(*args, **kwargs):
    return [list(args), kwargs]


def stdin():
    return sys.stdin.read()


def variables(*names):
    return [os.environ.get(name) for name in names]


def job_id():
    return pyspawner_host.job_id()


def time_left():
    return pyspawner_host.deadline() - time.time()


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def steps(count, delay):
    for step in range(count):
        print("step", step, flush=True)
        pyspawner_host.progress(step / count, f"step {step}")
        time.sleep(delay)
    return count


def write(stream, text, times=1):
    for _ in range(times):
        os.write({"stdout": 1, "stderr": 2}[stream], text.encode("latin-1"))


def flood(mebibytes):
    print("x" * (mebibytes << 20))


def fail():
    raise ValueError("no")


def read(*names):
    return [open(name).read() for name in names]


def listing():
    return sorted(os.path.relpath(os.path.join(at, name)) for at, _, names in os.walk(".") for name in names)


def make(contents, seconds=0):
    """Writes files, text by path, and perhaps does not end."""
    for name, text in contents.items():
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
        with open(name, "w", encoding="latin-1") as file:
            file.write(text)
    time.sleep(seconds)


def lead_out():
    """Everything that could lead a reader out of this folder, or keep it waiting."""
    os.symlink("/etc/passwd", "link")
    os.symlink("/etc", "folder")
    os.symlink("/proc/self/root/etc/passwd", "magic")
    os.symlink("../../etc/passwd", "up")
    os.mkfifo("fifo")
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    with open("sparse", "w") as file:
        os.truncate(file.fileno(), 1 << 40)
    os.mkdir("closed", 0)
    with open("secret", "w") as file:
        file.write("mine")
    os.chmod("secret", 0)
    os.link("secret", "hard")


def exchange(seconds):
    """Has a name be a file and a link in turn, also after the job's own end as far as it can."""
    end = time.monotonic() + seconds
    with open("file", "w") as file:
        file.write("fine")
    os.symlink("/etc/passwd", "link")
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if os.fork() == 0:
        os.setsid()
        end += 60
    while time.monotonic() < end:
        libc.renameat2(-100, b"file", -100, b"link", 2)  # RENAME_EXCHANGE


def replace_folder():
    """Leaves a link at the place of the folder itself, and one above."""
    here = os.getcwd()
    os.rename(here, here + "-before")
    os.symlink("/etc", here)
