"""The contenders: each takes one sample at a time, so that theirs can be taken in turn."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from environments import PYSPAWNER, ROOT, WORK

HERE = Path(__file__).parent
FOLDER = str(HERE / "jobs")
NO_SPARES = WORK / "no-spares.toml"


class Driven:
    """One that a driver process of its own speaks for."""

    def __init__(self, python, kind, preload, **options):
        settings = {"kind": kind, "preload": preload, "folder": FOLDER, **options}
        env = dict(os.environ, PYSPAWNER=str(PYSPAWNER))
        if Path(python) == Path(sys.executable):
            env["PYTHONPATH"] = str(ROOT / "python")
        command = [python, HERE / "driver.py", json.dumps(settings)]
        # 1.0.0 imports the jobs from the working directory.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=FOLDER, env=env, text=True, **pipes)

    def ask(self, command, *arguments):
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args}: ended with {self._process.wait()} at {command} {arguments}")
        return json.loads(answer)

    def sample(self):
        return self.ask("sample")

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def this_project(preload):
    return Driven(sys.executable, "pyspawner", preload)


def this_project_cold(preload):
    """Every child is cloned once its job has come."""
    NO_SPARES.parent.mkdir(parents=True, exist_ok=True)
    NO_SPARES.write_text("[pool]\nspares = 0\n")
    return Driven(sys.executable, "pyspawner", preload, config=str(NO_SPARES))


def old_package(python, preload):
    return Driven(python, "pyspawner", preload)


def forkserver(preload):
    return Driven(sys.executable, "forkserver", preload)


class FreshPython:
    """A new interpreter for each job, perhaps in a sandbox of bubblewrap's."""

    def __init__(self, preload, prefix=()):
        imports = "".join(f"import {module}; " for module in preload)
        self._command = [*prefix, sys.executable, "-c", f"{imports}import sys; sys.stdout.write('x')"]

    def sample(self):
        start = time.perf_counter()
        with subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout.read(1) == b"x"
            first_byte = time.perf_counter() - start
            assert process.wait() == 0
            return first_byte * 1e3, (time.perf_counter() - start) * 1e3

    def close(self):
        pass


def bubblewrap(preload):
    return FreshPython(preload, ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"])


def map_throughput(preload, jobs_at_once, count):
    """Jobs per second of ``pyspawner map``, without its start: that is the difference of two runs."""
    few = count // 10
    return (count - few) / (_map_seconds(preload, jobs_at_once, count) - _map_seconds(preload, jobs_at_once, few))


def _map_seconds(preload, jobs_at_once, count):
    command = [PYSPAWNER, "map", "-j", str(jobs_at_once), "--child-main", "bench_jobs.main", "--path", FOLDER]
    command += ["--python", sys.executable, *(["--preload", ",".join(preload)] if preload else [])]
    start = time.perf_counter()
    done = subprocess.run(command, input=b"[]\n" * count, capture_output=True, check=True)
    assert done.stdout.count(b'"ok"') == count
    return time.perf_counter() - start


def floor(preload, samples):
    """What ``pyspawner bench`` finds."""
    command = [PYSPAWNER, "bench", "--json", "--samples", str(samples), "--python", sys.executable]
    command += ["--preload", ",".join(preload)] if preload else []
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return json.loads(done.stdout)
