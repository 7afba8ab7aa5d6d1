"""Threads and thread pools of preloaded modules: what goes on without them, what is refused, and how that is said."""

import subprocess
import sys

import pytest

WAITS = {
    "recv": "a, b = socket.socketpair(); call = lambda: a.recv(1)",
    "recvmsg": "a, b = socket.socketpair(); call = lambda: a.recvmsg(1)",
    "accept": "a = socket.create_server(('127.0.0.1', 0)); call = lambda: a.accept()",
    "read from a pipe": "r, w = os.pipe(); call = lambda: os.read(r, 1)",
    "readline from a pipe": "r, w = os.pipe(); f = open(r); call = lambda: f.readline()",
    "a full pipe": "r, w = os.pipe(); call = lambda: os.write(w, bytes(1 << 20))",
    "fgets": "r, w = os.pipe(); libc.fdopen.restype = ctypes.c_void_p; f = libc.fdopen(r, b'r');"
    " call = lambda: libc.fgets(ctypes.create_string_buffer(9), 9, ctypes.c_void_p(f))",
    "poll": "r, w = os.pipe(); p = select.poll(); p.register(r, 1); call = lambda: p.poll()",
    "a child's end": "p = subprocess.Popen(['sleep', '100']); call = lambda: p.wait()",
    "a lock": "lock = threading.Lock(); lock.acquire(); call = lambda: lock.acquire()",
    "a queue": "q = queue.Queue(); call = lambda: q.get()",
    "sleep": "call = lambda: time.sleep(100)",
    "a lock of a file": "f = open('/etc/passwd'); fcntl.flock(f, 2); g = open('/etc/passwd'); call = lambda: fcntl.flock(g, 2)",
    "an event loop": "call = lambda: asyncio.run(asyncio.sleep(100))",
    "an HTTP server": "s = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler); call = s.serve_forever",
}
IMPORTS = "import asyncio, ctypes, fcntl, http.server, os, queue, select, socket, subprocess, threading, time\nlibc = ctypes.CDLL(None)\n"
START = """
threading.Thread(target=lambda: call(), daemon=True, name="waiting").start()
time.sleep(0.05)
def main():
    # What takes the C library's locks: its streams, its heap, threads, a program.
    libc.fflush(None); libc.printf(b"%d", 1); libc.fflush(None)
    threading.Thread(target=print).start()
    return subprocess.run(["true"]).returncode
"""


@pytest.mark.parametrize("what", WAITS)
def test_clones_go_on_without_a_thread_that_waits(pyspawner, open_folder, what):
    (open_folder / "waits.py").write_text(IMPORTS + WAITS[what] + START)
    done = pyspawner.map("waits.main", [[]] * 3, "--timeout", "20", path=open_folder)
    assert [line["result"] for line in done.lines] == [0] * 3, done


def test_a_thread_that_computes_is_named_with_its_module_and_stack(pyspawner, open_folder):
    (open_folder / "busy.py").write_text(
        "import threading, hashlib\n"
        "def compute(): hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)\n"
        "threading.Thread(target=compute, daemon=True, name='cruncher').start()\n"
        "def main(): return 1\n"
    )
    done = pyspawner.map("busy.main", [[]], path=open_folder)
    assert done.status == 125
    assert """It is Python's thread "cruncher", of module busy:""" in done.stderr
    assert "in compute" in done.stderr and "it was running" in done.stderr


def test_threads_are_reported_by_module_or_library(pyspawner, open_folder):
    (open_folder / "quiet.py").write_text(
        "import threading, numpy, pyarrow.csv, io\n"
        "pyarrow.csv.read_csv(io.BytesIO(b'a,b\\n' + b'1,2\\n' * 100_000))\n"
        "threading.Thread(target=threading.Event().wait, daemon=True, name='idle').start()\n"
        "def main(): return 1\n"
    )
    done = pyspawner.map("quiet.main", [[]], "-v", path=open_folder)
    assert done.lines[0]["result"] == 1
    assert 'left thread "idle" of module threading running' in done.stderr
    assert "of pyarrow/libarrow.so" in done.stderr


# ---- the warm-up, rehearsed ---------------------------------------------------------------------------


def rehearse(pyspawner, folder, module, *flags, jobs=1, **options):
    (folder / "warm.py").write_text(module)
    command = ["--preload", "warm", "--warm-up", "warm.main", "--timeout", "20", *flags]
    return pyspawner.map("warm.main", [[]] * jobs, *command, path=folder, **options)


EXECUTOR = """
import concurrent.futures
POOL = concurrent.futures.ThreadPoolExecutor(1)
def main(): return POOL.submit(lambda: 7).result()
"""


def test_a_pool_that_a_clone_does_not_have_is_found_before_the_first_job(pyspawner, open_folder):
    done = rehearse(pyspawner, open_folder, EXECUTOR)
    assert (done.status, done.stdout) == (125, "")
    assert "called once more in a clone, as a job would, it did not end within 10s" in done.stderr
    assert 'thread "ThreadPoolExecutor-0_0" of module ' in done.stderr
    assert "--no-rehearsal" in done.stderr
    # The stack of the clone that hangs shows where.
    assert 'warm.py", line 4 in main' in done.stderr


