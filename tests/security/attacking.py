"""How the attacks are run: through the real binary, under the default sandbox or without some layers."""

import json
import signal
import subprocess
import time
from pathlib import Path

from driving import skipping
from processes import children_of, host_of

ATTACKS = Path(__file__).parent / "jobs"
INSIDE = 1000

# All that may be skipped, but for the PID namespace: with it a job can hurt only itself.
ALL_BUT_PID = [
    "user_namespace", "network_namespace", "ipc_namespace", "uts_namespace", "cgroup_namespace",
    "root", "setuid", "drop_capabilities", "no_new_privs", "seccomp",
]  # fmt: skip


def without(layers):
    """A configuration without these layers, nor Landlock, which stops much of what they stop."""
    return skipping(*layers, "landlock") if layers and "landlock" not in layers else skipping(*layers)


def verdict(line):
    """What an attack got, in one word: its return value, or what ended it."""
    if line["outcome"] == "blocked_syscall":
        return f"blocked {line['detail']}"
    assert line["outcome"] == "ok", line
    return line["result"]


def attack(pyspawner, name, *args, off=(), config="", flags=(), path=ATTACKS):
    """What one attack got, with the layers in ``off`` left out."""
    config = without(off) + config
    return verdict(pyspawner.job(name, *args, config=config, flags=flags, path=path))


def attacks(pyspawner, name, arguments, off=(), config=""):
    """The same for many argument lists, in one host: verdicts by first argument."""
    config = without(off) + config
    done = pyspawner.map(name, arguments, "--ordered", config=config, path=ATTACKS)
    assert len(done.lines) == len(arguments), done.stderr
    return {args[0]: verdict(line) for args, line in zip(arguments, done.lines, strict=True)}


class Running:
    """A ``map`` host that is given its jobs one by one."""

    def __init__(self, pyspawner, child_main, *flags, off=(), config="", path=ATTACKS):
        command = pyspawner.command("map", child_main, *flags, config=without(off) + config, path=path, spares=0)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.stdout.read()
        self.process.wait(timeout=20)

    def send(self, *args):
        self.process.stdin.write(json.dumps(args).encode() + b"\n")
        self.process.stdin.flush()

    def line(self):
        return json.loads(self.process.stdout.readline())

    @property
    def host(self):
        return host_of(self.process)

    def child(self):
        """The process id of the one child, outside, once it is at its job."""
        wait_for(lambda: self._at_work(), "a child at its job")
        return children_of(self.host)[0]

    def _at_work(self):
        try:
            children = children_of(self.host)
            return len(children) == 1 and open(f"/proc/{children[0]}/comm").read() == "victim\n"
        except (StopIteration, OSError, subprocess.CalledProcessError):  # not there yet
            return False


def wait_for(condition, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)
