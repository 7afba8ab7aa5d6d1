"""Where the contenders live: the environment of pyspawner 1.0.0 and other packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORK = TARGET / "bench"
PYSPAWNER = TARGET / "release/pyspawner"


def python_of_old_package(*packages):
    """An interpreter with pyspawner 1.0.0 and these packages, in the versions of the tests'."""
    python = WORK / "pyspawner-1.0.0/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", WORK / "pyspawner-1.0.0"], check=True)
    pins = (ROOT / "tests/requirements.txt").read_text().split()
    wanted = [pin for pin in pins if pin.split("==")[0] in packages]
    wanted += ["pyspawner==1.0.0", "setuptools<80"]
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted], check=True)
    return python


def need_bubblewrap():
    """Debian's, which `make bench` alone needs."""
    if shutil.which("bwrap") is None:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "bubblewrap"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