@pytest.mark.parametrize("how", ["flag", "file"])
def test_who_knows_better_starts_all_the_same(pyspawner, open_folder, how):
    flags, config = (["--no-rehearsal"], None) if how == "flag" else ([], "rehearsal = false\n")
    module = "import os\nPID = os.getpid()\ndef main():\n    if os.getpid() != PID: raise ValueError('in a clone')\n"
    assert rehearse(pyspawner, open_folder, module).status == 125
    done = rehearse(pyspawner, open_folder, module, *flags, config=config)
    assert done.lines[0]["outcome"] == "exited" and "in a clone" in done.lines[0]["stderr"]


def test_what_fails_in_a_clone_alone_is_told_with_its_traceback(pyspawner, open_folder):
    module = "import os\ndef main(): open('/var/tmp/warmed-%d' % os.getuid(), 'w').close()\n"
    done = rehearse(pyspawner, open_folder, module)
    assert done.status == 125
    assert "failed: Traceback" in done.stderr and "Read-only file system" in done.stderr


def test_a_warm_up_that_is_fit_for_clones_is_called_twice_and_printed_once(pyspawner, open_folder):
    module = "def main():\n    print('warming up')\n    return 7\n"
    done = rehearse(pyspawner, open_folder, module, jobs=2)
    assert [line["result"] for line in done.lines] == [7, 7]
    assert done.stderr.count("warming up") == 1


POLARS = """
import polars
def main():
    frame = polars.DataFrame({"k": [i % 10 for i in range(100_000)], "v": range(100_000)})
    return frame.lazy().group_by("k").agg(polars.col("v").sum()).collect().height
"""


def test_polars_used_in_the_warm_up_is_refused_by_name_and_used_in_jobs_alone_it_works(pyspawner, open_folder):
    done = rehearse(pyspawner, open_folder, POLARS)
    assert done.status == 125 and "_polars_runtime" in done.stderr
    done = pyspawner.map("warm.main", [[], []], "--preload", "warm", path=open_folder)
    assert [line["result"] for line in done.lines] == [10, 10]


# ---- OpenMP: its threads end before each clone, and begin anew in it --------------------------------------

OPENMP = {
    "scikit-learn": """
import numpy
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingClassifier
X = numpy.random.default_rng(0).normal(size=(3000, 8)); Y = (X[:, 0] > 0).astype(int)
def main():
    fitted = HistGradientBoostingClassifier(max_iter=3).fit(X, Y).score(X, Y)
    return [fitted > 0.9, KMeans(2, n_init=1, random_state=0).fit(X).cluster_centers_.shape[0]]
""",
    "XGBoost": """
import numpy, xgboost
X = numpy.random.default_rng(0).normal(size=(2000, 20)); Y = (X[:, 0] > 0).astype(int)
def main():
    trained = xgboost.train({"nthread": 2, "objective": "binary:logistic"}, xgboost.DMatrix(X, label=Y, nthread=2), 5)
    return [bool(((trained.predict(xgboost.DMatrix(X, nthread=2)) > 0.5) == Y).mean() > 0.9), 2]
""",
    "the C library's own": """
import ctypes, pathlib
LIBRARY = ctypes.CDLL(str(pathlib.Path(__file__).parent / "team.so"))
def main(): return [LIBRARY.team() == 3, 2]
""",
}


TEAM = """
int team(void)
{
    int members = 0;
#pragma omp parallel num_threads(3) reduction(+:members)
    members += 1;
    return members;
}
"""


@pytest.fixture
def team_folder(open_folder):
    """A folder with a library that has three threads count themselves."""
    command = ["cc", "-fopenmp", "-shared", "-fPIC", "-x", "c", "-o", open_folder / "team.so", "-"]
    subprocess.run(command, input=TEAM, text=True, check=True)
    return open_folder


@pytest.mark.parametrize("what", OPENMP)
def test_openmp_works_in_clones_after_the_warm_up_has_used_it(pyspawner, team_folder, what):
    done = rehearse(pyspawner, team_folder, OPENMP[what], jobs=3)
    assert [line["result"] for line in done.lines] == [[True, 2]] * 3, done


def test_the_control_a_forked_copy_waits_for_openmps_threads(team_folder):
    (team_folder / "warm.py").write_text(OPENMP["the C library's own"])
    code = (
        "import os, signal, warm\n"
        "warm.main()\n"
        "if os.fork() == 0: signal.alarm(2); warm.main(); os._exit(0)\n"
        "os._exit(os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGALRM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=team_folder).returncode == 1


def test_openmp_used_by_a_hook_before_each_clone(pyspawner, team_folder):
    (team_folder / "hooked.py").write_text(
        OPENMP["the C library's own"] + "import pyspawner_host\npyspawner_host.before_clone(main)\n"
    )
    done = pyspawner.map("hooked.main", [[]] * 3, "--timeout", "20", path=team_folder)
    assert [line["result"] for line in done.lines] == [[True, 2]] * 3, done
