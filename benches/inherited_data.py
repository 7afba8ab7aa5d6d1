#!/usr/bin/env python3
"""Copies of earlier jobs' data in a later child's memory: pyspawner 1.0.0 beside this project.

    make bench-memory

Fifty jobs are handed texts that nobody else has: in pyspawner 1.0.0 as arguments, here as argument,
keyword argument, standard input, output, result and id. Then all readable memory of the next child
is searched for them, from outside.
"""

import json
import os
import subprocess
import sys
import time

from environments import ROOT, WORK, python_of_old_package

EARLIER = 50
TEXT = "c4nary-" + os.urandom(12).hex()

JOB = """
import sys, time
def main(text, k=None):
    if text == "wait":
        print("here", flush=True)
        time.sleep(60)
    print(text, sys.stdin.read())
    return text
"""

OLD_PROGRAM = """
import sys, pyspawner
sandbox = pyspawner.SandboxConfig()
with pyspawner.Client(child_main="bench_job.main", environment={"PYTHONPATH": "."}) as client:
    for _ in range(int(sys.argv[2])):
        texts = [f"{sys.argv[1]}-{n}" for n in range(1000)]
        child = client.spawn_child(args=[texts], sandbox_config=sandbox)
        child.stdin.close()
        assert child.stdout.read() and child.wait(0)[1] == 0
    child = client.spawn_child(args=["wait"], sandbox_config=sandbox)
    child.stdout.readline()
    print(child.pid, flush=True)
    sys.stdin.read()
    child.kill()
    child.wait(0)
"""


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    jobs = WORK / "jobs"
    jobs.mkdir(exist_ok=True)
    (jobs / "bench_job.py").write_text(JOB)
    figures = {"pyspawner 1.0.0 (arguments)": old(jobs), "this project (all six channels)": this(jobs)}
    for name, (copies, searched) in figures.items():
        print(f"{name}: {copies} copies in {searched >> 20} MiB")


def old(jobs):
    """The package of that name and version, in an environment of its own."""
    command = [python_of_old_package(), "-c", OLD_PROGRAM, TEXT, str(EARLIER)]
    with subprocess.Popen(command, cwd=jobs, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        found = search(int(process.stdout.readline()))
        process.stdin.close()
        return found


def this(jobs):
    sys.path.append(str(ROOT / "tests"))
    from driving import PYSPAWNER
    from processes import children_of, host_of

    command = [
        PYSPAWNER,
        "map",
        "-j",
        "1",
        "--path",
        jobs,
        "--child-main",
        "bench_job.main",
        "--python",
        sys.executable,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        texts = [f"{TEXT}-{n}" for n in range(1000)]
        job = {"id": TEXT, "args": [texts], "kwargs": {"k": texts}, "stdin": TEXT * 1000}
        for _ in range(EARLIER):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["result"] == texts
        process.stdin.write(b'{"args": ["wait"]}\n')
        process.stdin.close()
        while not children_of(host_of(process)):
            time.sleep(0.05)
        time.sleep(1)  # until it is at its job
        found = search(children_of(host_of(process))[0])
        process.terminate()
        return found


def search(pid):
    """Copies of the text in the readable memory of a process, and how many bytes were searched."""
    copies = searched = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, modes = line.split()[:2]
            start, end = (int(number, 16) for number in place.split("-"))
            if modes[0] != "r" or "[v" in line:  # vvar and vsyscall are the kernel's
                continue
            memory.seek(start)
            content = memory.read(end - start)
            searched += len(content)
            copies += content.count(TEXT.encode())
    assert searched > 1 << 20, "that was no whole process"
    return copies, searched


if __name__ == "__main__":
    main()
