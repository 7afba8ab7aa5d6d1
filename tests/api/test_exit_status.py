"""A child ends with the status with which ``python`` ends, and says what it says."""

import subprocess
import sys

import pytest
from clients import open_client

# The status of each is asked from the interpreter itself; the number here shows that it was.
ENDS = {
    "pass": 0,
    "import sys; sys.exit()": 0,
    "import sys; sys.exit(None)": 0,
    "import sys; sys.exit(3)": 3,
    "import sys; sys.exit(True)": 1,
    "import sys; sys.exit(256 + 7)": 7,
    "import sys; sys.exit(-1)": 255,
    "import sys; sys.exit('text')": 1,
    "import sys; sys.exit(2.5)": 1,
    "import sys; sys.exit(('a', 1))": 1,
    "raise SystemExit(4)": 4,
    "raise SystemExit('a', 'b')": 1,
    "class End(SystemExit): pass\nraise End(6)": 6,
    "import sys; sys.stderr = None; sys.exit('text')": 1,
    "import sys; sys.stderr.close(); sys.exit('text')": 1,
    "import os; os._exit(5)": 5,
    "import os, sys\ntry: sys.exit(1)\nfinally: os._exit(9)": 9,
    "try: raise SystemExit(8)\nexcept Exception: pass": 8,
    "exit(11)": 11,
    "import threading, sys\nt = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()": 0,
    "import threading\nclass T(threading.Thread):\n def run(self): raise SystemExit('text')\nT().start()": 0,
    "raise ValueError('on purpose')": 1,
    "import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()": 0,
    "import atexit, sys; atexit.register(print, 'bye'); sys.exit(3)": 3,
    "import atexit, sys; atexit.register(sys.exit, 5)": 0,
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def client():
    with open_client(child_main="exit_jobs.main") as client:
        yield client


def last_line(text):
    """Tracebacks have other frames; how they end is the same."""
    return text.decode().strip().rpartition("\n")[2]


@pytest.mark.parametrize("code", ENDS)
def test_ends_as_python_does(client, code):
    child = client.spawn_child([code])
    out, err = child.communicate(timeout=20)
    command = [sys.executable, "-u", "-c", f"exec({code!r}, {{'__name__': 'job'}})"]
    python = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert child.poll() == python.returncode == ENDS[code]
    assert (out, last_line(err)) == (python.stdout, last_line(python.stderr))


def test_a_status_that_is_no_c_long(client):
    """Some versions of the interpreter complain of it besides."""
    code = "import sys; sys.exit(2 ** 64 + 5)"
    child = client.spawn_child([code])
    child.communicate(timeout=20)
    python = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=20)
    assert child.poll() == python.returncode == 255


def test_how_each_end_is_called(client):
    def outcome(code):
        child = client.spawn_child([code])
        child.communicate(timeout=20)
        return child.outcome().name, child.poll()

    assert outcome("import sys; sys.exit(0)") == ("ok", 0)
    assert outcome("import sys; sys.exit(3)") == ("exited", 3)
    assert outcome("raise ValueError") == ("exited", 1)
    # There the interpreter ends by the signal itself, which a namespace's first process cannot.
    assert outcome("raise KeyboardInterrupt") == ("exited", 1)
