"""How tests drive the real binary, and where things are."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PYSPAWNER = Path(os.environ.get("PYSPAWNER", TARGET / "release/pyspawner")).resolve()
JOBS = Path(__file__).parent / "jobs"
IN_VM = "PYSPAWNER_VM" in os.environ


def _place():
    """A folder of every machine that a test may have something else at in a child, since nothing that the child needs is in it."""
    needed = [ROOT, PYSPAWNER, Path(sys.prefix), Path(sys.base_prefix)]
    places = [Path(name) for name in ("/srv", "/mnt", "/media", "/opt")]
    free = (place for place in places if place.is_dir() and not any(path.is_relative_to(place) for path in needed))
    return str(next(free))


PLACE = _place()
#: A name that is not there.
NOWHERE = f"/not-there-{os.getpid()}"


@dataclass
class Done:
    """A finished command."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self):
        """The result lines of ``map``."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def said(self):
        """Standard error without the host's warnings, of which an ordinary user gets some."""
        lines = self.stderr.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("pyspawner: warn: "))


class Driver:
    """Runs pyspawner with the test jobs on its path and this interpreter's environment."""

    def __init__(self, folder):
        self.folder = folder

    def command(self, verb, child_main, *flags, config=None, path=JOBS, prefix=(), spares=None):
        """``spares=0`` for a test that looks at the host's children: all of them are jobs then."""
        if spares is not None:
            pool = f"[pool]\nspares = {spares}\n"
            config = config.replace("[pool]\n", pool) if "[pool]" in (config or "") else pool + (config or "")
        command = [*prefix, PYSPAWNER, verb, "--child-main", child_main]
        if path is not None:
            command += ["--path", path]
        if "--python" not in flags:
            command += ["--python", sys.executable]
        if config is not None:
            file = self.folder / "pyspawner.toml"
            file.write_text(config)
            command += ["--config", file]
        return [str(word) for word in [*command, *flags]]

    def run(self, child_main, *arguments, flags=(), stdin="", timeout=120, **options):
        command = self.command("run", child_main, *flags, **options) + ["--", *arguments]
        return self.finish(command, stdin, timeout)

    def map(self, child_main, jobs, *flags, timeout=300, **options):
        lines = jobs if isinstance(jobs, (str, bytes)) else "".join(json.dumps(j) + "\n" for j in jobs)
        return self.finish(self.command("map", child_main, *flags, **options), lines, timeout)

    def job(self, child_main, *args, flags=(), **options):
        """The one result line of one job."""
        done = self.map(child_main, [list(args)], *flags, **options)
        assert len(done.lines) == 1, done
        return done.lines[0]

    def value(self, child_main, *args, **options):
        """What ``child_main`` returned."""
        line = self.job(child_main, *args, **options)
        assert line["outcome"] == "ok", line
        return line["result"]

    @staticmethod
    def finish(command, stdin, timeout):
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(command, input=data, capture_output=True, timeout=timeout, check=False)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "replace"))


def skipping(*layers):
    """A configuration that leaves these layers out."""
    return "[profile.default]\nskip_layers = " + json.dumps(layers) + "\n"
