"""What preloaded modules do to the process itself: they print, read, and change what signals do."""

import signal
import subprocess
from pathlib import Path

import pytest
from processes import children_of, host_of, wait_until

PRINTS = """
import ctypes, os, subprocess, sys
print("from Python")
os.write(1, b"from a call\\n")
libc = ctypes.CDLL(None)
libc.puts(b"from C")            # kept in the stream's buffer
subprocess.run(["echo", "from a program"])
sys.stdout = open(1, "w", buffering=8192, closefd=False)
print("from a stream of its own")
def main(): return 1
"""


def test_what_modules_print_is_no_record_of_maps(pyspawner, open_folder):
    (open_folder / "prints.py").write_text(PRINTS)
    done = pyspawner.map("prints.main", [[], []], path=open_folder)
    assert [line["result"] for line in done.lines] == [1, 1]
    assert [line["stdout"] for line in done.lines] == ["", ""]
    for words in ("from Python", "from a call", "from C", "from a program", "from a stream of its own"):
        assert done.stderr.count(words) == 1, words


def test_nor_of_the_output_of_runs_job(pyspawner, open_folder):
    (open_folder / "prints.py").write_text(PRINTS.replace("return 1", "os.write(1, b'the job')"))
    done = pyspawner.run("prints.main", path=open_folder)
    assert done.stdout == "the job"
    assert "from C" in done.stderr


def test_a_module_that_reads_gets_none_of_the_jobs(pyspawner, open_folder):
    (open_folder / "reads.py").write_text(
        "import os, sys\nGOT = os.read(0, 100), sys.stdin.read()\ndef main(x): return [repr(GOT), x]\n"
    )
    done = pyspawner.map("reads.main", [[1], [2]], "--ordered", path=open_folder)
    assert [line["result"] for line in done.lines] == [["(b'', '')", 1], ["(b'', '')", 2]]


CHILDREN = {
    "SIG_IGN": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "SA_NOCLDWAIT": "libc.sigaction(17, (ctypes.c_uint64 * 19)(0, 2), None)",
    "a handler": "signal.signal(signal.SIGCHLD, lambda *_: None)",
    "a hook": "pyspawner_host.before_clone(lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN) and None)",
}


@pytest.mark.parametrize("how", CHILDREN)
def test_whatever_sigchld_does_the_host_knows_how_its_children_ended(pyspawner, open_folder, how):
    (open_folder / "ignores.py").write_text(
        "import ctypes, os, pyspawner_host, signal, subprocess\nlibc = ctypes.CDLL(None)\n"
        f"{CHILDREN[how]}\n"
        "def main(status):\n"
        "    assert subprocess.run(['true']).returncode == 0\n"
        "    os._exit(status)\n"
    )
    done = pyspawner.map("ignores.main", [[0], [3], [0]], "--ordered", "-j", "1", path=open_folder)
    assert [line["exit_code"] for line in done.lines] == [0, 3, 0], done


TAKERS = {
    "a hook that ignores SIGCHLD": CHILDREN["a hook"],
    "a hook that waits for any child": (
        "def wait():\n"
        "    try: os.waitpid(-1, os.WNOHANG)\n"
        "    except ChildProcessError: pass\n"
        "pyspawner_host.before_clone(wait)"
    ),
    "a thread that waits for any child": (
        "def wait():\n"
        "    while True:\n"
        "        try: os.waitpid(-1, 0)\n"
        "        except ChildProcessError: time.sleep(0.001)\n"
        "threading.Thread(target=wait, daemon=True).start()"
    ),
}


@pytest.mark.parametrize("how", TAKERS)
def test_no_module_takes_the_status_of_a_job(pyspawner, open_folder, how):
    (open_folder / "takes.py").write_text(
        f"import os, pyspawner_host, signal, threading, time\n{TAKERS[how]}\ndef main(status): os._exit(status)\n"
    )
    statuses = [number % 7 for number in range(150)]
    done = pyspawner.map("takes.main", [[status] for status in statuses], "--ordered", "-j", "4", path=open_folder)
    assert [line["exit_code"] for line in done.lines] == statuses, done


def test_children_find_sigchld_as_the_module_left_it(pyspawner, open_folder):
    (open_folder / "ignores.py").write_text(
        "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "def main(): return open('/proc/self/status').read().split('SigIgn:\\t')[1].split()[0]\n"
    )
    ignored = int(pyspawner.value("ignores.main", path=open_folder), 16)
    assert ignored & 1 << (signal.SIGCHLD - 1)


@pytest.mark.parametrize(
    "how",
    [
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, lambda *_: None)",
    ],
)
def test_the_host_still_ends_when_it_is_told_to(pyspawner, open_folder, how):
    (open_folder / "stubborn.py").write_text(f"import signal, time\n{how}\ndef main(seconds): time.sleep(seconds)\n")
    command = pyspawner.command("map", "stubborn.main", "-j", "1", path=open_folder, spares=0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"[0]\n[60]\n")
        process.stdin.flush()
        assert b'"ok"' in process.stdout.readline()
        wait_until(lambda: children_of(host_of(process)))
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert b'"cancelled"' in out


def test_no_signal_of_a_modules_making_reaches_the_thread_that_does_everything_else(pyspawner, open_folder):
    """Neither a handler, which would write to a wake-up descriptor that is another file's there, nor SIGPIPE's default."""
    (open_folder / "plain.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\ndef main(): time.sleep(60)\n"
    )
    command = pyspawner.command("map", "plain.main", path=open_folder, spares=0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(b"[]\n")
        process.stdin.flush()
        wait_until(lambda: host_of(process) is not None and children_of(host_of(process)))
        threads = Path(f"/proc/{host_of(process)}/task").iterdir()
        blocked = [int((thread / "status").read_text().split("SigBlk:\t")[1].split()[0], 16) for thread in threads]
        process.kill()
    assert max(bin(mask).count("1") for mask in blocked) >= 60


def test_a_timer_of_a_modules_disturbs_neither_host_nor_jobs(pyspawner, open_folder):
    (open_folder / "ticks.py").write_text(
        "import os, signal\nCOUNT = []\n"
        "signal.signal(signal.SIGALRM, lambda *_: COUNT.append(1))\n"
        "r, w = os.pipe(); os.set_blocking(w, False)\n"
        "signal.set_wakeup_fd(w, warn_on_full_buffer=False)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)\n"
        "def main(): return 1\n"
    )
    done = pyspawner.map("ticks.main", [[]] * 200, path=open_folder)
    assert [line["result"] for line in done.lines] == [1] * 200, done.stderr


CLOSES = """
import os, pyspawner_host

def close():
    os.closerange(3, 4096)
    return [open(os.devnull, "w") for _ in range(6)]  # at the numbers that were the host's

HELD = close() if WHEN == "import" else pyspawner_host.before_clone(lambda: close() and None)
def main(): return 1
"""


@pytest.mark.parametrize("when", ["import", "hook"])
def test_a_module_that_closes_what_is_not_its_own_ends_the_host_in_words(pyspawner, open_folder, when):
    (open_folder / "closes.py").write_text(f"WHEN = {when!r}\n{CLOSES}")
    done = pyspawner.map("closes.main", [[]] * 3, "--preload", "closes", path=open_folder, timeout=60)
    assert done.status == 125 and "panicked" not in done.stderr, done
    words = "has closed a descriptor" if when == "import" else "EBADF"
    assert "error: " in done.stderr and words in done.stderr, done.stderr
