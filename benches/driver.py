"""Drives one contender: reads a command a line, writes its figures as one line of JSON.

Run by the interpreter of the contender's own environment. Both versions of pyspawner have the API
that this uses.
"""

import json
import resource
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

JOBS = "bench_jobs.main"


class Pyspawner:
    """``pyspawner.Client``, of whichever version this interpreter has."""

    def __init__(self, preload, folder, **options):
        import pyspawner

        environment = {"PYTHONPATH": folder, "LC_ALL": "C.UTF-8"}
        self._sandbox = pyspawner.SandboxConfig()
        self._client = pyspawner.Client(child_main=JOBS, environment=environment, preload_imports=preload, **options)

    def start(self, *args):
        return self._client.spawn_child(args=args, process_name="bench", sandbox_config=self._sandbox)

    def sample(self):
        """Milliseconds from ``spawn_child()`` to the first byte, and to the reaped child."""
        start = time.perf_counter()
        child = self.start()
        assert child.stdout.read(1) == b"x"
        first_byte = time.perf_counter() - start
        assert child.wait(0)[1] == 0
        reaped = time.perf_counter() - start
        close(child)
        return first_byte * 1e3, reaped * 1e3

    def hold(self, count):
        """So many children that live until they are let go."""
        children = [self.start("hold") for _ in range(count)]
        for child in children:
            assert child.stdout.read(1) == b"x"
        return children


class Forkserver:
    """``multiprocessing`` with a server that has imported the modules."""

    def __init__(self, preload, folder):
        import multiprocessing

        sys.path.insert(0, folder)
        self._context = multiprocessing.get_context("forkserver")
        # Else each child imports this file anew.
        self._context.set_forkserver_preload(["__main__", "bench_jobs", *preload])

    def sample(self):
        import bench_jobs

        start = time.perf_counter()
        ours, childs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=bench_jobs.send_byte, args=(childs,))
        process.start()
        childs.close()
        assert ours.recv_bytes() == b"x"
        first_byte = time.perf_counter() - start
        process.join()
        reaped = time.perf_counter() - start
        assert process.exitcode == 0
        return first_byte * 1e3, reaped * 1e3


def close(child):
    for stream in (child.stdin, child.stdout, child.stderr):
        stream.close()


# ---- commands ------------------------------------------------------------------------------


def sample(contender):
    return contender.sample()


def throughput(contender, threads, count):
    """Jobs per second of so many threads together."""
    each = count // threads
    workers = [threading.Thread(target=lambda: [contender.sample() for _ in range(each)]) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return each * threads / (time.perf_counter() - start)


def private_memory(contender, count):
    """Median of the bytes that an idle child shares with nobody, of children all alive."""
    children = contender.hold(count)
    found = statistics.median(private_bytes(child.pid) for child in children)
    let_go(children)
    return found


def private_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        fields = dict(line.split(":") for line in list(file)[1:])
    return sum(int(fields[name].split()[0]) << 10 for name in ("Private_Clean", "Private_Dirty"))


def among(contender, count, samples):
    """Samples while so many other children live."""
    children = contender.hold(count)
    found = [contender.sample() for _ in range(samples)]
    let_go(children)
    return found


def let_go(children):
    for child in children:
        child.stdin.close()
    for child in children:
        child.wait(0)
        close(child)


def load(contender, rate, seconds):
    """First bytes of jobs that come at a steady rate, however long those before them take."""
    with ThreadPoolExecutor(64) as pool:
        start = time.perf_counter()
        results = []
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, start + number / rate - time.perf_counter()))
            results.append(pool.submit(contender.sample))
        return [result.result()[0] for result in results]


COMMANDS = {function.__name__: function for function in (sample, throughput, private_memory, among, load)}


def main():
    # A thousand children have four thousand streams.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settings = json.loads(sys.argv[1])
    contender = {"pyspawner": Pyspawner, "forkserver": Forkserver}[settings.pop("kind")](**settings)
    for line in sys.stdin:
        command, arguments = json.loads(line)
        print(json.dumps(COMMANDS[command](contender, *arguments)), flush=True)


if __name__ == "__main__":
    main()
