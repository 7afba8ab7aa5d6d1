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
